//! Images, tensors and checkpoints made for a test.

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::place::Place;

/// A PNG of one colour, another one for each `seed`.
pub fn png(side: u32, seed: usize) -> Vec<u8> {
    let image = RgbImage::from_fn(side, side, |x, y| Rgb([(x * 9) as u8, (y * 9) as u8, (seed * 37) as u8]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Writes `count` PNGs into a folder: `000.png`, `001.png`, ...
pub fn image_folder(place: &Place, folder: &str, count: usize) {
    for index in 0..count {
        place.write(&format!("{folder}/{index:03}.png"), png(16, index));
    }
}

/// A tensor for [`safetensors_file`]: its name, its shape and its values.
pub type Tensor<'a, T> = (&'a str, Vec<usize>, Vec<T>);

/// A `.safetensors` file of f32 and i64 tensors.
pub fn safetensors_file(floats: &[Tensor<'_, f32>], integers: &[Tensor<'_, i64>]) -> Vec<u8> {
    let floats = floats.iter().map(|(name, shape, values)| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (*name, Dtype::F32, shape, bytes)
    });
    let integers = integers.iter().map(|(name, shape, values)| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (*name, Dtype::I64, shape, bytes)
    });
    let tensors: Vec<_> = floats.chain(integers).collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, (*shape).clone(), bytes).unwrap()));
    safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
}

/// A `.safetensors` file of tensors of one type, whose bytes are given.
pub fn safetensors_of(dtype: Dtype, tensors: &[Tensor<'_, u8>]) -> Vec<u8> {
    let view = |shape: &Vec<usize>, bytes| TensorView::new(dtype, shape.clone(), bytes).unwrap();
    safetensors::serialize(tensors.iter().map(|(name, shape, bytes)| (*name, view(shape, bytes))), None).unwrap()
}

/// The f32 tensors of a `.safetensors` file: shape and values by name.
pub fn read_safetensors(bytes: &[u8]) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let values = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let floats = tensors.iter().filter(|(_, view)| view.dtype() == Dtype::F32);
    floats.map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(view.data())))).collect()
}

/// Makes the manifest of a checkpoint valid again after a file in it was changed, as a program that writes wrong checkpoints
/// would: no hash detects the damage then.
pub fn reseal(checkpoint: &Path) {
    let path = checkpoint.join("MANIFEST.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for entry in manifest["files"].as_array_mut().unwrap() {
        let bytes = fs::read(checkpoint.join(entry["name"].as_str().unwrap())).unwrap();
        entry["size"] = json!(bytes.len());
        entry["blake3"] = json!(blake3::hash(&bytes).to_hex().as_str());
    }
    fs::write(path, manifest.to_string()).unwrap();
}
