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
use super::gemm::Addresses;
use super::program::Programs;
use super::status::During;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct GemmStreamParams {
    weight: CUtensorMap,
    x: CUtensorMap,
    bias: u64,
    out: u64,
    adapters: AdaptersParams,
    rows: u32,
    inputs: u32,
    outputs: u32,
    full: u32,
    parts: u32,
    tile: u32,
    boxes: u32,
    stages: u32,
    flight: u32,
    flight_beside: u32,
    team: u32,
    teams: u32,
    ring: u32,
    sums: u32,
    padding: [u32; 28],
}

const _: () = assert!(size_of::<GemmStreamParams>() == 512);

/// Kernels of `gemm_stream.cu`, and rows that each takes at most.
const BY_WARPS: [(usize, [&str; 2]); 3] =
    [(8, ["gemm_stream_8"; 2]), (16, ["gemm_stream_16"; 2]), (32, ["gemm_stream_32"; 2])];
const ADAPTED_BY_WARPS: [(usize, [&str; 2]); 3] =
    [(8, ["gemm_adapted_8"; 2]), (16, ["gemm_adapted_16"; 2]), (32, ["gemm_adapted_32"; 2])];

/// Those of `gemm_groups.cu`, for tiles of up to 128 outputs and for larger ones. With fewer rows
/// the others are as fast, and faster where tiles are small; with more, cuBLASLt is.
const BY_GROUPS: [(usize, [&str; 2]); 2] = [
    (32, ["gemm_groups_32_1", "gemm_groups_32_2"]),
    (64, ["gemm_groups_64_1", "gemm_groups_64_2"]),
];
const ADAPTED_BY_GROUPS: [(usize, [&str; 2]); 2] = [
    (32, ["gemm_adapted_groups_32_1", "gemm_adapted_groups_32_2"]),
    (64, ["gemm_adapted_groups_64_1", "gemm_adapted_groups_64_2"]),
];

/// Rows up to which any weight is taken. More of them are so much of x that blocks with small tiles
/// would bring more of it than of the weight. And rows up to which shrink is at work beside a
/// product that adds what adapters do: of more rows it needs more than one block a multiprocessor.
pub const ROWS_ANY: usize = 16;

/// Warps that multiply, and threads of a block with the two warps that copy; with adapters there
/// are five warps more.
const WARPS: usize = 8;
const THREADS: u32 = 320;
const ADAPTED_THREADS: u32 = THREADS + 160;

/// Rows of the weight in a unit of work, units of a warp, and units of a block's tile at most: a
/// box has no more rows.
const UNIT: usize = 16;
const UNITS_OF_WARP: usize = 4;
const UNITS_MAX: usize = 16;

/// Groups of warps that multiply together, and 64s of outputs of one at most.
const GROUPS: usize = 2;
const WIDE: usize = 2;

/// Teams of warps that hide what each waits for.
const TEAMS_MIN: usize = 3;

/// Inputs of a box and bytes of its rows.
const BOX: usize = 64;
const BOX_ROW_BYTES: usize = 128;

/// Boxes of a stage at most, and weights of a stage that are worth no more boxes.
const BOXES_MAX: usize = 8;
const STAGE_BYTES: usize = 16 << 10;
const STAGES_MAX: usize = 16;

/// What a stage of both operands is worth where groups multiply.
const STAGE_OF_BOTH_BYTES: usize = 28 << 10;

/// Weights of a block that are under way at once, of as many blocks as multiprocessors. Fewer
/// leave bandwidth unused; more make the loads of the kernels before it wait for up to 6 us
/// (docs/performance.md).
const FLIGHT_BYTES: usize = 96 << 10;

/// The same while the kernels before it are at work.
const FLIGHT_BESIDE_BYTES: usize = 64 << 10;

/// Room for barriers, and before them for the start to be aligned.
const BARRIERS_BYTES: usize = 1024;

/// Sums of a row of a warp's outputs, with what parts the banks.
const SUMS_STRIDE: usize = UNITS_OF_WARP * UNIT + 4;

/// Shared memory of a block: what is left of a multiprocessor's serves the kernels beside it.
pub const SHARED_BYTES: usize = 200 << 10;

/// How products are multiplied: by instructions of a warp, or of a group of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Warps,
    Groups,
}

