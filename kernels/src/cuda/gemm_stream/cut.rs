//! How products of few rows are shared among a device's blocks, and how a block uses its shared
//! memory.

use super::SQUARES_MAX;

/// Warps that multiply.
const WARPS: usize = 8;

/// Rows of the weight in a unit of work, and of what a warp multiplies at once; such of a warp, and
/// rows of a block's tile at most: a box has no more.
pub const UNIT: usize = 8;
const PRODUCT: usize = 16;
const PRODUCTS_OF_WARP: usize = 4;
const TILE_MAX: usize = 256;

/// Outputs that a warp has, or a group as one operand.
const OUTPUTS: usize = PRODUCTS_OF_WARP * PRODUCT;

/// Groups of warps that multiply together, and 64s of outputs of one at most.
const GROUPS: usize = 2;
pub const WIDE: usize = 2;

/// Teams of warps that hide what each waits for.
const TEAMS_MIN: usize = 3;

/// Bytes of a row of a box, which has 64 inputs.
const BOX_ROW_BYTES: usize = 128;

/// Boxes of a stage at most, and weights of a stage that are worth no more boxes.
const BOXES_MAX: usize = 8;
const STAGE_BYTES: usize = 16 << 10;
const STAGES_MAX: usize = 16;

/// What a stage of both operands is worth where groups multiply, alone and where what is computed
/// beside them leaves the ring less room; and rows from which on that is no reason, as half of a
/// stage is x.
const STAGE_OF_BOTH_BYTES: usize = 32 << 10;
const STAGE_OF_BOTH_BESIDE_BYTES: usize = 28 << 10;
const ROWS_OF_LARGE_STAGES: usize = 33;

/// Weights of a block that are under way at once, of as many blocks as multiprocessors. Fewer
/// leave bandwidth unused; more make the loads of the kernels before it wait for up to 6 us
/// (docs/performance.md).
const FLIGHT_BYTES: usize = 96 << 10;

/// The same while the kernels before it are at work; and of a product with adapters, until these
/// are shrunk, as A comes from memory meanwhile, and is waited for.
const FLIGHT_BESIDE_BYTES: usize = 48 << 10;
const FLIGHT_ADAPTED_BYTES: usize = 32 << 10;

/// Room for barriers, and before them for the start to be aligned.
pub const BARRIERS_BYTES: usize = 1024;

/// Sums of a row of a warp's outputs, with what parts the banks.
const SUMS_STRIDE: usize = OUTPUTS + 4;

/// Shared memory of a block: what is left of a multiprocessor's serves the kernels beside it.
pub const SHARED_BYTES: usize = 200 << 10;

/// How products are multiplied: by instructions of a warp, or of a group of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Warps,
    Groups,
}

impl By {
    /// Rows up to which blocks with so many outputs do not bring much more of x than of the weight.
    pub fn rows_max(self, tile: usize) -> usize {
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
    fn boxes(self, tile: usize, rows: usize, beside: usize) -> usize {
        let of_weight = STAGE_BYTES / (tile * BOX_ROW_BYTES);
        let both = match beside == 0 || rows >= ROWS_OF_LARGE_STAGES {
            true => STAGE_OF_BOTH_BYTES,
            false => STAGE_OF_BOTH_BESIDE_BYTES,
        };
        let of_both = both / ((tile + rows) * BOX_ROW_BYTES);
        match self {
            By::Warps => of_weight.clamp(1, BOXES_MAX),
            By::Groups => of_weight.min(of_both).clamp(1, BOXES_MAX),
        }
    }

    /// Sums of 64 outputs that are kept of as many rows as the kernel takes, in bytes.
    fn sums_bytes(self, rows: usize) -> usize {
        let kept = match self {
            By::Warps => WARPS,
            By::Groups => GROUPS * WIDE,
        };
        kept * rows * SUMS_STRIDE * size_of::<f32>()
    }

    /// Whether beside so many bytes there is room for a ring, and then for sums.
    pub fn has_room(self, tile: usize, rows: usize, beside: usize) -> bool {
        let stage = self.boxes(tile, rows, beside) * (tile + rows) * BOX_ROW_BYTES;
        let beside = beside.next_multiple_of(BARRIERS_BYTES);
        2 * BARRIERS_BYTES + beside + stage.max(self.sums_bytes(rows)) <= SHARED_BYTES
    }

    /// What is read behind a tile of so many outputs, in bytes.
    fn past_bytes(self, tile: usize, team: usize) -> usize {
        match self {
            By::Warps => 0,
            By::Groups => (team * OUTPUTS - tile) * BOX_ROW_BYTES,
        }
    }
}

/// Rows of a tile that several blocks share, such splits at most (`attention_own.cuh`), and inputs
/// of one at least.
const SPLIT_TILE: usize = OUTPUTS;
const SPLITS_MAX: usize = 6;
const SPLIT_INPUTS_MIN: usize = 512;

/// In how many splits blocks take the inputs of a small weight, where whoever reads the result adds
/// them up: tiles as narrow as would occupy all multiprocessors fill the ring with x.
pub fn splits(processors: usize, weight_rows: usize, inputs: usize) -> usize {
    let most = SPLITS_MAX.min(inputs / SPLIT_INPUTS_MIN);
    (processors / weight_rows.div_ceil(SPLIT_TILE).max(1)).clamp(1, most.max(1))
}

/// Elements of all splits of a row, at most.
pub fn split_outputs_max(processors: usize) -> usize {
    processors * SPLIT_TILE
}

/// How the rows of a weight are shared among a device's blocks: all read as much, up to 16 rows.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    blocks: usize,
    /// Rows that a block takes at once.
    pub tile: usize,
    pub count: usize,
    /// Columns that a block adds to what adapters do.
    pub columns: usize,
}

