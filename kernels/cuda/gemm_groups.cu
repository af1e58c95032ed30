// Products of few rows (gemm_stream.cuh) by the tensor cores' instructions of a warpgroup, which read both
// operands from shared memory by themselves (wgmma.cuh). There are two groups. Each has 64 or
// 128 outputs of the tile; or if the tile has no more than 64, they are two teams.
// A tile that is no multiple of 64 is multiplied as if it were one: what the ring has behind it becomes
// outputs that nobody reads.
#include "gemm_stream.cuh"
#include "wgmma.cuh"

constexpr u32 GROUP_WARPS = 4, BLOCK_BYTES = OUTPUTS * BOX_ROW_BYTES;

// One group's sums: of BLOCKS times 64 outputs, or none.
template <int COUNT_OF_COLUMNS, int BLOCKS>
struct GroupProducts {
    static constexpr int COLUMNS = COUNT_OF_COLUMNS, TEAMS_MAX = 2;
    typedef ::Block<COLUMNS> Block;
    static constexpr bool HAVE_ROOM = true;  // in registers
    static constexpr u32 X_BOX_BYTES = COLUMNS * 8 * BOX_ROW_BYTES;

    const Block& block;
    u32 lane = threadIdx.x % 32, warp = warp_of_block(), team, first;
    float sums[BLOCKS][COLUMNS][4];

    __device__ explicit GroupProducts(const Block& block) : block(block) {
        const u32 group = warp / GROUP_WARPS, of_team = block.p.team / BLOCKS;
        team = group / of_team, first = group % of_team * BLOCKS;
    }

    __device__ static u32 multipliers(const GemmStreamParams& p) {
        return p.team / BLOCKS * GROUP_WARPS;
    }

    __device__ void clear() { clear_sums(sums); }

    __device__ void release(u32 used) const {
        if (lane == 0) arrive(used);
    }

    // The team's stages of a tile; `turn` is then at the first one of the next tile. A stage is released
    // while the next one's products are under way, if the team has another; or where so much of the
    // ring is x that stages are few, as soon as nothing else is to be multiplied.
    __device__ void multiply_tile(Turn& turn) {
        if (team >= block.p.teams) return;
        const u32 teams = block.p.teams, stages = block.p.stages;
        u32 held = 0;
        for (; turn.chunk < block.chunks; turn.chunk += teams) {
            if (COLUMNS == 8 && held && !has_landed(turn)) {
                await_products<0>();
                release(held), held = 0;
            }
            wait_phase(block.weight_landed(turn.stage), turn.round % 2);
            wait_phase(block.x_landed(turn.stage), turn.round % 2);
            multiply(block.weight_of(turn.stage) + first * BLOCK_BYTES, block.x_of(turn.stage));
            await_products<1>();
            if (held) release(held);
            held = block.used(turn.stage);
            if (stages == teams) {
                await_products<0>();
                release(held), held = 0;
            }
            turn.stage += teams;
            if (turn.stage >= stages) turn.stage -= stages, turn.round++;
        }
        await_products<0>();
        if (held) release(held);
        turn.chunk -= block.chunks;
    }

    // The same for all lanes.
    __device__ bool has_landed(const Turn& turn) const {
        const bool weight = is_over(block.weight_landed(turn.stage), turn.round % 2);
        return __all_sync(~0u, weight && is_over(block.x_landed(turn.stage), turn.round % 2));
    }

    __device__ void multiply(u32 weight, u32 x) {
        const u32 boxes = block.p.boxes, weight_box = block.p.tile * BOX_ROW_BYTES;
        begin_products();
        u64 left = matrix_at(weight, 16), right = matrix_at(x, 16);
#pragma unroll 1
        for (u32 box = 0; box < boxes; box++) {
#pragma unroll
            for (u32 step = 0; step < STEPS_OF_BOX; step++) {
                const u32 within = step * STEP * sizeof(Element);
#pragma unroll
                for (int i = 0; i < BLOCKS; i++) {
                    const u64 block = moved(left, i * BLOCK_BYTES + within);
                    multiply_boxes(sums[i], block, moved(right, within), true);
                }
            }
            left = moved(left, weight_box), right = moved(right, X_BOX_BYTES);
        }
        commit_products();
    }

    __device__ void keep(float* all) const {
        float* own = all + (team * block.p.team + first) * Block::ROWS * STRIDE + warp % GROUP_WARPS * 16;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) keep_sums(own + i * Block::ROWS * STRIDE, sums[i]);
    }
};

// By rows of x, 64s of outputs that a group has, and registers: with 64 of them, attention finds room
// beside. A quarter of a block's warps shares a quarter of a multiprocessor's registers.
#define GEMM_GROUPS(COLUMNS, ROWS, BLOCKS, COUNT)                                   \
    extern "C" __global__ void REGISTERS(COUNT, THREADS)                            \
        gemm_groups_##ROWS##_##BLOCKS(const __grid_constant__ GemmStreamParams p) { \
        gemm<GroupProducts<COLUMNS, BLOCKS>, false>(p);                             \
    }

GEMM_GROUPS(1, 8, 1, 64)
GEMM_GROUPS(1, 8, 2, 64)
GEMM_GROUPS(2, 16, 1, 64)
GEMM_GROUPS(2, 16, 2, 64)
GEMM_GROUPS(4, 32, 1, 64)
GEMM_GROUPS(4, 32, 2, 80)
GEMM_GROUPS(8, 64, 1, 96)
GEMM_GROUPS(8, 64, 2, 128)

// Of more than 32 rows, they may shrink themselves. There are more warps: so 48 registers leave attention
// room beside up to 8 rows, and 80 leave it to shrink.
#define GEMM_ADAPTED_GROUPS(COLUMNS, ROWS, BLOCKS, COUNT)                                   \
    extern "C" __global__ void REGISTERS(COUNT, ADAPTED_THREADS)                            \
        gemm_adapted_groups_##ROWS##_##BLOCKS(const __grid_constant__ GemmStreamParams p) { \
        gemm<GroupProducts<COLUMNS, BLOCKS>, true, (ROWS > 32)>(p);                         \
    }

GEMM_ADAPTED_GROUPS(1, 8, 1, 48)
GEMM_ADAPTED_GROUPS(2, 16, 1, 80)
GEMM_ADAPTED_GROUPS(4, 32, 1, 80)
GEMM_ADAPTED_GROUPS(4, 32, 2, 80)
GEMM_ADAPTED_GROUPS(8, 64, 1, 88)
GEMM_ADAPTED_GROUPS(8, 64, 2, 112)
