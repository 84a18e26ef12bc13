//! Slices of tensors, and the flat buffers that parameters and gradients live in.

mod copied;
#[cfg(feature = "cuda")]
mod deferred_sums;
#[cfg(feature = "cuda")]
mod launch_tables;
#[cfg(feature = "cuda")]
mod narrow_gradients;
mod param_grads;

use std::cell::RefCell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};

pub use self::copied::Copied;
#[cfg(feature = "cuda")]
pub(crate) use self::deferred_sums::DeferredSum;
#[cfg(feature = "cuda")]
pub use self::deferred_sums::DeferredSums;
#[cfg(feature = "cuda")]
pub use self::narrow_gradients::{NarrowGradients, NarrowPart};
pub use self::param_grads::ParamGrads;
use crate::error::{KernelError, Result};

/// A CPU tensor's numbers, borrowed.
pub struct CpuSlice<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl Deref for CpuSlice<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.range.clone()],
            _ => &[],
        }
    }
}

/// The numbers of a contiguous f32 tensor on the CPU.
///
/// # Errors
/// Another dtype, a strided view, or another device.
pub(crate) fn cpu_slice<'a>(op: &'static str, tensor: &'a Tensor) -> Result<CpuSlice<'a>> {
    let (storage, layout) = tensor.storage_and_layout();
    let refused = || KernelError::Layout { op, dtype: tensor.dtype(), shape: tensor.dims().to_vec() };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => {
            let (start, end) = layout.contiguous_offsets().ok_or_else(refused)?;
            Ok(CpuSlice { storage, range: start..end })
        }
        Storage::Cpu(_) => Err(refused()),
        _ => Err(KernelError::Device { op, device: tensor.device().location() }),
    }
}

/// A vector of `len` numbers of any value, for results that are written whole: zeroing every result would cost a tenth of a
/// training step. Debug builds hand out NaN, so that every test proves that its operation writes every element.
pub(crate) fn unwritten(len: usize) -> Vec<f32> {
    if cfg!(debug_assertions) {
        return vec![f32::NAN; len];
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut data = Vec::<f32>::with_capacity(len);
        // SAFETY: the memory is ours and any bits are an f32. The empty assembly stands for code that may have written it, so
        // that to the compiler it holds some value, not none; it only reads a register.
        unsafe {
            std::arch::asm!("/* {0} */", in(reg) data.as_mut_ptr(), options(nostack, preserves_flags));
            data.set_len(len);
        }
        data
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    vec![0.0; len]
}

/// A new CPU tensor around `data`, without a copy.
///
/// # Errors
/// If `data` has another number of elements than `shape`.
pub(crate) fn cpu_tensor<S: Into<candle_core::Shape>>(data: Vec<f32>, shape: S) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// Elements that a GPU loads at once.
const WIDE: usize = 4;

/// One contiguous f32 vector: all parameters, all gradients, or one moment of all parameters.
///
/// Tensors made by [`FlatBuffer::view`] share its memory and see what is written through
/// [`FlatBuffer::with_mut`].
#[derive(Clone, Debug)]
pub struct FlatBuffer {
    tensor: Tensor,
}

impl FlatBuffer {
    /// `len` zeros.
    pub fn zeros(len: usize, device: &Device) -> Result<Self> {
        Ok(Self { tensor: Tensor::zeros(len, DType::F32, device)? })
    }

    /// A buffer of these numbers.
    pub fn from_vec(data: Vec<f32>, device: &Device) -> Result<Self> {
        let len = data.len();
        Ok(Self { tensor: Tensor::from_vec(data, len, device)? })
    }

    /// Shares the memory of `tensor`: what is written here is seen there.
    ///
    /// # Errors
    /// Another format than f32, a strided view, or one that is not aligned for wide loads.
    pub fn sharing(tensor: &Tensor) -> Result<Self> {
        let aligned = tensor.layout().start_offset().is_multiple_of(WIDE);
        if tensor.dtype() != DType::F32 || !tensor.is_contiguous() || !aligned {
            let (dtype, shape) = (tensor.dtype(), tensor.dims().to_vec());
            return Err(KernelError::Layout { op: "flat buffer", dtype, shape });
        }
        // Contiguous, so that this is a view.
        Ok(Self { tensor: tensor.detach().flatten_all()? })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.tensor.elem_count()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.tensor.device()
    }

    /// A tensor of `shape` that shares the elements from `offset` on.
    pub fn view(&self, offset: usize, shape: &[usize]) -> Result<Tensor> {
        Ok(self.tensor.narrow(0, offset, shape.iter().product())?.reshape(shape)?)
    }

    /// A copy of all elements on the host.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        Ok(self.tensor.to_vec1()?)
    }

    /// Sets some of the elements to zero.
    ///
    /// # Errors
    /// The range lies outside the buffer, or the device has no implementation.
    pub fn fill_zero(&self, range: Range<usize>) -> Result<()> {
        if range.start > range.end || range.end > self.len() {
            let (found, expected) = (vec![range.start, range.end], vec![self.len()]);
            return Err(KernelError::Shape { op: "fill_zero", tensor: "range", found, expected });
        }
        match self.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => {
                let gpu = crate::cuda::Gpu::of(self.device())?;
                crate::cuda::zero(
                    &gpu,
                    self.address(&gpu)?.offset(range.start, DType::F32),
                    range.len() * size_of::<f32>(),
                )
            }
            _ => self.with_mut(|all| all[range].fill(0.0)),
        }
    }

    /// Where the elements begin on `gpu`.
    #[cfg(feature = "cuda")]
    pub(crate) fn address(&self, gpu: &crate::cuda::Gpu) -> Result<crate::cuda::Address> {
        crate::cuda::operand(gpu, "flat buffer", &self.tensor, DType::F32)
    }

    /// The elements, borrowed (CPU only).
    pub fn cpu(&self) -> Result<CpuSlice<'_>> {
        cpu_slice("flat buffer", &self.tensor)
    }

    /// Lends the elements to `f` for writing (CPU only). No view of this buffer may be read inside `f`.
    pub fn with_mut<R>(&self, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
        let lend = Lend { f: RefCell::new(Some(f)), result: RefCell::new(None) };
        self.tensor.inplace_op1(&lend)?;
        lend.result
            .into_inner()
            .ok_or(KernelError::Device { op: "flat buffer", device: self.tensor.device().location() })
    }
}

