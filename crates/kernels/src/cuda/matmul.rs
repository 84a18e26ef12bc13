//! Matrix products by cuBLASLt, row-major, with a bias or a residual added or a bias' gradient summed in the same call.
//!
//! The library is column-major: to it a row-major matrix is the transposed one, so `y = a b` is asked for as
//! `y^T = b^T a^T`. For each product its best algorithms are timed once, the fastest is kept.

mod matrix;

use std::collections::HashMap;
use std::ffi::c_void;

use candle_core::DType;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::CudaSlice;

pub(crate) use self::matrix::Matrix;
use self::matrix::{data_type, layout};
use super::address::alloc;
use super::timing::fastest;
use super::{Address, Gpu, lock, refused};
use crate::error::{KernelError, Result};

/// Scratch memory an algorithm may ask for: NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Algorithms that are timed.
const MOST_CANDIDATES: usize = 16;

/// What happens to the sum besides being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    /// Nothing.
    None,
    /// A vector is added to every row of the result.
    Bias,
    /// The rows of `a` (the columns, as memory holds it) are summed: `sum[row] = sum over inner of a[row, inner]`.
    RowSums,
}

/// `y [rows, columns] = alpha a [rows, inner] b [inner, columns] + beta c`, `c` laid out like `y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) inner: usize,
    pub(crate) batch: usize,
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    pub(crate) y: Matrix,
    /// Of both factors.
    pub(crate) dtype: DType,
    /// Of the result, of `c` and of the epilogue's vector.
    pub(crate) y_dtype: DType,
    pub(crate) epilogue: Epilogue,
}

impl Product {
    /// Memory as large as the result.
    fn room(&self, gpu: &Gpu) -> Result<CudaSlice<u8>> {
        let elements = (self.batch - 1) * self.y.batch_stride + self.rows * self.y.stride;
        alloc::<u8>(gpu, elements * self.y_dtype.size_in_bytes())
    }
}

/// Where the matrices lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProductAddresses {
    pub(crate) a: Address,
    pub(crate) b: Address,
    /// What is added to the product; may be `y`. None adds nothing.
    pub(crate) c: Option<Address>,
    pub(crate) y: Address,
    /// The epilogue's vector.
    pub(crate) vector: Address,
    pub(crate) alpha: f32,
}

/// What a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    product: Product,
    adds: bool,
    tf32: bool,
    deterministic: bool,
    alignment: [u32; 4],
}

/// The library's handle and the plans found so far; none for a product it refuses.
#[derive(Debug)]
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: the handle and the descriptors belong to no thread; a lock lets one at a time use them.
unsafe impl Send for Products {}

impl Products {
    fn new() -> Result<Self> {
        let handle = result::create_handle().map_err(refused("opening cuBLASLt"))?;
        Ok(Self { handle, plans: HashMap::new() })
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made by `new`, and not used any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Gpu {
    /// Queues the product and returns true if the library can do it.
    ///
    /// # Errors
    /// The library fails.
    pub(crate) fn try_matmul(&self, product: &Product, operands: &ProductAddresses) -> Result<bool> {
        let workspace = self.workspace(WORKSPACE)?;
        let mut products = lock(&self.products);
        if products.is_none() {
            *products = Some(Products::new()?);
        }
        let Some(products) = &mut *products else { return Ok(false) };
        let key = Key::new(self, product, operands);
        let handle = products.handle;
        let plan = match products.plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Plan::find(self, handle, &key, operands, workspace)?)
            }
        };
        match plan {
            Some(plan) => plan.queue(self, handle, plan.algorithm, operands, workspace).map(|()| true),
            None => Ok(false),
        }
    }

    /// Queues the product.
    ///
    /// # Errors
    /// The library cannot do it, or fails.
    pub(crate) fn matmul(&self, product: &Product, operands: &ProductAddresses) -> Result<()> {
        if self.try_matmul(product, operands)? {
            return Ok(());
        }
        let error = "it has no algorithm for this product".to_owned();
        Err(KernelError::Gpu { what: format!("asking cuBLASLt for {product:?}"), error })
    }
}

impl Key {
    pub(crate) fn new(gpu: &Gpu, product: &Product, operands: &ProductAddresses) -> Self {
        let c = operands.c.unwrap_or(operands.y);
        // More than 16 bytes changes nothing, and equal layers would be timed twice.
        let alignment = [operands.b, operands.a, c, operands.y].map(|address| address.alignment().min(16));
        Self {
            product: *product,
            adds: operands.c.is_some(),
            tf32: gpu.tf32(),
            deterministic: gpu.deterministic(),
            alignment,
        }
    }
}

/// The library's `cublasLtMatmulHeuristicResult_t`, with its state as a number: in the bindings' enum a state that they do not
/// know would be undefined behaviour.
#[repr(C)]
struct Candidate {
    algorithm: sys::cublasLtMatmulAlgo_t,
    _workspace: usize,
    state: u32,
    _waves: f32,
    _reserved: [i32; 4],
}

const _: () = assert!(
    size_of::<Candidate>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>()
        && std::mem::offset_of!(Candidate, state) == std::mem::offset_of!(sys::cublasLtMatmulHeuristicResult_t, state)
);