/// Kernels, and how many rows each takes at most: for tiles of up to 128 outputs, and larger ones.
type ByRows = Vec<(usize, [Kernel<GemmStreamParams>; 2])>;

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

    /// Those for so many rows.
    fn kernels(&self, rows: usize) -> (By, &Kernels) {
        match &self.groups {
            Some(groups) if rows > ROWS_ANY => (By::Groups, groups),
            _ => (By::Warps, &self.warps),
        }
    }

    /// Whether a product is one for these kernels.
    pub fn takes(&self, device: &Device, size: &Size, adapters: Option<&Adapters<'_>>) -> bool {
        let Size { rows, inputs, outputs, .. } = *size;
        let tiles = Tiles::new(device.processors, size.weight_rows());
        if rows == 0 || outputs == 0 || !inputs.is_multiple_of(BOX) {
            return false;
        }
        let (by, kernels) = self.kernels(rows);
        let most = kernels.of(adapters.is_some()).last().map_or(0, |(most, _)| *most);
        let any = rows <= ROWS_ANY;
        let even = any || rows <= most && rows <= by.rows_max(tiles.tile);
        match adapters {
            Some(adapters) => even && tiles.one_each() && adapters.fit(tiles.tile),
            None => any || even && tiles.one_each(),
        }
    }

    /// A product that [`Self::takes`] took. `outputs` are those of one part: of two, the result is
    /// `silu(gate) * up`.
    pub fn launch(
        &self,
        device: &Device,
        out: DType,
        at: &Addresses,
        size: Size,
        adapters: Option<&Adapters<'_>>,
    ) -> Result<()> {
        let Size { rows, inputs, outputs, parts } = size;
        let (by, kernels) = self.kernels(rows);
        let mut kernels = kernels.of(adapters.is_some()).iter();
        let kernel = kernels.find(|(most, _)| rows <= *most);
        let (most, kernels) = kernel.expect("asked for a product of too many rows: this is a bug");
        let beside = |tile| adapters.map_or(0, |adapters| adapters.shared_bytes(tile));
        let cut = Cut::new(device.processors, by, *most, size.weight_rows(), beside);
        let kernel = &kernels[usize::from(cut.team > WIDE)];
        let threads = if adapters.is_some() { ADAPTED_THREADS } else { THREADS };
        let part_rows = cut.tile / parts;
        let params = GemmStreamParams {
            weight: map(device.dtype, at.weight, [parts, outputs, inputs], [part_rows, cut.boxes])?,
            x: map(device.dtype, at.x, [1, rows, inputs], [*most, cut.boxes])?,
            bias: at.bias.unwrap_or(0),
            out: at.out,
            adapters: adapters.map(|it| it.params(cut.tile, cut.beside)).unwrap_or_default(),
            rows: to_u32(rows),
            inputs: to_u32(inputs),
            outputs: to_u32(outputs),
            full: u32::from(out == DType::F32),
            parts: to_u32(parts),
            tile: to_u32(cut.tile),
            boxes: to_u32(cut.boxes),
            stages: to_u32(cut.stages),
            flight: to_u32(cut.flight),
            flight_beside: to_u32(cut.flight_beside),
            team: to_u32(cut.team),
            teams: to_u32(cut.teams),
            ring: to_u32(BARRIERS_BYTES),
            sums: to_u32(cut.sums),
            padding: [0; 28],
        };
        device.launch(kernel, Grid::of(cut.blocks, threads).shared(SHARED_BYTES), &params)
    }
}

impl By {
    /// Rows up to which blocks with so many outputs do not bring much more of x than of the weight.
    fn rows_max(self, tile: usize) -> usize {
        match self {
            By::Warps => tile,
            By::Groups => 2 * tile,
        }
    }

    /// Teams of a block, at most, where one has so many 64s of outputs.
    fn teams_max(self, team: usize) -> usize {
        match self {
            By::Warps => WARPS / team,
            By::Groups => (GROUPS / team).max(1),
        }
    }

    /// Boxes of each operand that make a stage.
    fn boxes(self, tile: usize, rows: usize) -> usize {
        let of_weight = STAGE_BYTES / (tile * BOX_ROW_BYTES);
        let of_both = STAGE_OF_BOTH_BYTES / ((tile + rows) * BOX_ROW_BYTES);
        match self {
            By::Warps => of_weight.clamp(1, BOXES_MAX),
            By::Groups => of_weight.min(of_both).clamp(1, BOXES_MAX),
        }
    }

    /// What is read behind a tile of so many outputs, in bytes.
    fn past_bytes(self, tile: usize, team: usize) -> usize {
        match self {
            By::Warps => 0,
            By::Groups => (team * UNITS_OF_WARP * UNIT - tile) * BOX_ROW_BYTES,
        }
    }
}

/// The size of a product whose weight is `[parts, outputs, inputs]`.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub parts: usize,
}

impl Size {
    fn weight_rows(&self) -> usize {
        self.parts * self.outputs
    }
}

/// How the rows of a weight are shared among a device's blocks: all read as much, up to 16 rows.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    blocks: usize,
    /// Rows that a block takes at once.
    tile: usize,
    count: usize,
}

impl Tiles {
    fn new(processors: usize, weight_rows: usize) -> Self {
        let units = weight_rows.div_ceil(UNIT).div_ceil(processors);
        let tile = units.div_ceil(units.div_ceil(UNITS_MAX).max(1)).max(1) * UNIT;
        let count = weight_rows.div_ceil(tile);
        Self { blocks: count.min(processors), tile, count }
    }

    fn one_each(&self) -> bool {
        self.count <= self.blocks
    }
}