impl Tiles {
    /// Of units of so many rows. Where there are `splits`, [`splits`] said so.
    pub fn new(processors: usize, weight_rows: usize, splits: usize, unit: usize) -> Self {
        if splits > 1 {
            return Self::split(weight_rows, splits);
        }
        let units = weight_rows.div_ceil(unit).div_ceil(processors);
        let units = units.div_ceil(units.div_ceil(TILE_MAX / unit).max(1));
        let tile = (units * unit).max(PRODUCT);
        let count = weight_rows.div_ceil(tile);
        Self { blocks: count.min(processors), tile, count, columns: tile }
    }

    fn split(weight_rows: usize, splits: usize) -> Self {
        let count = weight_rows.div_ceil(SPLIT_TILE);
        let columns = SPLIT_TILE.div_ceil(splits).next_multiple_of(8);
        Self { blocks: count * splits, tile: SPLIT_TILE, count, columns }
    }

    /// Whether a block has all that it sees of a row in the lanes of a warp, four outputs each, and
    /// there is room for what all of them say of it.
    pub fn are_taken_up(&self) -> bool {
        self.one_each() && self.tile <= OUTPUTS && self.count <= SQUARES_MAX
    }

    pub fn one_each(&self) -> bool {
        self.count <= self.blocks
    }
}

/// How one product is shared among a device's blocks, and how a block uses its shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub blocks: usize,
    /// Rows of the weight that a block takes at once.
    pub tile: usize,
    /// Boxes of each operand in a stage of the ring.
    pub boxes: usize,
    pub stages: usize,
    /// 64s of a tile's outputs, a power of two, which warps or groups share; and such teams that
    /// share the stages.
    pub team: usize,
    pub teams: usize,
    /// Stages under way at once, alone and beside other kernels.
    pub flight: usize,
    pub flight_beside: usize,
    /// Where the warps' sums go, in bytes from the start.
    pub sums: usize,
    /// Where what is computed beside the product goes.
    pub beside: usize,
}

