//! The network, from the shapes of its weights (`unet.py:UNetModel`).
//!
//! `output_blocks` tell most: each is a residual block, perhaps attention, and where a level ends what doubles the image. The
//! other half mirrors it.

use std::collections::BTreeMap;

use ddpm_data::ImageSize;
use ddpm_model::unet::{DownBlockType, Resample, TimeScaleShift, UNetConfig, UpBlockType};

use super::Origin;
use super::Refusal;
use super::flags::Flags;

/// Groups of every normalisation (`nn.py:normalization`).
const GROUPS: usize = 32;

/// Shapes by name.
pub(super) type Shapes = BTreeMap<String, Vec<usize>>;

/// What the shapes say.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) config: UNetConfig,
    pub(super) learns_variance: bool,
}

/// A level on the way up.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    width: usize,
    blocks: usize,
    attends: bool,
    /// How it doubles the image; none at the finest.
    resample: Option<Resample>,
}

/// The network of these shapes.
///
/// # Errors
/// They are those of no such network, or say something else than the flags.
pub(super) fn network(shapes: &Shapes, flags: &Flags) -> Result<Network, Refusal> {
    let axis = |key: &str, axis: usize| {
        let shape = shapes.get(key).ok_or_else(|| format!("no tensor `{key}`, expected one"))?;
        shape.get(axis).copied().ok_or_else(|| format!("`{key}` has shape {shape:?}, expected {} axes", axis + 1))
    };
    let mut levels = levels_up(shapes)?;
    levels.reverse();
    let [finest, ..] = &levels[..] else {
        return Err("no tensor `output_blocks.0.0.out_layers.3.weight`, expected one".to_owned());
    };
    let (in_channels, out_channels) = (axis("input_blocks.0.0.weight", 1)?, axis("out.2.weight", 0)?);
    let learns_variance = out_channels == 2 * in_channels;
    let time_embed_dim = axis("time_embed.0.weight", 0)?;
    let scale_shift =
        axis("input_blocks.1.0.emb_layers.1.weight", 0)? == 2 * axis("input_blocks.1.0.out_layers.3.weight", 0)?;
    let num_class_embeds = shapes.get("label_emb.weight").and_then(|shape| shape.first().copied());
    let has_op = shapes.keys().any(|key| key.ends_with(".0.op.weight"));
    let down = if has_op { Resample::Conv } else { Resample::Resnet };
    let up = resample_up(&levels).unwrap_or(down);
    let config = UNetConfig {
        sample_size: Some(ImageSize::square(flags.image_size)),
        in_channels: Some(in_channels),
        out_channels: Some(out_channels),
        block_out_channels: levels.iter().map(|level| level.width).collect(),
        layers_per_block: finest.blocks.saturating_sub(1),
        down_block_types: levels.iter().map(|level| down_block(level, down)).collect(),
        up_block_types: levels.iter().rev().map(|level| up_block(level, up)).collect(),
        attention_head_dim: flags.num_head_channels,
        num_attention_heads: flags.num_head_channels.is_none().then_some(flags.num_heads),
        norm_num_groups: GROUPS,
        attn_norm_num_groups: Some(GROUPS),
        dropout: flags.dropout,
        resnet_time_scale_shift: if scale_shift { TimeScaleShift::ScaleShift } else { TimeScaleShift::Default },
        downsample_type: down,
        upsample_type: up,
        timestep_scale: flags.timestep_scale(),
        time_embedding_dim: (time_embed_dim != 4 * finest.width).then_some(time_embed_dim),
        num_class_embeds,
        ..UNetConfig::default()
    };
    compare(flags, &config, &levels, learns_variance)?;
    Ok(Network { config, learns_variance })
}

/// How the image is doubled; all levels do it alike.
fn resample_up(levels: &[Level]) -> Option<Resample> {
    levels.iter().find_map(|level| level.resample)
}

fn down_block(level: &Level, resample: Resample) -> DownBlockType {
    match (level.attends, resample) {
        (true, _) => DownBlockType::AttnDownBlock2D,
        (false, Resample::Conv) => DownBlockType::DownBlock2D,
        (false, Resample::Resnet) => DownBlockType::ResnetDownsampleBlock2D,
    }
}

fn up_block(level: &Level, resample: Resample) -> UpBlockType {
    match (level.attends, resample) {
        (true, _) => UpBlockType::AttnUpBlock2D,
        (false, Resample::Conv) => UpBlockType::UpBlock2D,
        (false, Resample::Resnet) => UpBlockType::ResnetUpsampleBlock2D,
    }
}

/// The levels from the coarsest to the finest.
fn levels_up(shapes: &Shapes) -> Result<Vec<Level>, Refusal> {
    let mut levels: Vec<Level> = Vec::new();
    let mut begins = true;
    for n in 0.. {
        let at = format!("output_blocks.{n}");
        let Some(width) = shapes.get(&format!("{at}.0.out_layers.3.weight")).and_then(|shape| shape.first()) else {
            break;
        };
        let has = |part: String| shapes.contains_key(&format!("{at}.{part}"));
        let attends = has("1.qkv.weight".to_owned());
        let last = 1 + usize::from(attends);
        let resample = if has(format!("{last}.conv.weight")) {
            Some(Resample::Conv)
        } else {
            has(format!("{last}.in_layers.0.weight")).then_some(Resample::Resnet)
        };
        let block = Level { width: *width, blocks: 1, attends, resample: None };
        match levels.last_mut().filter(|_| !begins) {
            Some(level) if (level.width, level.attends) == (*width, attends) => level.blocks += 1,
            Some(_) => {
                return Err(format!(
                    "`{at}` has other channels or attention than the rest of its level, expected the same"
                ));
            }
            None => levels.push(block),
        }
        if let Some(level) = levels.last_mut() {
            level.resample = resample;
        }
        begins = resample.is_some();
    }
    let blocks = levels.first().map_or(0, |level| level.blocks);
    match levels.iter().position(|level| level.blocks != blocks) {
        Some(odd) => Err(format!(
            "level {odd} of `output_blocks` has {} blocks, expected {blocks} as the first",
            levels[odd].blocks
        )),
        None => Ok(levels),
    }
}

/// Compares given flags with the weights.
fn compare(flags: &Flags, config: &UNetConfig, levels: &[Level], learns_variance: bool) -> Result<(), Refusal> {
    let width = levels.first().map_or(1, |level| level.width).max(1);
    let listed = |numbers: Vec<usize>| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    flags.compare("num_channels", width)?;
    flags.compare("num_res_blocks", config.layers_per_block)?;
    flags.compare("channel_mult", listed(levels.iter().map(|level| level.width / width).collect()))?;
    flags.compare("learn_sigma", learns_variance)?;
    flags.compare("class_cond", config.num_class_embeds.is_some())?;
    flags.compare("use_scale_shift_norm", config.resnet_time_scale_shift == TimeScaleShift::ScaleShift)?;
    let residual = config.downsample_type == Resample::Resnet && levels.len() > 1;
    if residual && flags.origin == Origin::ImprovedDiffusion {
        return Err(
            "its levels are joined by residual blocks, which improved-diffusion has not: --from guided-diffusion"
                .to_owned(),
        );
    }
    flags.compare("resblock_updown", residual)
}
