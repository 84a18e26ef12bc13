//! Standard normals for a batch of images.

use candle_core::{Device, Tensor};
use ddpm_kernels::philox::Philox;
use ddpm_model::ModelError;
use rayon::prelude::*;

/// Normals of shape `dims` on the CPU `[N, ...]`; image `k` is the stream of `(step, first_position + k)`, so neither the number of
/// images nor how they are batched changes it.
///
/// # Errors
/// Candle's errors.
pub fn normals(philox: Philox, step: u64, first_position: usize, dims: &[usize]) -> Result<Tensor, ModelError> {
    let mut noise = vec![0.0; dims.iter().product()];
    let image: usize = dims.iter().skip(1).product();
    noise.par_chunks_mut(image.max(1)).enumerate().for_each(|(k, noise)| {
        philox.fill_normal(step, (first_position + k) as u64, noise);
    });
    Ok(Tensor::from_vec(noise, dims, &Device::Cpu)?)
}