impl Cut {
    /// `beside` are bytes of shared memory that are needed beside the product.
    pub fn new(processors: usize, tiles: Tiles, by: By, rows: usize, beside: usize) -> Self {
        let Tiles { blocks, tile, .. } = tiles;
        let team = tile.div_ceil(OUTPUTS).next_power_of_two();
        let boxes = by.boxes(tile, rows, beside);
        let weight = boxes * tile * BOX_ROW_BYTES;
        let stage = weight + boxes * rows * BOX_ROW_BYTES;
        let sums = by.sums_bytes(rows);
        let flight_beside = if beside > 0 { FLIGHT_ADAPTED_BYTES } else { FLIGHT_BESIDE_BYTES };
        let beside = beside.max(by.past_bytes(tile, team)).next_multiple_of(BARRIERS_BYTES);
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
        let (flight, flight_beside) = (flight(FLIGHT_BYTES), flight(flight_beside));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(rows: usize, weight_rows: usize, beside: usize) -> Cut {
        Cut::new(132, Tiles::new(132, weight_rows, 1, UNIT), By::Warps, rows, beside)
    }

    #[test]
    fn every_block_reads_as_much_as_the_others() {
        let shares = |cut: Cut| (cut.blocks, cut.tile);
        assert_eq!(shares(cut(8, 4096, 0)), (128, 32));
        assert_eq!(shares(cut(16, 28672, 0)), (128, 224));
        assert_eq!(shares(cut(8, 128_256, 0)), (132, 248));
        assert_eq!(shares(cut(8, 5, 0)), (1, 16));
    }

    #[test]
    fn teams_have_all_of_a_tile_and_stages_of_their_own() {
        let most = |rows, beside, weight_rows| {
            let Cut { tile, team, teams, stages, .. } = cut(rows, weight_rows, beside);
            assert!(team * OUTPUTS >= tile && team * teams <= WARPS);
            assert!(teams > 0 && stages % teams == 0, "{teams} teams, {stages} stages");
            (teams, stages)
        };
        assert_eq!(most(8, 0, 4096), (3, 9));
        assert_eq!(most(8, 0, 7168), (6, 12));
        assert_eq!(most(16, 0, 28672), (2, 6));
        assert_eq!(most(16, 90 << 10, 28672), (1, 3));
        assert_eq!(most(8, 150 << 10, 4096), (2, 2));
        assert_eq!(most(16, 0, 5), (6, 6));
    }

    #[test]
    fn shared_memory_holds_ring_sums_and_what_is_beside() {
        let stage = |cut: &Cut, rows| cut.boxes * (cut.tile + rows) * BOX_ROW_BYTES;
        let only = cut(8, 4096, 0);
        assert_eq!((only.boxes, only.stages, only.flight, only.flight_beside), (4, 9, 6, 3));
        assert_eq!(only.sums, BARRIERS_BYTES);
        // More than one tile each: sums have a place of their own.
        let head = cut(8, 128_256, 0);
        assert_eq!(head.sums, BARRIERS_BYTES + head.stages * stage(&head, 8));
        let beside = cut(16, 28672, 90 << 10);
        assert!(beside.stages >= 2);
        assert!(BARRIERS_BYTES + beside.stages * stage(&beside, 16) <= beside.beside);
        assert!(beside.beside + (90 << 10) <= SHARED_BYTES - BARRIERS_BYTES);
    }

    #[test]
    fn adapters_leave_room_for_sums() {
        assert!(By::Groups.has_room(256, 32, 120 << 10));
        assert!(!By::Groups.has_room(256, 64, 155 << 10));
        assert!(By::Warps.has_room(64, 32, 118 << 10) && !By::Warps.has_room(64, 32, 135 << 10));
    }

    #[test]
    fn small_weights_are_split_so_that_blocks_are_at_work() {
        let of = |weight_rows, inputs| {
            let splits = splits(132, weight_rows, inputs);
            let tiles = Tiles::new(132, weight_rows, splits, UNIT);
            assert!(tiles.one_each() && tiles.blocks <= 132);
            assert!(tiles.columns * splits >= tiles.tile);
            assert!(splits * weight_rows <= split_outputs_max(132));
            (splits, tiles.tile, tiles.blocks, tiles.columns)
        };
        assert_eq!(of(1280, 8192), (6, 64, 120, 16));
        assert_eq!(of(2560, 2048), (3, 64, 120, 24));
        assert_eq!(of(6144, 4096), (1, 48, 128, 48));
        assert_eq!(of(96, 64), (1, 16, 6, 16));
    }

    #[test]
    fn groups_have_a_tile_among_them_or_are_teams() {
        let shares = |rows, weight_rows| {
            let Cut { tile, boxes, team, teams, stages, .. } =
                Cut::new(132, Tiles::new(132, weight_rows, 1, UNIT), By::Groups, rows, 0);
            let read = team * OUTPUTS * BOX_ROW_BYTES;
            let last = BARRIERS_BYTES + stages * boxes * (tile + rows) * BOX_ROW_BYTES;
            assert!(
                last - boxes * rows * BOX_ROW_BYTES - tile * BOX_ROW_BYTES + read < SHARED_BYTES
            );
            (tile, boxes, team, teams)
        };
        assert_eq!(shares(32, 4096), (32, 4, 1, 2));
        assert_eq!(shares(64, 8192), (64, 2, 1, 2));
        assert_eq!(shares(64, 14336), (112, 1, 2, 1));
        assert_eq!(shares(64, 28672), (224, 1, 4, 1));
    }
}
