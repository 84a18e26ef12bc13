//! Converts bytes to a network's numbers and back, and those numbers to PyTorch's layout.

use candle_core::{Device, Tensor};
use ddpm_model::ModelError;

/// Bytes `[N, H, W, C]` to a tensor of that shape in [-1, 1].
///
/// # Errors
/// The device refuses the tensor.
pub fn normalise(bytes: &[u8], shape: [usize; 4], device: &Device) -> Result<Tensor, ModelError> {
    let pixels: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    Ok(Tensor::from_vec(pixels, &shape, device)?)
}

/// Numbers in [-1, 1] to bytes; what lies outside becomes the nearest byte.
///
/// # Errors
/// The tensor cannot be copied to the host.
pub fn to_bytes(images: &Tensor) -> Result<Vec<u8>, ModelError> {
    Ok(images.flatten_all()?.to_vec1::<f32>()?.into_iter().map(to_byte).collect())
}

/// `[N, H, W, C]` as `[N, C, H, W]`, PyTorch's layout.
///
/// # Errors
/// Candle's errors.
pub fn to_nchw(images: &Tensor) -> Result<Tensor, ModelError> {
    Ok(images.permute((0, 3, 1, 2))?.contiguous()?)
}

fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bytes_survive_normalisation_and_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        let tensor = normalise(&bytes, [4, 8, 8, 1], &Device::Cpu).unwrap();
        assert_eq!((tensor.dims(), to_bytes(&tensor).unwrap()), (&[4, 8, 8, 1][..], bytes));
        assert_eq!((to_byte(-7.0), to_byte(7.0), to_byte(f32::NAN)), (0, 255, 0));
    }
}
