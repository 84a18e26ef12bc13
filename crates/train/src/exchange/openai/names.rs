//! Which of their tensors is which of diffusers', and what is done with it.

use std::collections::BTreeSet;
use std::path::Path;

use ddpm_model::params::ParamSpec;
use ddpm_model::unet::{UNet, UNetConfig, UpBlockType};
use ddpm_run::checkpoint::NamedTensor;

use super::flags::Flags;
use super::pickle::File;
use super::structure::Network;
use super::{ADVICE, Refusal};
use crate::error::Error;

/// Where a tensor comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    key: String,
    /// Of queries, keys and values, which are one tensor there.
    third: Option<usize>,
}

/// The weights of `unet` under diffusers' keys.
///
/// # Errors
/// One is missing, has another shape, or belongs to nothing.
pub(super) fn converted(
    unet: &UNet,
    network: &Network,
    flags: &Flags,
    file: &File,
    path: &Path,
) -> Result<Vec<NamedTensor>, Error> {
    let refused = |what: Refusal| Error::unreadable(path, what, ADVICE);
    let config = &network.config;
    let mut used = BTreeSet::new();
    let mut tensors = Vec::new();
    for (key, shape) in unet.layout().specs().iter().flat_map(ParamSpec::file_shapes) {
        let source = source(&key, config).ok_or_else(|| refused(format!("no tensor for `{key}`, expected one")))?;
        let mut whole = shape.clone();
        if source.third.is_some() {
            whole[0] *= 3;
        }
        check(file, &source.key, &whole).map_err(refused)?;
        let values = file.values(&source.key)?;
        let data = match source.third {
            None => values,
            Some(third) => rows_of(&values, third, shape[0], config.heads(shape[0]), flags.use_new_attention_order),
        };
        used.insert(source.key);
        tensors.push(NamedTensor { name: key, shape, data });
    }
    match file.names().find(|name| !used.contains(*name)) {
        Some(extra) => Err(refused(format!("`{extra}` is none of the network's tensors, expected none"))),
        None => Ok(tensors),
    }
}

/// Convolutions over one pixel, or over a line of pixels, have axes of 1 at their end that a linear layer has not.
fn check(file: &File, key: &str, expected: &[usize]) -> Result<(), Refusal> {
    let plain = |shape: &[usize]| {
        let end = shape.iter().rposition(|&side| side != 1).map_or(0, |last| last + 1);
        shape[..end].to_vec()
    };
    match file.shape(key) {
        None => Err(format!("no tensor `{key}`, expected one of shape {expected:?}")),
        Some(found) if plain(found) != plain(expected) => {
            Err(format!("`{key}` has shape {found:?}, expected {expected:?}"))
        }
        Some(_) => Ok(()),
    }
}

/// The rows of queries, keys or values: with the new order one third of all, else one third of every head's
/// (`unet.py:QKVAttentionLegacy`).
fn rows_of(values: &[f32], third: usize, channels: usize, heads: usize, new_order: bool) -> Vec<f32> {
    let row = values.len() / (3 * channels).max(1);
    let (blocks, block) = if new_order { (1, channels) } else { (heads, channels / heads) };
    let start = |number: usize| (3 * number + third) * block * row;
    (0..blocks).flat_map(|number| values[start(number)..][..block * row].iter().copied()).collect()
}

/// The tensor that becomes diffusers' `key`.
fn source(key: &str, config: &UNetConfig) -> Option<Source> {
    let per_level = config.layers_per_block + 1;
    let parts: Vec<&str> = key.split('.').collect();
    let number = |at: usize| parts.get(at)?.parse::<usize>().ok();
    let whole = |place: &str, name: &str| Some(Source { key: format!("{place}.{name}"), third: None });
    let last = *parts.last()?;
    match (parts[0], parts.get(1).copied()) {
        ("conv_in", _) => whole("input_blocks.0.0", last),
        ("conv_norm_out", _) => whole("out.0", last),
        ("conv_out", _) => whole("out.2", last),
        ("class_embedding", _) => whole("label_emb", last),
        ("time_embedding", Some("linear_1")) => whole("time_embed.0", last),
        ("time_embedding", Some("linear_2")) => whole("time_embed.2", last),
        ("mid_block", Some(kind)) => {
            let place = match (kind, number(2)?) {
                ("attentions", _) => 1,
                (_, first) => 2 * first,
            };
            part(&format!("middle_block.{place}"), kind, &parts[3..])
        }
        (half @ ("down_blocks" | "up_blocks"), _) => {
            let (level, kind, index) = (number(1)?, *parts.get(2)?, number(3)?);
            // The first input block is conv_in. A downsampling is a block of its own; an upsampling comes last in its level's
            // last block.
            let (blocks, first) = if half == "down_blocks" { ("input_blocks", 1) } else { ("output_blocks", 0) };
            let in_level = if matches!(kind, "resnets" | "attentions") { index } else { config.layers_per_block };
            let attends = config.up_block_types.get(level) == Some(&UpBlockType::AttnUpBlock2D);
            let place = match kind {
                "attentions" => 1,
                "upsamplers" => 1 + usize::from(attends),
                _ => 0,
            };
            let block = first + level * per_level + in_level;
            part(&format!("{blocks}.{block}.{place}"), kind, &parts[4..])
        }
        _ => None,
    }
}

/// A tensor of a residual block, an attention or a resampling.
fn part(place: &str, kind: &str, rest: &[&str]) -> Option<Source> {
    let (&layer, &end) = (rest.first()?, rest.last()?);
    let third = ["to_q", "to_k", "to_v"].iter().position(|&name| name == layer);
    let name = match (kind, layer) {
        ("attentions", "group_norm") => "norm",
        ("attentions", "to_out") => "proj_out",
        ("attentions", _) => third.map(|_| "qkv")?,
        ("downsamplers", "conv") => "op",
        ("upsamplers", "conv") => "conv",
        (_, "norm1") => "in_layers.0",
        (_, "conv1") => "in_layers.2",
        (_, "time_emb_proj") => "emb_layers.1",
        (_, "norm2") => "out_layers.0",
        (_, "conv2") => "out_layers.3",
        (_, "conv_shortcut") => "skip_connection",
        _ => return None,
    };
    Some(Source { key: format!("{place}.{name}.{end}"), third })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_each_head_are_gathered() {
        // Two heads of two channels, one input: q0 q1 k0 k1 v0 v1 of a head, then those of the other.
        let values: Vec<f32> = (0..12_u8).map(f32::from).collect();
        assert_eq!(rows_of(&values, 0, 4, 2, false), [0.0, 1.0, 6.0, 7.0]);
        assert_eq!(rows_of(&values, 2, 4, 2, false), [4.0, 5.0, 10.0, 11.0]);
        assert_eq!(rows_of(&values, 1, 4, 2, true), [4.0, 5.0, 6.0, 7.0]);
    }
}
