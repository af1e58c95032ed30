//! How cuBLASLt computes one shape: descriptors, and an algorithm.
//!
//! cuBLASLt thinks in columns: row-major `out [rows, outputs]` is its `[outputs, rows]`, and so the
//! weight is its first operand, transposed, and `x` the second. What lies between the starts of two
//! of our rows is its leading dimension.

use std::ptr;

use contract::tensor::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatrixLayout_t,
    cublasLtMatrixLayoutAttribute_t as Laid, cudaDataType,
};
use cudarc::driver::CudaStream;

use super::super::memory::Memory;
use super::algorithm::{self, Operands};
use super::{Shape, Stride};

/// `CUBLAS_OP_T`, which the bindings leave out.
const TRANSPOSED: i32 = 1;

/// Where the operands of one product lie.
pub struct Addresses {
    pub x: u64,
    pub weight: u64,
    pub bias: Option<u64>,
    pub out: u64,
}

/// What is added to the products: nothing, or what `out` held before.
const NOTHING: f32 = 0.0;
const BEFORE: f32 = 1.0;

/// What a product of one shape needs besides its operands.
pub struct Plan {
    product: Product,
    weight: Layout,
    x: Layout,
    out: Layout,
    kept: f32,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Plan {
    pub fn new(
        handle: cublasLtHandle_t,
        shape: &Shape,
        workspace_bytes: usize,
    ) -> Result<Self, CublasError> {
        let product = Product::new(shape.bias)?;
        let Shape { rows, inputs, outputs, batch, held, .. } = *shape;
        let weight = Layout::new(held, (outputs, inputs), (shape.weight_stride, batch))?;
        let x = Layout::new(held, (rows, inputs), (shape.x_stride, batch))?;
        let out = Layout::new(shape.out, (rows, outputs), (shape.out_stride, batch))?;
        let operands = Operands { product: product.0, weight: weight.0, x: x.0, out: out.0 };
        let algorithm = algorithm::choose(handle, shape, &operands, workspace_bytes)?;
        let kept = if shape.adds { BEFORE } else { NOTHING };
        Ok(Self { product, weight, x, out, kept, algorithm })
    }

    pub fn launch(
        &self,
        handle: cublasLtHandle_t,
        stream: &CudaStream,
        workspace: &Memory,
        at: &Addresses,
    ) -> Result<(), CublasError> {
        if let Some(bias) = at.bias {
            self.product.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let one = 1.0_f32;
        let out = at.out as *mut _;
        // SAFETY: the caller vouches for the addresses and sizes of `at`; the stream frees no
        // operand before it has passed.
        unsafe {
            result::matmul(
                handle,
                self.product.0,
                (&raw const one).cast(),
                (&raw const self.kept).cast(),
                at.weight as *const _,
                self.weight.0,
                at.x as *const _,
                self.x.0,
                out,
                self.out.0,
                out,
                self.out.0,
                &raw const self.algorithm,
                workspace.address() as *mut _,
                workspace.bytes(),
                stream.cu_stream().cast(),
            )
        }
    }
}

/// The operation: the first operand transposed, sums in f32, and a bias where there is one.
struct Product(cublasLtMatmulDesc_t);

impl Product {
    fn new(bias: bool) -> Result<Self, CublasError> {
        let (sums, scale) = (cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F);
        let product = Self(result::create_matmul_desc(sums, scale)?);
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if bias {
            let epilogue = cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            product.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        Ok(product)
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), CublasError> {
        let (value, bytes) = (ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the descriptor is alive, and the value is copied from a live reference.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, bytes) }
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Matrices of one shape whose columns, as cuBLASLt sees them, are our rows.
struct Layout(cublasLtMatrixLayout_t);

impl Layout {
    fn new(
        dtype: DType,
        (rows, width): (usize, usize),
        (stride, batch): (Stride, usize),
    ) -> Result<Self, CublasError> {
        let (rows, width, row) = (rows as u64, width as u64, stride.row as i64);
        let layout = Self(result::create_matrix_layout(data_type(dtype), width, rows, row)?);
        if batch > 1 {
            layout.set(Laid::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(batch as i32))?;
            let matrix = stride.matrix as i64;
            layout.set(Laid::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &matrix)?;
        }
        Ok(layout)
    }

    fn set<T>(&self, attribute: Laid, value: &T) -> Result<(), CublasError> {
        let (value, bytes) = (ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the layout is alive, and the value is copied from a live reference.
        unsafe { result::set_matrix_layout_attribute(self.0, attribute, value, bytes) }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

fn data_type(dtype: DType) -> cudaDataType {
    match dtype {
        DType::F32 => cudaDataType::CUDA_R_32F,
        DType::F16 => cudaDataType::CUDA_R_16F,
        DType::Bf16 => cudaDataType::CUDA_R_16BF,
    }
}
