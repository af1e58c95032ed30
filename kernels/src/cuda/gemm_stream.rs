//! Launches `gemm_stream.cu` and `gemm_groups.cu`: products of few rows, whose weights stream from
//! memory.

use contract::tensor::DType;
use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use crate::error::Result;

use super::beside::{Adapters, AdaptersParams};
use super::device::{Device, Grid, Kernel, to_u32};
use super::factors::{FactorsParams, Norm, SQUARES_MAX, TakenUpParams};
use super::gemm::Addresses;
use super::program::Programs;
use super::status::During;
use super::weight::Weight;

mod cut;

use cut::{BARRIERS_BYTES, By, Cut, Tiles, UNIT, WIDE};
pub use cut::{SHARED_BYTES, split_outputs_max};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct GemmStreamParams {
    weight: CUtensorMap,
    x: CUtensorMap,
    bias: u64,
    out: u64,
    adapters: AdaptersParams,
    taken_up: TakenUpParams,
    factors: FactorsParams,
    rows: u32,
    inputs: u32,
    outputs: u32,
    full: u32,
    parts: u32,
    splits: u32,
    tile: u32,
    tiles: u32,
    chunks: u32,
    boxes: u32,
    stages: u32,
    flight: u32,
    flight_beside: u32,
    team: u32,
    teams: u32,
    ring: u32,
    sums: u32,
    padding: [u32; 5],
}

const _: () = assert!(size_of::<GemmStreamParams>() == 512);

/// Kernels of `gemm_stream.cu`, and rows that each takes at most.
const BY_WARPS: [(usize, [&str; 2]); 3] =
    [(8, ["gemm_stream_8"; 2]), (16, ["gemm_stream_16"; 2]), (32, ["gemm_stream_32"; 2])];
const ADAPTED_BY_WARPS: [(usize, [&str; 2]); 3] =
    [(8, ["gemm_adapted_8"; 2]), (16, ["gemm_adapted_16"; 2]), (32, ["gemm_adapted_32"; 2])];

/// Those of `gemm_groups.cu`, for tiles of up to 128 outputs and for larger ones. With more rows,
/// cuBLASLt is faster.
const BY_GROUPS: [(usize, [&str; 2]); 4] = [
    (8, ["gemm_groups_8_1", "gemm_groups_8_2"]),
    (16, ["gemm_groups_16_1", "gemm_groups_16_2"]),
    (32, ["gemm_groups_32_1", "gemm_groups_32_2"]),
    (64, ["gemm_groups_64_1", "gemm_groups_64_2"]),
];
const ADAPTED_BY_GROUPS: [(usize, [&str; 2]); 4] = [
    (8, ["gemm_adapted_groups_8_1"; 2]),
    (16, ["gemm_adapted_groups_16_1"; 2]),
    (32, ["gemm_adapted_groups_32_1", "gemm_adapted_groups_32_2"]),
    (64, ["gemm_adapted_groups_64_1", "gemm_adapted_groups_64_2"]),
];

/// Inputs of a box.
const BOX: usize = 64;

/// Rows that these kernels take, at most.
pub const ROWS_MAX: usize = 64;

/// Rows up to which any weight is taken. More of them are so much of x that blocks with small tiles
/// would bring more of it than of the weight. And rows up to which shrink is always at work beside
/// a product that adds what adapters do: of more rows and many segments it needs more than one
/// block a multiprocessor.
pub const ROWS_ANY: usize = 16;

/// Rows of few segments up to which it is, where products are those of groups: others leave it no
/// registers, and with more rows it is no faster.
const BESIDE_GROUPS_MAX: usize = 32;

/// Outputs of a tile from which on groups multiply few rows without adapters, too: as fast, and in
/// fewer registers, which leaves more to the kernels beside them. With fewer outputs, warps are
/// faster. With adapters that is so of few outputs; of 9 to 16 rows it was not measured.
const OUTPUTS_MIN: usize = 56;
const ADAPTED_ROWS_MAX: usize = 16;
const ADAPTED_OUTPUTS_MAX: usize = 128;

/// Threads of a block: warps that multiply, two that copy, and one that finds factors; with
/// adapters there are five more.
const THREADS: u32 = 352;
const ADAPTED_THREADS: u32 = THREADS + 160;

