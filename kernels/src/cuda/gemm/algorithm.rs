//! Which of the algorithms that cuBLASLt recommends computes one shape.
//!
//! It is the first one, but for large products: there tiles of 176 or 168 by 128 take 2 to 13 %
//! less time than what cuBLASLt takes for the fastest (docs/performance.md). No measurement at run
//! time decides, as a card that was idle ranks them otherwise than one at its limit of power.

use std::mem::MaybeUninit;
use std::ptr;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulAlgoConfigAttributes_t as Configured, cublasLtMatmulDesc_t,
    cublasLtMatmulHeuristicResult_t as Recommended, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Preferred, cublasLtMatmulTile_t as Tile,
    cublasLtMatrixLayout_t, cublasLtReductionScheme_t, cublasStatus_t as Status,
};

use super::Shape;

/// Rows and outputs from which on a product is large.
const LARGE_ROWS: usize = 4096;
const LARGE_OUTPUTS: usize = 6144;

/// Tiles that large products had better have, the best first.
const TILES: [Tile; 2] = [Tile::CUBLASLT_MATMUL_TILE_176x128, Tile::CUBLASLT_MATMUL_TILE_168x128];

/// Algorithms that are asked for.
const RECOMMENDED_MAX: usize = 8;

/// What a product is of, as cuBLASLt has it described.
pub struct Operands {
    pub product: cublasLtMatmulDesc_t,
    pub weight: cublasLtMatrixLayout_t,
    pub x: cublasLtMatrixLayout_t,
    pub out: cublasLtMatrixLayout_t,
}

/// The algorithm for a shape, which needs no more than so many bytes of workspace.
pub fn choose(
    handle: cublasLtHandle_t,
    shape: &Shape,
    operands: &Operands,
    workspace_bytes: usize,
) -> Result<cublasLtMatmulAlgo_t, CublasError> {
    let preference = Preference::new(workspace_bytes, shape.alignment)?;
    let found = recommended(handle, operands, &preference)?;
    let large = shape.rows >= LARGE_ROWS && shape.outputs >= LARGE_OUTPUTS;
    let of = |tile: Tile| found.iter().find(|one| tile_of(one) == Some(tile as u32));
    let better = if large { TILES.into_iter().find_map(of) } else { None };
    let chosen = better.or(found.first()).ok_or(Status::CUBLAS_STATUS_NOT_SUPPORTED);
    chosen.copied().map_err(CublasError)
}

/// What cuBLASLt recommends, the one that it takes for the fastest first.
fn recommended(
    handle: cublasLtHandle_t,
    operands: &Operands,
    preference: &Preference,
) -> Result<Vec<cublasLtMatmulAlgo_t>, CublasError> {
    let Operands { product, weight, x, out } = *operands;
    let mut found = [const { MaybeUninit::<Recommended>::uninit() }; RECOMMENDED_MAX];
    let (room, mut count) = (RECOMMENDED_MAX as i32, 0);
    // SAFETY: all descriptors are alive, no operand is looked at, and the room is as said.
    unsafe {
        let to = found.as_mut_ptr().cast();
        let (of, kept, count) = (preference.0, out, &raw mut count);
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle, product, weight, x, kept, out, of, room, to, count,
        )
    }
    .result()?;
    // SAFETY: as many as were counted have been written.
    let found = found.iter().take(count as usize).map(|one| unsafe { one.assume_init_ref() });
    Ok(found.filter(|one| one.state.result().is_ok()).map(|one| one.algo).collect())
}

/// The number that cuBLASLt has for the tile of an algorithm: not all are known to the bindings.
fn tile_of(algorithm: &cublasLtMatmulAlgo_t) -> Option<u32> {
    let (mut tile, mut written) = (0_u32, 0);
    // SAFETY: the attribute is a number of 32 bits.
    let asked = unsafe {
        sys::cublasLtMatmulAlgoConfigGetAttribute(
            ptr::from_ref(algorithm),
            Configured::CUBLASLT_ALGO_CONFIG_TILE_ID,
            (&raw mut tile).cast(),
            size_of_val(&tile),
            &raw mut written,
        )
    };
    asked.result().ok().map(|()| tile)
}

/// What an algorithm may use: our workspace, split sums only where they are added up in f32, and no
/// more than we know of where operands start.
struct Preference(cublasLtMatmulPreference_t);

impl Preference {
    fn new(workspace_bytes: usize, alignment: u32) -> Result<Self, CublasError> {
        let preference = Self(result::create_matmul_pref()?);
        let workspace = Preferred::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        preference.set(workspace, &workspace_bytes)?;
        let schemes = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Preferred::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes)?;
        for operand in [
            Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(operand, &alignment)?;
        }
        Ok(preference)
    }

    fn set<T>(&self, attribute: Preferred, value: &T) -> Result<(), CublasError> {
        let (value, bytes) = (ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the preference is alive, and the value is copied from a live reference.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, bytes) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
