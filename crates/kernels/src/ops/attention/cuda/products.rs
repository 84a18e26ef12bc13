//! Attention for any head dimension: batched products by the library around our own softmax, which computes the product before it
//! as well where it can ([`rows`]).
//!
//! Queries, keys, values and their gradients are strided views of `qkv`, so nothing is copied. Scores and probabilities have
//! the activations' number format; the softmax itself is f32. A batch runs over the images of one head, or over the heads of
//! one image where there are more of these, so a batch is as large as can be.

use candle_core::{DType, Tensor};

use super::super::{Kept, OP, Shape};
use super::{length, rows};
use crate::cuda::matmul::{Epilogue, Matrix, Product, ProductAddresses};
use crate::cuda::{Address, Gpu, empty, operand};
use crate::error::Result;

/// A family of equal matrices, one per image and head.
#[derive(Clone, Copy)]
struct Family {
    at: Address,
    /// Elements from a row to the next.
    stride: usize,
    image: usize,
    head: usize,
}

/// What `y = alpha a b` needs besides the matrices: sizes, and which factors are taken transposed.
#[derive(Clone, Copy)]
struct Form {
    rows: usize,
    columns: usize,
    inner: usize,
    transposed: [bool; 2],
    alpha: f32,
}

/// Queues products for every image and head of a shape.
struct Products<'g> {
    gpu: &'g Gpu,
    shape: Shape,
    dtype: DType,
}

impl Products<'_> {
    /// Parts of `qkv` `[N, L, 3C]` or of its gradient: queries, keys, values.
    fn parts(&self, at: Address) -> [Family; 3] {
        let c = self.shape.channels;
        [0, 1, 2].map(|part| Family {
            at: at.offset(part * c, self.dtype),
            stride: 3 * c,
            image: self.shape.tokens * 3 * c,
            head: self.shape.head_dim(),
        })
    }

    /// `[N, L, C]`, split into heads.
    fn out(&self, at: Address) -> Family {
        let c = self.shape.channels;
        Family { at, stride: c, image: self.shape.tokens * c, head: self.shape.head_dim() }
    }

    /// `[N, heads, L, L]`.
    fn scores(&self, at: Address) -> Family {
        let l = self.shape.tokens;
        Family { at, stride: l, image: self.shape.heads * l * l, head: l * l }
    }

    /// `y = alpha a b` everywhere.
    fn queue(&self, form: Form, a: Family, b: Family, y: Family) -> Result<()> {
        let Shape { n, heads, .. } = self.shape;
        let over_images = n >= heads;
        let (batch, rounds) = if over_images { (n, heads) } else { (heads, n) };
        let step = |family: &Family, batched: bool| if batched == over_images { family.image } else { family.head };
        let matrix = |family: &Family, transposed: bool| {
            let one = if transposed { Matrix::transposed } else { Matrix::rows };
            one(family.stride).batched(step(family, true))
        };
        let product = Product {
            rows: form.rows,
            columns: form.columns,
            inner: form.inner,
            batch,
            a: matrix(&a, form.transposed[0]),
            b: matrix(&b, form.transposed[1]),
            y: matrix(&y, false),
            dtype: self.dtype,
            y_dtype: self.dtype,
            epilogue: Epilogue::None,
        };
        for round in 0..rounds {
            let at = |family: &Family| family.at.offset(round * step(family, false), self.dtype);
            let operands =
                ProductAddresses { a: at(&a), b: at(&b), c: None, y: at(&y), vector: Address::NONE, alpha: form.alpha };
            self.gpu.matmul(&product, &operands)?;
        }
        Ok(())
    }
}

/// Warps of 32 threads, one for each of `rows`.
fn warps(rows: usize) -> usize {
    rows * 32
}

pub(super) fn forward(s: Shape, qkv: &Tensor) -> Result<(Tensor, Kept)> {
    let gpu = Gpu::of(qkv.device())?;
    let (l, d, dtype) = (s.tokens, s.head_dim(), qkv.dtype());
    let products = Products { gpu: &gpu, shape: s, dtype };
    let probabilities = empty(&gpu, dtype, (s.n, s.heads, l, l))?;
    let out = empty(&gpu, dtype, (s.n, l, s.channels))?;

    let at = operand(&gpu, OP, qkv, dtype)?;
    let [q, k, v] = products.parts(at);
    let p = products.scores(operand(&gpu, OP, &probabilities, dtype)?);
    let o = products.out(operand(&gpu, OP, &out, dtype)?);
    if rows::fits(&gpu, s, dtype, &[at, p.at]) {
        rows::probabilities(&gpu, s, dtype, at, p.at)?;
    } else {
        let scores = Form { rows: l, columns: l, inner: d, transposed: [false, true], alpha: s.scale() };
        products.queue(scores, q, k, p)?;
        let rows = s.n * s.heads * l;
        gpu.float_kernel("attention_softmax", dtype)?.arg(p.at).arg(rows).arg(length(l)?).over(warps(rows))?;
    }
    products.queue(Form { rows: l, columns: d, inner: l, transposed: [false, false], alpha: 1.0 }, p, v, o)?;
    Ok((out, Kept::Probabilities(probabilities)))
}

pub(super) fn backward(s: Shape, qkv: &Tensor, probabilities: &Tensor, d_out: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(qkv.device())?;
    let (l, d, dtype) = (s.tokens, s.head_dim(), qkv.dtype());
    let products = Products { gpu: &gpu, shape: s, dtype };
    let dqkv = empty(&gpu, dtype, qkv.dims())?;
    let d_scores = empty(&gpu, dtype, probabilities.dims())?;

    let at = operand(&gpu, OP, qkv, dtype)?;
    let [q, k, v] = products.parts(at);
    let [dq, dk, dv] = products.parts(operand(&gpu, OP, &dqkv, dtype)?);
    let p = products.scores(operand(&gpu, OP, probabilities, dtype)?);
    let ds = products.scores(operand(&gpu, OP, &d_scores, dtype)?);
    let d_out = products.out(operand(&gpu, OP, d_out, dtype)?);

    let onto_tokens = Form { rows: l, columns: d, inner: l, transposed: [true, false], alpha: 1.0 };
    products.queue(onto_tokens, p, d_out, dv)?;
    if rows::fits(&gpu, s, dtype, &[at, d_out.at, p.at, ds.at]) {
        rows::score_gradients(&gpu, s, dtype, [at, d_out.at, p.at], ds.at)?;
    } else {
        let onto_scores = Form { rows: l, columns: l, inner: d, transposed: [false, true], alpha: 1.0 };
        products.queue(onto_scores, d_out, v, ds)?;
        let rows = s.n * s.heads * l;
        gpu.float_kernel("attention_softmax_gradient", dtype)?
            .arg(p.at)
            .arg(ds.at)
            .arg(rows)
            .arg(length(l)?)
            .over(warps(rows))?;
    }
    // The scores' scale enters here, where sums are f32: scaled first, small gradients would vanish in f16.
    let alpha = s.scale();
    products.queue(Form { transposed: [false, false], alpha, ..onto_tokens }, ds, k, dq)?;
    products.queue(Form { alpha, ..onto_tokens }, ds, q, dk)?;
    Ok(dqkv)
}
