//! Gradients that are sums over the rows of a matrix, taken for all layers together at the end of a pass.
//!
//! The backward pass of a normalisation leaves the gradients of weight and bias of every image in scratch memory, and sums of
//! `dx` whose total is a bias' gradient; a convolution of few channels leaves the sums of its blocks. One launch
//! (`cuda/settle.cu`) then adds them all.

use std::sync::Mutex;

use candle_core::{DType, Tensor};

use super::FlatBuffer;
use super::launch_tables::LaunchTables;
use crate::cuda::{Address, Gpu, THREADS, empty, lock, operand};
use crate::error::{KernelError, Result};
use crate::gemm::Write;

const OP: &str = "settling sums";
/// Columns of a block's piece at most.
const COLUMNS: usize = 32;
/// Numbers of 32 bits that describe a piece.
const WORDS: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct DeferredSums {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Memory for the matrices, by the order in which a pass asks for it. A pass over fewer images is split differently and may
    /// ask for more, so there are several for each place in the order. Which one a matrix gets depends on its place and size
    /// alone: a recorded pass must get the same as the pass before it.
    rooms: Vec<Vec<Tensor>>,
    /// How many are in use.
    used: usize,
    waiting: Vec<DeferredSum>,
    /// The pieces of each set of sums.
    tables: LaunchTables<DeferredSum>,
}

/// `to[column] (+)= sum over rows of from[row, column]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeferredSum {
    pub(crate) from: Address,
    pub(crate) rows: usize,
    /// Elements from a row to the next.
    pub(crate) apart: usize,
    pub(crate) columns: usize,
    /// Element of the flat buffer.
    pub(crate) to: usize,
    pub(crate) write: Write,
}

impl DeferredSums {
    /// Memory for so many numbers in f32, which lasts until the sums are settled.
    pub(crate) fn room(&self, gpu: &Gpu, numbers: usize) -> Result<Address> {
        let mut inner = lock(&self.inner);
        let at = inner.used;
        if at == inner.rooms.len() {
            inner.rooms.push(Vec::new());
        }
        let rooms = &mut inner.rooms[at];
        let large_enough = rooms.iter().position(|room| room.elem_count() >= numbers);
        let room = match large_enough {
            Some(room) => room,
            None => {
                gpu.must_not_record("room for sums of gradients")?;
                rooms.push(empty(gpu, DType::F32, numbers)?);
                rooms.len() - 1
            }
        };
        let place = operand(gpu, OP, &rooms[room], DType::F32);
        inner.used += 1;
        place
    }

    /// Notes a sum over a [`room`](Self::room) whose writing has been queued.
    pub(crate) fn expect(&self, sum: DeferredSum) {
        lock(&self.inner).waiting.push(sum);
    }

    /// Drops the sums that wait.
    pub fn forget(&self) {
        let mut inner = lock(&self.inner);
        inner.waiting.clear();
        inner.used = 0;
    }

    /// Takes the sums that wait.
    ///
    /// # Errors
    /// The driver fails, or `buffer` has more elements than 32 bits count.
    pub fn settle(&self, buffer: &FlatBuffer) -> Result<()> {
        let mut inner = lock(&self.inner);
        inner.used = 0;
        let waiting = std::mem::take(&mut inner.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let gpu = Gpu::of(buffer.device())?;
        let table = inner.tables.of(&gpu, "a table of sums", waiting, |waiting| table(waiting, buffer))?;
        gpu.kernel("settle_sums")?
            .arg(operand(&gpu, OP, &table, DType::U32)?)
            .arg(buffer.address(&gpu)?)
            .blocks(((table.elem_count() / WORDS) as u32, 1, 1), THREADS)
    }
}

/// The pieces, as the kernel reads them.
fn table(waiting: &[DeferredSum], buffer: &FlatBuffer) -> Result<Tensor> {
    let count = |number: usize| {
        u32::try_from(number).map_err(|_| {
            let (found, expected) = (vec![number], vec![u32::MAX as usize]);
            KernelError::Shape { op: OP, tensor: "sums", found, expected }
        })
    };
    let mut words = Vec::new();
    for sum in waiting {
        for first in (0..sum.columns).step_by(COLUMNS) {
            let Address(from) = sum.from.offset(first, DType::F32);
            let columns = COLUMNS.min(sum.columns - first) as u32;
            let add = u32::from(sum.write == Write::Add);
            words.extend([from as u32, (from >> 32) as u32]);
            words.extend([count(sum.rows)?, count(sum.apart)?, columns, count(sum.to + first)?, add, 0]);
        }
    }
    let len = words.len();
    Ok(Tensor::from_vec(words, len, buffer.device())?)
}
