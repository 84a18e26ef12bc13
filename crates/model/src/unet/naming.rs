//! Key names and layouts in files: diffusers' and PyTorch's, converted to ours and back without loss.
//!
//! In memory convolution weights are `[O, kH, kW, I]`, in files `[O, I, kH, kW]`; in memory queries, keys and values are one
//! layer, in files three. Everything else is the same in both. This is the only module that knows about it.

use crate::error::{ModelError, Result};
use crate::params::{FileLayout, ParamSpec};

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileTensor {
    /// Its key.
    pub key: String,
    /// Its shape, in PyTorch's layout.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Vec<f32>,
}

impl ParamSpec {
    /// Keys and shapes of this parameter in a file.
    pub fn file_shapes(&self) -> Vec<(String, Vec<usize>)> {
        match &self.file {
            FileLayout::Same => vec![(self.key.clone(), self.shape.clone())],
            FileLayout::Convolution => {
                let [o, h, w, i] = self.convolution_shape();
                vec![(self.key.clone(), vec![o, i, h, w])]
            }
            FileLayout::Stacked(keys) => {
                let mut shape = self.shape.clone();
                shape[0] /= keys.len();
                keys.iter().map(|key| (key.clone(), shape.clone())).collect()
            }
        }
    }

    fn convolution_shape(&self) -> [usize; 4] {
        std::array::from_fn(|axis| self.shape.get(axis).copied().unwrap_or(1))
    }

    /// This parameter's elements, taken from a flat buffer, as a file holds them.
    pub fn to_file(&self, flat: &[f32]) -> Vec<FileTensor> {
        let values = &flat[self.offset..][..self.len()];
        let shapes = self.file_shapes();
        let share = self.len() / shapes.len();
        shapes
            .into_iter()
            .enumerate()
            .map(|(part, (key, shape))| {
                let data = match self.file {
                    FileLayout::Convolution => {
                        let [o, h, w, i] = self.convolution_shape();
                        move_last_axis(values, o, h * w, i)
                    }
                    _ => values[part * share..][..share].to_vec(),
                };
                FileTensor { key, shape, data }
            })
            .collect()
    }

    /// Puts this parameter's elements into a flat buffer. `lookup` finds a tensor of the file by its key.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn from_file(&self, flat: &mut [f32], lookup: impl Fn(&str) -> Option<FileTensor>) -> Result<()> {
        let values = &mut flat[self.offset..][..self.len()];
        let shapes = self.file_shapes();
        let share = values.len() / shapes.len();
        for (part, (key, shape)) in shapes.into_iter().enumerate() {
            let tensor = lookup(&key).ok_or_else(|| ModelError::MissingTensor { key: key.clone() })?;
            if tensor.shape != shape || tensor.data.len() != share {
                return Err(ModelError::TensorShape { key, found: tensor.shape, expected: shape });
            }
            let to = &mut values[part * share..][..share];
            match self.file {
                FileLayout::Convolution => {
                    let [o, h, w, i] = self.convolution_shape();
                    to.copy_from_slice(&move_last_axis(&tensor.data, o, i, h * w));
                }
                _ => to.copy_from_slice(&tensor.data),
            }
        }
        Ok(())
    }
}

/// `[outer, a, b]` to `[outer, b, a]`.
fn move_last_axis(x: &[f32], outer: usize, a: usize, b: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for block in x.chunks_exact((a * b).max(1)).take(outer) {
        for j in 0..b {
            y.extend((0..a).map(|i| block[i * b + j]));
        }
    }
    y
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::params::Init;

    fn spec(shape: &[usize], file: FileLayout) -> ParamSpec {
        ParamSpec { key: "layer.weight".into(), shape: shape.to_vec(), offset: 3, init: Init::Zeros, file }
    }

    #[test]
    fn a_convolution_weight_moves_its_input_channels_and_comes_back() {
        let spec = spec(&[2, 3, 3, 4], FileLayout::Convolution);
        let flat: Vec<f32> = (0..3 + spec.len()).map(|i| i as f32).collect();
        let file = spec.to_file(&flat);
        assert_eq!(file[0].shape, [2, 4, 3, 3]);
        // Element [o=1, ky=2, kx=0, i=3] of ours is [1, 3, 2, 0] of PyTorch's.
        assert_eq!(file[0].data[((4 + 3) * 3 + 2) * 3], flat[3 + ((3 + 2) * 3) * 4 + 3]);
        let mut back = vec![0.0; flat.len()];
        spec.from_file(&mut back, |_| Some(file[0].clone())).unwrap();
        assert_eq!(back[3..], flat[3..]);
    }

    #[test]
    fn stacked_keys_split_by_rows_and_a_missing_one_is_named() {
        let keys = ["q", "k", "v"].map(str::to_owned);
        let spec = spec(&[6, 2], FileLayout::Stacked(keys));
        let flat: Vec<f32> = (0..15).map(|i| i as f32).collect();
        let file = spec.to_file(&flat);
        assert_eq!(file[1], FileTensor { key: "k".into(), shape: vec![2, 2], data: vec![7.0, 8.0, 9.0, 10.0] });
        let mut back = vec![0.0; 15];
        let error = spec.from_file(&mut back, |key| file.iter().find(|t| t.key == key && key != "v").cloned());
        assert!(error.unwrap_err().to_string().contains("`v` is missing"));
    }

    #[test]
    fn another_shape_is_refused_with_both() {
        let spec = spec(&[2, 2], FileLayout::Same);
        let tensor = FileTensor { key: "layer.weight".into(), shape: vec![4], data: vec![0.0; 4] };
        let error = spec.from_file(&mut [0.0; 7], |_| Some(tensor.clone())).unwrap_err().to_string();
        assert_eq!(error, "tensor `layer.weight` has shape [4], but the model has [2, 2]");
    }
}