/// Descriptors of a product, and the algorithm that was fastest.
#[derive(Debug)]
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of the library's A (our b), B (our a) and C, D (our y).
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `describe`, and not used any more.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Plan {
    fn find(
        gpu: &Gpu,
        handle: sys::cublasLtHandle_t,
        key: &Key,
        operands: &ProductAddresses,
        workspace: Address,
    ) -> Result<Option<Self>> {
        let mut plan = Self::describe(key)?;
        let algorithms = plan.candidates(handle, key)?;
        // What is added to itself must not be added once for every candidate.
        let elsewhere = if operands.c == Some(operands.y) { Some(key.product.room(gpu)?) } else { None };
        let y = elsewhere.as_ref().map_or(operands.y, |room| Address::of(room, gpu.stream()));
        let trial = ProductAddresses { y, ..*operands };
        let chosen =
            fastest(gpu, key, &algorithms, |algorithm| plan.queue(gpu, handle, *algorithm, &trial, workspace))?;
        let Some(chosen) = chosen else { return Ok(None) };
        plan.algorithm = algorithms[chosen];
        Ok(Some(plan))
    }

    fn describe(key: &Key) -> Result<Self> {
        let p = &key.product;
        let compute = match p.dtype {
            DType::F32 if key.tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let fail = || refused("describing a product to cuBLASLt");
        let description = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).map_err(fail())?;
        let layout = |matrix: &Matrix, rows, columns, dtype| layout(matrix, rows, columns, dtype, p.batch);
        let layouts = [
            layout(&p.b, p.inner, p.columns, p.dtype)?,
            layout(&p.a, p.rows, p.inner, p.dtype)?,
            layout(&p.y, p.rows, p.columns, p.y_dtype)?,
        ];
        let plan = Self { description, layouts, algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] } };
        let transposed = |matrix: &Matrix| i32::from(matrix.transposed);
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposed(&p.b))?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &transposed(&p.a))?;
        let epilogue = match p.epilogue {
            Epilogue::None => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            Epilogue::Bias => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            // Our a is the library's B.
            Epilogue::RowSums => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BGRADB,
        };
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if p.epilogue != Epilogue::None {
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(data_type(p.y_dtype)? as i32))?;
        }
        Ok(plan)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let value = std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the value lives until the call returns; the library copies it.
        unsafe { result::set_matmul_desc_attribute(self.description, attribute, value, size_of::<T>()) }
            .map_err(refused("describing a product to cuBLASLt"))
    }

    /// The algorithms that the library ranks highest, best first; none if it cannot do this.
    fn candidates(&self, handle: sys::cublasLtHandle_t, key: &Key) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let fail = || refused("asking cuBLASLt for its algorithms");
        let preference = result::create_matmul_pref().map_err(fail())?;
        let [a, b, c, d] = key.alignment;
        let aligned = [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
        ];
        let mut found: Vec<Candidate> = Vec::with_capacity(MOST_CANDIDATES);
        let mut count = 0;
        let [la, lb, ly] = self.layouts;
        // SAFETY: descriptors that live; the array has room for MOST_CANDIDATES results, of which `count` are written, and any
        // bits that the library writes are one of ours.
        let status = unsafe {
            let bytes = std::ptr::from_ref(&WORKSPACE).cast::<c_void>();
            let limit = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, limit, bytes, size_of::<usize>()).map_err(fail())?;
            for (attribute, value) in &aligned {
                let value = std::ptr::from_ref(value).cast::<c_void>();
                result::set_matmul_pref_attribute(preference, *attribute, value, size_of::<u32>()).map_err(fail())?;
            }
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                self.description,
                la,
                lb,
                ly,
                ly,
                preference,
                MOST_CANDIDATES as i32,
                found.as_mut_ptr().cast(),
                &mut count,
            );
            let _ = result::destroy_matmul_pref(preference);
            found.set_len(count.clamp(0, MOST_CANDIDATES as i32) as usize);
            status
        };
        match status {
            sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => {}
            sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE => {
                return Ok(Vec::new());
            }
            other => return Err(fail()(result::CublasError(other))),
        }
        found.retain(|candidate| candidate.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS as u32);
        Ok(found.into_iter().map(|candidate| candidate.algorithm).collect())
    }

    fn queue(
        &self,
        gpu: &Gpu,
        handle: sys::cublasLtHandle_t,
        algorithm: sys::cublasLtMatmulAlgo_t,
        operands: &ProductAddresses,
        workspace: Address,
    ) -> Result<()> {
        let beta = if operands.c.is_some() { 1.0f32 } else { 0.0 };
        if operands.vector != Address::NONE {
            self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &operands.vector.0)?;
        }
        let pointer = |address: Address| address.0 as *mut c_void;
        // SAFETY: the caller's addresses hold matrices as large as the layouts say.
        unsafe {
            result::matmul(
                handle,
                self.description,
                std::ptr::from_ref(&operands.alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(operands.b),
                self.layouts[0],
                pointer(operands.a),
                self.layouts[1],
                pointer(operands.c.unwrap_or(operands.y)),
                self.layouts[2],
                pointer(operands.y),
                self.layouts[2],
                &algorithm,
                pointer(workspace),
                WORKSPACE,
                gpu.stream().cu_stream().cast(),
            )
        }
        .map_err(refused("multiplying matrices"))
    }
}
