//! Between two latents: along the sphere that Gaussian noise lies on.

use candle_core::{D, Tensor};

use crate::diffusion::DiffusionError;

/// Spherical interpolation of each image's noise, `[N, H, W, C]`: `a` at 0, `b` at 1 (Song et al. 2020, appendix D.5).
///
/// A straight line would pass through points shorter than any noise the network knows.
pub fn slerp(a: &Tensor, b: &Tensor, weight: f64) -> Result<Tensor, DiffusionError> {
    /// Below this sine the two directions are one, and the straight line is the arc.
    const SAME_DIRECTION: f64 = 1e-6;
    let rows = |x: &Tensor| x.flatten_from(1)?.to_dtype(candle_core::DType::F64);
    let (rows_a, rows_b) = (rows(a)?, rows(b)?);
    let dot = |x: &Tensor, y: &Tensor| -> candle_core::Result<Vec<f64>> { (x * y)?.sum(D::Minus1)?.to_vec1() };
    let (products, lengths_a, lengths_b) = (dot(&rows_a, &rows_b)?, dot(&rows_a, &rows_a)?, dot(&rows_b, &rows_b)?);
    let factors = products.iter().zip(lengths_a.iter().zip(&lengths_b)).map(|(product, (a, b))| {
        let angle = (product / (a * b).sqrt()).clamp(-1.0, 1.0).acos();
        match angle.sin() {
            sine if sine > SAME_DIRECTION => (((1.0 - weight) * angle).sin() / sine, (weight * angle).sin() / sine),
            _ => (1.0 - weight, weight),
        }
    });
    let (of_a, of_b): (Vec<f64>, Vec<f64>) = factors.unzip();
    let column = |values: Vec<f64>| Tensor::from_vec(values, (products.len(), 1), a.device());
    let mixed = (rows_a.broadcast_mul(&column(of_a)?)? + rows_b.broadcast_mul(&column(of_b)?)?)?;
    Ok(mixed.reshape(a.shape())?.to_dtype(a.dtype())?)
}
