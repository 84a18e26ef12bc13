//! Gradients of 16 bits on their way to the flat buffer of f32.
//!
//! A library that writes a weight's gradient in 16 bits leaves it here, where it would lie in the flat buffer; at the end of the
//! pass one launch adds all of them, instead of one for each.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::{DType, Tensor};

use super::{Address, Gpu, empty, lock, operand};
use crate::buffer::{FlatBuffer, ParamGrads};
use crate::error::Result;
use crate::gemm::Write;

const OP: &str = "settling gradients";
/// Elements of a block's piece at most.
const PIECE: usize = 16 * 1024;
/// Places begin at multiples of so many elements, as the wide loads and the libraries ask for.
const ALIGNMENT: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Narrow {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// As long as the flat buffer.
    numbers: Option<Tensor>,
    waiting: Vec<Range<usize>>,
    write: Option<Write>,
    /// Pieces of what waited, in device memory. A captured graph reads them, so they are never dropped; a network has one.
    tables: Vec<(Vec<Range<usize>>, Tensor)>,
}

impl Narrow {
    /// Where the weight's gradient may be written in `dtype`; none if it must go another way.
    pub(crate) fn place(&self, gpu: &Gpu, dtype: DType, grads: &ParamGrads<'_>) -> Result<Option<Address>> {
        let mut inner = lock(&self.inner);
        let (range, last) = (&grads.weight, u32::try_from(grads.buffer.len()));
        let again = inner.waiting.iter().any(|other| other.start < range.end && range.start < other.end);
        let other_way = inner.write.is_some_and(|write| write != grads.write);
        if dtype == DType::F32 || again || other_way || last.is_err() || !range.start.is_multiple_of(ALIGNMENT) {
            return Ok(None);
        }
        if inner.numbers.is_none() {
            inner.numbers = Some(empty(gpu, dtype, grads.buffer.len())?);
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

    /// What waits is no longer wanted.
    pub fn forget(&self) {
        let mut inner = lock(&self.inner);
        inner.waiting.clear();
        inner.write = None;
    }

    /// Writes what waits to `buffer`, or adds it to what is there, as each place was asked for.
    ///
    /// # Errors
    /// The driver fails.
    pub fn settle(&self, buffer: &FlatBuffer) -> Result<()> {
        let mut inner = lock(&self.inner);
        let waiting = std::mem::take(&mut inner.waiting);
        let (Some(write), Some(numbers)) = (inner.write.take(), inner.numbers.clone()) else { return Ok(()) };
        let gpu = Gpu::of(buffer.device())?;
        let known = inner.tables.iter().position(|(of, _)| *of == waiting);
        let at = match known {
            Some(at) => at,
            None => {
                let table = table(&waiting, buffer)?;
                inner.tables.push((waiting, table));
                inner.tables.len() - 1
            }
        };
        let (_, table) = &inner.tables[at];
        gpu.float_kernel("settle_gradients", numbers.dtype())?
            .arg(operand(&gpu, OP, &numbers, numbers.dtype())?)
            .arg(buffer.address(&gpu)?)
            .arg(operand(&gpu, OP, table, DType::U32)?)
            .arg(u32::from(write == Write::Add))
            .blocks((table.elem_count() as u32 / 2, 1, 1), super::launch::THREADS)
    }
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