/// Kernels for tiles of up to 128 outputs, and for larger ones.
type Both = [Kernel<GemmStreamParams>; 2];

/// The same, and how many rows they take at most.
type ByRows = Vec<(usize, Both)>;

/// Kernels of one file, without and with adapters.
struct Kernels {
    plain: ByRows,
    adapted: ByRows,
}

impl Kernels {
    /// `None` where they are not compiled.
    fn new<const N: usize, const M: usize>(
        programs: &Programs,
        file: &'static str,
        plain: [(usize, [&'static str; 2]); N],
        adapted: [(usize, [&'static str; 2]); M],
    ) -> Result<Option<Self>> {
        if programs.module(file).is_none() {
            return Ok(None);
        }
        let kernel = |name| Kernel::new(programs, file, name)?.allow_shared(SHARED_BYTES);
        let both = |(rows, [narrow, wide]): (usize, [&'static str; 2])| {
            Ok((rows, [kernel(narrow)?, kernel(wide)?]))
        };
        let plain = plain.into_iter().map(both).collect::<Result<_>>()?;
        let adapted = adapted.into_iter().map(both).collect::<Result<_>>()?;
        Ok(Some(Self { plain, adapted }))
    }

    fn of(&self, adapted: bool) -> &ByRows {
        if adapted { &self.adapted } else { &self.plain }
    }
}

/// The kernels of both files, as far as they are compiled.
pub struct GemmStream {
    warps: Kernels,
    groups: Option<Kernels>,
}

impl GemmStream {
    /// `None` where they are not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        let warps = Kernels::new(programs, "gemm_stream", BY_WARPS, ADAPTED_BY_WARPS)?;
        let groups = Kernels::new(programs, "gemm_groups", BY_GROUPS, ADAPTED_BY_GROUPS)?;
        Ok(warps.map(|warps| Self { warps, groups }))
    }

    /// Those for so many rows and outputs of a tile, and how many rows they take at most; `None`
    /// for more than any takes.
    fn kernels(&self, rows: usize, tile: usize, adapted: bool) -> Option<(By, usize, &Both)> {
        let small = rows <= ADAPTED_ROWS_MAX && tile <= ADAPTED_OUTPUTS_MAX;
        let few_too = tile >= OUTPUTS_MIN && (small || !adapted);
        let (by, kernels) = match &self.groups {
            Some(groups) if rows > ROWS_ANY || few_too => (By::Groups, groups),
            _ => (By::Warps, &self.warps),
        };
        let (most, both) = kernels.of(adapted).iter().find(|(most, _)| rows <= *most)?;
        Some((by, *most, both))
    }

    /// Rows of few segments up to which products start beside shrink.
    pub fn beside_rows(&self) -> usize {
        if self.groups.is_some() { BESIDE_GROUPS_MAX } else { ROWS_ANY }
    }

    /// In how many splits a product of such a weight is fastest, if whoever reads the result adds
    /// them up.
    pub fn splits(device: &Device, weight: &Weight) -> usize {
        cut::splits(device.processors, weight.rows, weight.cols)
    }

    /// Whether a product is one for these kernels.
    pub fn takes(&self, device: &Device, size: &Size, adapters: Option<&Adapters<'_>>) -> bool {
        let Size { rows, inputs, outputs, .. } = *size;
        let tiles = size.tiles(device.processors, adapters);
        if rows == 0 || outputs == 0 || !inputs.is_multiple_of(BOX) {
            return false;
        }
        let Some((by, most, _)) = self.kernels(rows, tiles.tile, adapters.is_some()) else {
            return false;
        };
        if matches!(size.norm, Norm::TakenUp(_)) && !tiles.are_taken_up() {
            return false;
        }
        let any = rows <= ROWS_ANY;
        let even = any || rows <= by.rows_max(tiles.tile);
        let Some(adapters) = adapters else {
            return any || even && tiles.one_each();
        };
        even && tiles.one_each()
            && adapters.fit(tiles.columns, size.parts)
            && by.has_room(tiles.tile, most, adapters.shared_bytes(tiles.columns))
    }

    /// A product that [`Self::takes`] took. `outputs` are those of one part: of two, the result is
    /// `silu(gate) * up`. Returns how many blocks it has.
    pub fn launch(
        &self,
        device: &Device,
        out: DType,
        at: &Addresses,
        size: Size,
        adapters: Option<&Adapters<'_>>,
    ) -> Result<usize> {
        let Size { rows, inputs, outputs, parts, splits, norm } = size;
        let tiles = size.tiles(device.processors, adapters);
        let kernels = self.kernels(rows, tiles.tile, adapters.is_some());
        let (by, most, both) = kernels.expect("asked for too many rows: this is a bug");
        let beside = adapters.map_or(0, |adapters| adapters.shared_bytes(tiles.columns));
        let cut = Cut::new(device.processors, tiles, by, most, beside);
        let kernel = &both[usize::from(cut.team > WIDE)];
        let threads = if adapters.is_some() { ADAPTED_THREADS } else { THREADS };
        let part_rows = cut.tile / parts;
        let (taken_up, factors) = match norm {
            Norm::Whole => Default::default(),
            Norm::TakenUp(taken_up) => (taken_up, FactorsParams::default()),
            Norm::Factors(factors) => (TakenUpParams::default(), factors),
        };
        let params = GemmStreamParams {
            weight: map(device.dtype, at.weight, [parts, outputs, inputs], [part_rows, cut.boxes])?,
            x: map(device.dtype, at.x, [1, rows, inputs], [most, cut.boxes])?,
            bias: at.bias.unwrap_or(0),
            out: at.out,
            adapters: adapters
                .map(|it| it.params(tiles.columns, cut.beside, at.x, cut.blocks))
                .unwrap_or_default(),
            taken_up,
            factors,
            rows: to_u32(rows),
            inputs: to_u32(inputs),
            outputs: to_u32(outputs),
            full: u32::from(out == DType::F32),
            parts: to_u32(parts),
            splits: to_u32(splits),
            tile: to_u32(cut.tile),
            tiles: to_u32(tiles.count),
            chunks: to_u32((inputs / BOX).div_ceil(cut.boxes)),
            boxes: to_u32(cut.boxes),
            stages: to_u32(cut.stages),
            flight: to_u32(cut.flight),
            flight_beside: to_u32(cut.flight_beside),
            team: to_u32(cut.team),
            teams: to_u32(cut.teams),
            ring: to_u32(BARRIERS_BYTES),
            sums: to_u32(cut.sums),
            padding: [0; 5],
        };
        device.launch(kernel, Grid::of(cut.blocks, threads).shared(SHARED_BYTES), &params)?;
        Ok(cut.blocks)
    }
}

/// The size of a product whose weight is `[parts, outputs, inputs]`.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub parts: usize,
    /// Of the inputs: the result is `[splits, rows, outputs]`, and whoever reads it adds them up.
    pub splits: usize,
    pub norm: Norm,
}

impl Size {
    fn tiles(&self, processors: usize, adapters: Option<&Adapters<'_>>) -> Tiles {
        let unit = match adapters {
            Some(adapters) => UNIT.max(self.parts * adapters.unit()),
            None => UNIT,
        };
        Tiles::new(processors, self.parts * self.outputs, self.splits, unit)
    }
}

/// A matrix in parts of which boxes are copied: of so many rows of every part, and so many side by
/// side at once.
fn map(
    dtype: DType,
    address: u64,
    [parts, rows, cols]: [usize; 3],
    [box_rows, boxes]: [usize; 2],
) -> Result<CUtensorMap> {
    let element = match dtype {
        DType::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    };
    let dims = [BOX, rows, parts, cols / BOX].map(|len| len as u64);
    let strides = [cols, rows * cols, BOX].map(|elements| (elements * dtype.bytes()) as u64);
    let (sides, apart) = ([BOX, box_rows, parts, boxes].map(to_u32), [1; 4]);
    let mut map = CUtensorMap { opaque: [0; 16] };
    // SAFETY: all arrays have as many entries as the matrix has dimensions, or one less of strides.
    let made = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            element,
            4,
            address as *mut _,
            dims.as_ptr(),
            strides.as_ptr(),
            sides.as_ptr(),
            apart.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    made.result().during("describing a matrix to be copied in boxes")?;
    Ok(map)
}
