//! The weights of a folder: one file, or several with an index, in f32, f16 or bf16, whose values f32 has exactly.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use ddpm_run::checkpoint::{NamedTensor, tensors};

use super::json::{DAMAGED, read_json};
use super::{PICKLES, WEIGHTS_FILE};
use crate::error::Error;

/// The weights in `dir`, and the file that names them.
///
/// # Errors
/// There are none that are read here, or they are damaged.
pub(super) fn read(dir: &Path) -> Result<(PathBuf, Vec<NamedTensor>), Error> {
    let index = dir.join(format!("{WEIGHTS_FILE}.index.json"));
    let Some(file) = single(dir) else {
        return if index.is_file() { Ok((index.clone(), shards(dir, &index)?)) } else { Err(none(dir)) };
    };
    let tensors = tensors::read_foreign(&file).map_err(Error::Weights)?;
    Ok((file, tensors))
}

/// The only file: the usual one, or that of a variant (`diffusion_pytorch_model.fp16.safetensors`).
fn single(dir: &Path) -> Option<PathBuf> {
    let usual = dir.join(WEIGHTS_FILE);
    if usual.is_file() {
        return Some(usual);
    }
    let (stem, end) = WEIGHTS_FILE.split_once('.')?;
    let is_variant = |name: &str| {
        let middle = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(end)).unwrap_or_default();
        // Not `-00001-of-00002`, which is a part.
        middle.len() > 2 && middle.starts_with('.') && middle.ends_with('.')
    };
    let names = std::fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let found: BTreeSet<String> = names.filter(|name| is_variant(name)).collect();
    let name = found.into_iter().next()?;
    tracing::warn!(name, "{}: the weights are those of a variant, {name}", dir.display());
    Some(dir.join(name))
}

/// The tensors of the files that an index names.
fn shards(dir: &Path, index: &Path) -> Result<Vec<NamedTensor>, Error> {
    let document = read_json(index)?;
    let wrong = |what: String| Error::unreadable(index, what, DAMAGED);
    let map = document["weight_map"].as_object().ok_or_else(|| wrong("no weight_map, expected one".to_owned()))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        let plain =
            |name: &&str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        let file = file.as_str().filter(plain);
        let what = || wrong(format!("`{tensor}` is in {}, expected a file of this folder", map[tensor]));
        files.insert(file.ok_or_else(what)?);
    }
    let mut all = Vec::new();
    for file in files {
        all.extend(tensors::read_foreign(&dir.join(file)).map_err(Error::Weights)?);
    }
    let held: BTreeSet<&str> = all.iter().map(|tensor| tensor.name.as_str()).collect();
    match map.keys().find(|name| !held.contains(name.as_str())) {
        Some(missing) => Err(wrong(format!("`{missing}` is in none of the files"))),
        None => Ok(all),
    }
}

/// Why there are no weights.
fn none(dir: &Path) -> Error {
    if let Some(pickle) = PICKLES.iter().map(|name| dir.join(name)).find(|path| path.is_file()) {
        let what = format!("a pickle, which can run any code when it is read, so it is not; expected {WEIGHTS_FILE}");
        let advice = "convert it where you trust it: UNet2DModel.from_pretrained(DIR, use_safetensors=False)\
                    .save_pretrained(DIR), or download the safetensors file of the model";
        return Error::unreadable(&pickle, what, advice);
    }
    Error::unreadable(dir, format!("no {WEIGHTS_FILE}"), "download the whole model again")
}
