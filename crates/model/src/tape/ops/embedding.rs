//! Rows of a table.

use candle_core::Tensor;
use ddpm_kernels::KernelError;
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::elementwise;

use super::super::operands::{Maker, Runs};
use super::super::operation::{BackwardPass, Facts, Gradient, Work, channels, count};
use super::super::{Tape, Var};
use crate::error::Result;
use crate::params::ParamId;

impl Tape<'_> {
    /// Rows `labels` (u32, N) of an embedding table, `[N, C]`.
    pub(crate) fn embedding(&mut self, table: ParamId, labels: &Tensor) -> Result<Var> {
        let weight = self.params.tensor(table);
        let y = elementwise::embedding_rows(weight, labels, self.dtype())?;
        let rows = weight.dim(0)?;
        if let Some(y) = self.sketch(&Var::new(y.clone(), None), None, Embedding { rows })? {
            return Ok(y);
        }
        let labels = labels.clone();
        Ok(self.record(y, move |dy, flow| {
            let (buffer, offset, write) = flow.params.single(table);
            Ok(elementwise::embedding_rows_backward(dy, &labels, rows, buffer, offset, write)?)
        }))
    }
}

/// Of a table of so many.
#[derive(Clone, Copy, Debug)]
struct Embedding {
    rows: usize,
}

impl Facts for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn params(&self, x: &[usize]) -> [usize; 2] {
        [self.rows * channels(x), 0]
    }

    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        let gradients = self.params(x).iter().sum::<usize>() * size_of::<f32>();
        Work { bytes: count(x) * size as u64 + gradients as u64, flop: 0 }
    }

    fn backward_pass(&self, _x: &[usize]) -> BackwardPass {
        BackwardPass::gives(Gradient::None, Gradient::None)
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (rows, dtype, samples) = (self.rows, make.dtype, x.first().copied().unwrap_or(0));
        let (table, dy) = (make.numbers(&[rows, channels(x)])?, make.numbers(x)?);
        let labels: Vec<u32> = (0..samples).map(|k| (k % rows.max(1)) as u32).collect();
        let labels = Tensor::from_vec(labels, samples, make.device)?;
        let (labels2, grads) = (labels.clone(), make.gradients(self.params(x))?);
        Runs::both(
            move || elementwise::embedding_rows(&table, &labels, dtype).map(drop),
            move || elementwise::embedding_rows_backward(&dy, &labels2, rows, &grads.buffer, 0, Write::Assign),
        )
    }
}
