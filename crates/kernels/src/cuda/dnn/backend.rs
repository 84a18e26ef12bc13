//! cuDNN's backend interface: everything is a descriptor that is created, given attributes, and finalised.

use std::ffi::c_void;

use candle_core::DType;
use candle_core::cuda_backend::cudarc::cudnn::{CudnnError, sys};
use sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type, cudnnBackendDescriptorType_t as Kind,
};

/// What the library said no with.
pub(super) type Answer<T> = Result<T, CudnnError>;

/// A descriptor, destroyed when dropped.
#[derive(Debug)]
pub(super) struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `new`, used by nobody any more.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

/// A number or an enum that an attribute may hold, with the library's name for its type.
pub(super) trait Value: Copy {
    const TYPE: Type;
}

macro_rules! values {
    ($($value:ty => $name:ident),* $(,)?) => {
        $(impl Value for $value {
            const TYPE: Type = Type::$name;
        })*
    };
}

values! {
    i64 => CUDNN_TYPE_INT64,
    f32 => CUDNN_TYPE_FLOAT,
    bool => CUDNN_TYPE_BOOLEAN,
    *mut c_void => CUDNN_TYPE_VOID_PTR,
    sys::cudnnHandle_t => CUDNN_TYPE_HANDLE,
    sys::cudnnDataType_t => CUDNN_TYPE_DATA_TYPE,
    sys::cudnnConvolutionMode_t => CUDNN_TYPE_CONVOLUTION_MODE,
    sys::cudnnBackendHeurMode_t => CUDNN_TYPE_HEUR_MODE,
    sys::cudnnPointwiseMode_t => CUDNN_TYPE_POINTWISE_MODE,
    sys::cudnnBackendNumericalNote_t => CUDNN_TYPE_NUMERICAL_NOTE,
    sys::cudnnBackendBehaviorNote_t => CUDNN_TYPE_BEHAVIOR_NOTE,
}

impl Descriptor {
    pub(super) fn new(kind: Kind) -> Answer<Self> {
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: the library writes one pointer.
        unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut descriptor) }.result()?;
        Ok(Self(descriptor))
    }

    /// Sets an attribute of one value or several.
    pub(super) fn set<T: Value>(&self, name: Name, values: &[T]) -> Answer<()> {
        // SAFETY: the library copies `values.len()` values of the type it is told.
        unsafe { sys::cudnnBackendSetAttribute(self.0, name, T::TYPE, values.len() as i64, values.as_ptr().cast()) }
            .result()
    }

    /// Sets an attribute that holds other descriptors; they must outlive this one.
    pub(super) fn link(&self, name: Name, others: &[&Self]) -> Answer<()> {
        let others: Vec<_> = others.iter().map(|other| other.0).collect();
        let kind = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        // SAFETY: the library copies `others.len()` descriptors.
        unsafe { sys::cudnnBackendSetAttribute(self.0, name, kind, others.len() as i64, others.as_ptr().cast()) }
            .result()
    }

    /// Makes it final: from now on it can be used, and not be changed.
    pub(super) fn finalise(self) -> Answer<Self> {
        // SAFETY: a descriptor that lives.
        unsafe { sys::cudnnBackendFinalize(self.0) }.result()?;
        Ok(self)
    }

    /// An attribute of at most `most` values.
    pub(super) fn get<T: Value>(&self, name: Name, most: usize) -> Answer<Vec<T>> {
        let mut values = Vec::<T>::with_capacity(most);
        let mut count = 0;
        // SAFETY: there is room for `most` values, of which the library writes `count`.
        unsafe {
            let room = values.as_mut_ptr().cast();
            sys::cudnnBackendGetAttribute(self.0, name, T::TYPE, most as i64, &mut count, room).result()?;
            values.set_len(count.clamp(0, most as i64) as usize);
        }
        Ok(values)
    }

    /// An attribute that holds at most `most` descriptors of `kind`: the library fills descriptors it is given.
    pub(super) fn get_linked(&self, name: Name, kind: Kind, most: usize) -> Answer<Vec<Self>> {
        let mut found = (0..most).map(|_| Self::new(kind)).collect::<Answer<Vec<_>>>()?;
        let mut raw: Vec<_> = found.iter().map(|descriptor| descriptor.0).collect();
        let mut count = 0;
        let linked = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        // SAFETY: `most` descriptors of the right kind, of which the library fills `count`.
        unsafe {
            sys::cudnnBackendGetAttribute(self.0, name, linked, most as i64, &mut count, raw.as_mut_ptr().cast())
        }
        .result()?;
        found.truncate(count.clamp(0, most as i64) as usize);
        Ok(found)
    }

    /// Queues a plan on the handle's stream.
    pub(super) fn execute(&self, handle: sys::cudnnHandle_t, pack: &Self) -> Answer<()> {
        // SAFETY: a final plan and a final pack of addresses that its tensors lie at.
        unsafe { sys::cudnnBackendExecute(handle, self.0, pack.0) }.result()
    }
}

/// The library's name of a number format; f64 and integers are none that we compute with.
pub(super) fn data_type(dtype: DType) -> sys::cudnnDataType_t {
    match dtype {
        DType::BF16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        DType::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
        _ => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
    }
}
