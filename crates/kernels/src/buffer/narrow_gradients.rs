//! Gradients of 16 bits on their way to the flat buffer of f32.
//!
//! A library that writes a weight's gradient in 16 bits leaves it here, at the offset it has in the flat buffer. Where that is
//! the whole gradient, the optimizer reads it here ([`NarrowGradients::hand_over`]). Otherwise one launch adds all of them to the
//! flat buffer, instead of one launch each.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::{DType, Tensor};

use super::launch_tables::LaunchTables;
use super::{FlatBuffer, ParamGrads};
use crate::cuda::{Address, Gpu, THREADS, lock, operand};
use crate::error::Result;
use crate::gemm::Write;

const OP: &str = "settling gradients";
/// Elements of a block's piece at most.
const PIECE: usize = 16 * 1024;
/// Gradients begin at multiples of so many elements, as wide loads and the libraries require.
const ALIGNMENT: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct NarrowGradients {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// As long as the flat buffer.
    numbers: Option<Tensor>,
    waiting: Vec<Range<usize>>,
    write: Option<Write>,
    /// The pieces of each set of gradients.
    tables: LaunchTables<Range<usize>>,
    /// The same for the optimizer: a bit for every [`ALIGNMENT`] elements of the buffer.
    maps: LaunchTables<Range<usize>>,
}

/// The part of a gradient that has 16 bits.
#[derive(Clone, Debug)]
pub struct NarrowPart {
    /// As long as the flat buffer; valid where the map has a bit.
    pub(crate) numbers: Tensor,
    /// A bit for every eight elements, 32 in a u32.
    pub(crate) map: Tensor,
}

impl NarrowGradients {
    /// Where the weight's gradient may be written in `dtype`; none if it cannot be written here.
    pub(crate) fn place(&self, gpu: &Gpu, dtype: DType, grads: &ParamGrads<'_>) -> Result<Option<Address>> {
        let mut inner = lock(&self.inner);
        let (range, last) = (&grads.weight, u32::try_from(grads.buffer.len()));
        let again = inner.waiting.iter().any(|other| other.start < range.end && range.start < other.end);
        let other_way = inner.write.is_some_and(|write| write != grads.write);
        if dtype == DType::F32 || again || other_way || last.is_err() || !range.start.is_multiple_of(ALIGNMENT) {
            return Ok(None);
        }
        if inner.numbers.is_none() {
            gpu.must_not_record("room for gradients of 16 bits")?;
            // Zero between the parameters too, since a bit covers eight elements.
            let numbers = Tensor::zeros(grads.buffer.len(), dtype, grads.buffer.device())?;
            inner.numbers = Some(numbers);
        }
        let numbers = inner.numbers.as_ref().filter(|numbers| numbers.dtype() == dtype);
        let numbers = numbers.filter(|numbers| numbers.elem_count() == grads.buffer.len());
        numbers.map(|numbers| Ok(operand(gpu, OP, numbers, dtype)?.offset(range.start, dtype))).transpose()
    }

    /// Notes that the weight's gradient has been written to its [`place`](Self::place).
    pub(crate) fn expect(&self, grads: &ParamGrads<'_>) {
        let mut inner = lock(&self.inner);
        inner.waiting.push(grads.weight.clone());
        inner.write = Some(grads.write);
    }

    /// Drops the gradients that wait.
    pub fn forget(&self) {
        let mut inner = lock(&self.inner);
        inner.waiting.clear();
        inner.write = None;
    }

    /// The gradients that wait, to be read instead of those in `buffer`; none if there are none, or they are to be added.
    ///
    /// # Errors
    /// The driver fails.
    pub fn hand_over(&self, buffer: &FlatBuffer) -> Result<Option<NarrowPart>> {
        let mut inner = lock(&self.inner);
        let (Some(Write::Assign), Some(numbers)) = (inner.write, inner.numbers.clone()) else { return Ok(None) };
        let waiting = std::mem::take(&mut inner.waiting);
        inner.write = None;
        let gpu = Gpu::of(buffer.device())?;
        let map = inner.maps.of(&gpu, "a map of gradients of 16 bits", waiting, |waiting| map(waiting, buffer))?;
        Ok(Some(NarrowPart { numbers, map }))
    }

    /// Writes the gradients that wait to `buffer`, or adds them to what is there.
    ///
    /// # Errors
    /// The driver fails.
    pub fn settle(&self, buffer: &FlatBuffer) -> Result<()> {
        let mut inner = lock(&self.inner);
        let waiting = std::mem::take(&mut inner.waiting);
        let (Some(write), Some(numbers)) = (inner.write.take(), inner.numbers.clone()) else { return Ok(()) };
        let gpu = Gpu::of(buffer.device())?;
        let what = "a table of gradients of 16 bits";
        let table = inner.tables.of(&gpu, what, waiting, |waiting| table(waiting, buffer))?;
        gpu.float_kernel("settle_gradients", numbers.dtype())?
            .arg(operand(&gpu, OP, &numbers, numbers.dtype())?)
            .arg(buffer.address(&gpu)?)
            .arg(operand(&gpu, OP, &table, DType::U32)?)
            .arg(u32::from(write == Write::Add))
            .blocks((table.elem_count() as u32 / 2, 1, 1), THREADS)
    }
}

/// A bit for every eight elements of which one waits: no other parameter begins among them.
fn map(waiting: &[Range<usize>], buffer: &FlatBuffer) -> Result<Tensor> {
    let mut words = vec![0u32; buffer.len().div_ceil(ALIGNMENT * u32::BITS as usize)];
    for eight in waiting.iter().flat_map(|range| range.start / ALIGNMENT..range.end.div_ceil(ALIGNMENT)) {
        words[eight / u32::BITS as usize] |= 1 << (eight % u32::BITS as usize);
    }
    let len = words.len();
    Ok(Tensor::from_vec(words, len, buffer.device())?)
}

/// First element and number of elements of every piece.
fn table(waiting: &[Range<usize>], buffer: &FlatBuffer) -> Result<Tensor> {
    let pieces = waiting.iter().flat_map(|range| {
        range.clone().step_by(PIECE).flat_map(|first| [first, PIECE.min(range.end - first)]).collect::<Vec<_>>()
    });
    let pieces: Vec<u32> = pieces.map(|number| number as u32).collect();
    let len = pieces.len();
    Ok(Tensor::from_vec(pieces, len, buffer.device())?)
}