/// Gradients of 16 bits, of which a build without CUDA has none.
#[cfg(not(feature = "cuda"))]
#[derive(Clone, Debug)]
pub enum NarrowPart {}

/// Writes the numbers of `from` over those of `to`, which has its shape; f64, on one device. On a GPU this is queued.
///
/// # Errors
/// Tensors of other shapes or formats, or a driver that refuses.
pub fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    match to.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => crate::cuda::Gpu::of(to.device())?.copy(from, to),
        _ => {
            crate::check::shape("a copy", "the target", to, from.dims())?;
            Ok(to.slice_set(from, 0, 0)?)
        }
    }
}

/// Candle lends a storage mutably only to an in-place operation; this one passes it to a closure.
struct Lend<F, R> {
    f: RefCell<Option<F>>,
    result: RefCell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Lend<F, R> {
    fn name(&self) -> &'static str {
        "flat buffer"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("a flat buffer holds contiguous f32")
        };
        if let Some(f) = self.f.take() {
            *self.result.borrow_mut() = Some(f(&mut data[start..end]));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_view_sees_what_is_written_to_its_buffer() {
        let buffer = FlatBuffer::zeros(6, &Device::Cpu).unwrap();
        let view = buffer.view(2, &[2, 2]).unwrap();
        buffer.with_mut(|x| x[3] = 5.0).unwrap();
        assert_eq!(view.to_vec2::<f32>().unwrap(), [[0.0, 5.0], [0.0, 0.0]]);
        assert_eq!(&*cpu_slice("test", &view).unwrap(), [0.0, 5.0, 0.0, 0.0]);
    }

    #[test]
    fn a_range_is_zeroed_and_one_beyond_the_end_refused() {
        let buffer = FlatBuffer::from_vec(vec![1.0; 4], &Device::Cpu).unwrap();
        buffer.fill_zero(1..3).unwrap();
        assert_eq!(buffer.to_vec().unwrap(), [1.0, 0.0, 0.0, 1.0]);
        assert!(matches!(buffer.fill_zero(3..5), Err(KernelError::Shape { .. })));
    }

    #[test]
    fn a_strided_or_f64_tensor_is_refused() {
        let x = Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(cpu_slice("test", &x.t().unwrap()), Err(KernelError::Layout { .. })));
        let x = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        assert!(matches!(cpu_slice("test", &x), Err(KernelError::Layout { .. })));
    }
}