/// How one product is shared among a device's blocks, and how a block uses its shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    blocks: usize,
    /// Rows of the weight that a block takes at once.
    tile: usize,
    /// Boxes of each operand in a stage of the ring.
    boxes: usize,
    stages: usize,
    /// 64s of a tile's outputs, a power of two, which warps or groups share; and such teams that
    /// share the stages.
    team: usize,
    teams: usize,
    /// Stages under way at once, alone and beside other kernels.
    flight: usize,
    flight_beside: usize,
    /// Where the warps' sums go, in bytes from the start.
    sums: usize,
    /// Where what is computed beside the product goes.
    beside: usize,
}

impl Cut {
    /// `beside` are bytes of shared memory that are needed beside a tile.
    fn new(
        processors: usize,
        by: By,
        rows: usize,
        weight_rows: usize,
        beside: impl Fn(usize) -> usize,
    ) -> Self {
        let tiles = Tiles::new(processors, weight_rows);
        let Tiles { blocks, tile, .. } = tiles;
        let team = tile.div_ceil(UNITS_OF_WARP * UNIT).next_power_of_two();
        let boxes = by.boxes(tile, rows);
        let weight = boxes * tile * BOX_ROW_BYTES;
        let stage = weight + boxes * rows * BOX_ROW_BYTES;
        let sums = WARPS * rows * SUMS_STRIDE * size_of::<f32>();
        let beside = beside(tile).max(by.past_bytes(tile, team)).next_multiple_of(BARRIERS_BYTES);
        let room = SHARED_BYTES - 2 * BARRIERS_BYTES - beside;
        // Behind its only tile, a block has no use for the ring.
        let alone = tiles.one_each();
        let ring = if alone { room } else { room - sums };
        let stages = (ring / stage).min(STAGES_MAX);
        let (teams, stages) = teams(by.teams_max(team), stages);
        let sums = BARRIERS_BYTES + if alone { 0 } else { stages * stage };
        // Fewer blocks have more to bring; no more than the ring holds, or its barriers would be
        // waited for a round late.
        let flight = |bytes: usize| (bytes * processors / (blocks * weight)).clamp(1, stages);
        let (flight, flight_beside) = (flight(FLIGHT_BYTES), flight(FLIGHT_BESIDE_BYTES));
        let beside = BARRIERS_BYTES + room;
        Self { blocks, tile, boxes, stages, team, teams, flight, flight_beside, sums, beside }
    }
}

/// Teams, of so many at most, each with as many stages as the others: all but one or two of a ring.
///
/// A team that saw only some rounds of a stage could take one round for another, as barriers tell
/// odd rounds from even ones and no more.
fn teams(most: usize, stages: usize) -> (usize, usize) {
    let fewest = TEAMS_MIN.min(most).min(stages / 2).max(1);
    let of = |teams| (teams, stages / teams * teams);
    (fewest..=most.min(stages)).map(of).max_by_key(|(_, stages)| *stages).unwrap_or((1, stages))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(rows: usize, weight_rows: usize, beside: usize) -> Cut {
        Cut::new(132, By::Warps, rows, weight_rows, |_| beside)
    }

    #[test]
    fn every_block_reads_as_much_as_the_others() {
        let shares = |cut: Cut| (cut.blocks, cut.tile);
        assert_eq!(shares(cut(8, 4096, 0)), (128, 32));
        assert_eq!(shares(cut(16, 28672, 0)), (128, 224));
        assert_eq!(shares(cut(8, 128_256, 0)), (132, 256));
        assert_eq!(shares(cut(8, 5, 0)), (1, 16));
    }

    #[test]
    fn teams_have_all_of_a_tile_and_stages_of_their_own() {
        let most = |rows, beside, weight_rows| {
            let Cut { tile, team, teams, stages, .. } = cut(rows, weight_rows, beside);
            assert!(team * UNITS_OF_WARP * UNIT >= tile && team * teams <= WARPS);
            assert!(teams > 0 && stages % teams == 0, "{teams} teams, {stages} stages");
            (teams, stages)
        };
        assert_eq!(most(8, 0, 4096), (3, 9));
        assert_eq!(most(8, 0, 7168), (5, 10));
        assert_eq!(most(16, 0, 28672), (2, 6));
        assert_eq!(most(16, 90 << 10, 28672), (1, 3));
        assert_eq!(most(8, 150 << 10, 4096), (2, 2));
        assert_eq!(most(16, 0, 5), (6, 6));
    }

    #[test]
    fn shared_memory_holds_ring_sums_and_what_is_beside() {
        let stage = |cut: &Cut, rows| cut.boxes * (cut.tile + rows) * BOX_ROW_BYTES;
        let only = cut(8, 4096, 0);
        assert_eq!((only.boxes, only.stages, only.flight, only.flight_beside), (4, 9, 6, 4));
        assert_eq!(only.sums, BARRIERS_BYTES);
        // More than one tile each: sums have a place of their own.
        let head = cut(8, 128_256, 0);
        assert_eq!(head.sums, BARRIERS_BYTES + head.stages * stage(&head, 8));
        let beside = cut(16, 28672, 90 << 10);
        assert!(beside.stages >= 2);
        assert!(BARRIERS_BYTES + beside.stages * stage(&beside, 16) <= beside.beside);
        assert!(beside.beside + (90 << 10) <= SHARED_BYTES - BARRIERS_BYTES);
    }
}
