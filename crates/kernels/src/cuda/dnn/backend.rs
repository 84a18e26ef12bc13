//! cuDNN's backend interface: everything is a descriptor that is created, given attributes, and finalised.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;

use candle_core::DType;
use candle_core::cuda_backend::cudarc::cudnn::sys;
use sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type, cudnnBackendDescriptorType_t as Kind,
};

/// Status codes are read as numbers: a newer library has codes that the bindings' enum lacks, and such a value in the enum
/// would be undefined behaviour.
mod library {
    use super::{Kind, Name, Type, c_char, c_void, sys};

    unsafe extern "C" {
        pub(super) fn cudnnBackendCreateDescriptor(kind: Kind, descriptor: *mut sys::cudnnBackendDescriptor_t) -> u32;
        pub(super) fn cudnnBackendDestroyDescriptor(descriptor: sys::cudnnBackendDescriptor_t) -> u32;
        pub(super) fn cudnnBackendSetAttribute(
            descriptor: sys::cudnnBackendDescriptor_t,
            name: Name,
            kind: Type,
            count: i64,
            values: *const c_void,
        ) -> u32;
        pub(super) fn cudnnBackendGetAttribute(
            descriptor: sys::cudnnBackendDescriptor_t,
            name: Name,
            kind: Type,
            most: i64,
            count: *mut i64,
            values: *mut c_void,
        ) -> u32;
        pub(super) fn cudnnBackendFinalize(descriptor: sys::cudnnBackendDescriptor_t) -> u32;
        pub(super) fn cudnnBackendExecute(
            handle: sys::cudnnHandle_t,
            plan: sys::cudnnBackendDescriptor_t,
            pack: sys::cudnnBackendDescriptor_t,
        ) -> u32;
        pub(super) fn cudnnGetErrorString(code: u32) -> *const c_char;
    }
}

/// The status code of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(u32);

impl Refusal {
    /// Something is not supported, or a shape is not allowed: all such codes begin with the same digits.
    pub(super) fn is_unsupported(self) -> bool {
        matches!(self.0 / 1000, 2 | 3)
    }

    /// A fault inside the library: it could not compile an engine, or an internal check failed.
    pub(super) fn is_internal(self) -> bool {
        self.0 / 1000 == 4
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: a code comes from the library, so it is loaded; its texts are constants.
        let text = unsafe {
            let text = library::cudnnGetErrorString(self.0);
            (!text.is_null()).then(|| CStr::from_ptr(text))
        };
        write!(f, "{} ({})", text.unwrap_or_default().to_string_lossy(), self.0)
    }
}

pub(super) type Answer<T> = Result<T, Refusal>;

fn answer(code: u32) -> Answer<()> {
    if code == 0 { Ok(()) } else { Err(Refusal(code)) }
}

/// A descriptor, destroyed when dropped.
#[derive(Debug)]
pub(super) struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        let _ = unsafe { library::cudnnBackendDestroyDescriptor(self.0) };
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
    NumericalNote => CUDNN_TYPE_NUMERICAL_NOTE,
    BehaviourNote => CUDNN_TYPE_BEHAVIOR_NOTE,
}

/// A `cudnnBackendNumericalNote_t` by its number, for the same reason.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NumericalNote(pub(super) u32);

/// A `cudnnBackendBehaviorNote_t` by its number.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BehaviourNote(pub(super) u32);

/// What may be read from the library, whatever it writes.
///
/// # Safety
/// Any bits are a value of the type, and it is as wide as the library's.
pub(super) unsafe trait Readable: Value {}
// SAFETY: an integer.
unsafe impl Readable for i64 {}
// SAFETY: an integer of 32 bits, as the library's enums are.
unsafe impl Readable for NumericalNote {}
// SAFETY: as before.
unsafe impl Readable for BehaviourNote {}

impl Descriptor {
    pub(super) fn new(kind: Kind) -> Answer<Self> {
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: the library writes one pointer.
        answer(unsafe { library::cudnnBackendCreateDescriptor(kind, &mut descriptor) })?;
        Ok(Self(descriptor))
    }

    /// Sets an attribute of one value or several.
    pub(super) fn set<T: Value>(&self, name: Name, values: &[T]) -> Answer<()> {
        // SAFETY: the library copies `values.len()` values of the type that is passed to it.
        answer(unsafe {
            library::cudnnBackendSetAttribute(self.0, name, T::TYPE, values.len() as i64, values.as_ptr().cast())
        })
    }

    /// Sets an attribute that holds other descriptors; they must outlive this one.
    pub(super) fn link(&self, name: Name, others: &[&Self]) -> Answer<()> {
        let others: Vec<_> = others.iter().map(|other| other.0).collect();
        let kind = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        // SAFETY: the library copies `others.len()` descriptors.
        answer(unsafe {
            library::cudnnBackendSetAttribute(self.0, name, kind, others.len() as i64, others.as_ptr().cast())
        })
    }

    /// Makes it final: from now on it can be used, but not changed.
    pub(super) fn finalise(self) -> Answer<Self> {
        // SAFETY: a descriptor that lives.
        answer(unsafe { library::cudnnBackendFinalize(self.0) })?;
        Ok(self)
    }

    /// An attribute of at most `most` values.
    pub(super) fn get<T: Readable>(&self, name: Name, most: usize) -> Answer<Vec<T>> {
        let mut values = Vec::<T>::with_capacity(most);
        let mut count = 0;
        // SAFETY: there is room for `most` values, of which the library writes `count`; any bits are one.
        unsafe {
            let room = values.as_mut_ptr().cast();
            answer(library::cudnnBackendGetAttribute(self.0, name, T::TYPE, most as i64, &mut count, room))?;
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
        answer(unsafe {
            library::cudnnBackendGetAttribute(self.0, name, linked, most as i64, &mut count, raw.as_mut_ptr().cast())
        })?;
        found.truncate(count.clamp(0, most as i64) as usize);
        Ok(found)
    }

    /// Queues a plan on the handle's stream.
    pub(super) fn execute(&self, handle: sys::cudnnHandle_t, pack: &Self) -> Answer<()> {
        // SAFETY: a final plan and a final pack of addresses that its tensors lie at.
        answer(unsafe { library::cudnnBackendExecute(handle, self.0, pack.0) })
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
