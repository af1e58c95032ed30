// Products of few rows (gemm_stream.cuh) by the tensor cores' instructions of a warp. A warp has up to 64
// outputs of the tile, in tiles of 16: what the ring has behind the last one becomes outputs that nobody
// reads.
#include "gemm_stream.cuh"

constexpr int UNITS = 4;  // tiles of 16 outputs of a warp
static_assert(UNITS * 16 == OUTPUTS, "sums are laid out so");

// What a step multiplies: 16 inputs of some tiles of outputs, as the left operand has them, and of
// all rows of x, as the right one does.
template <int COUNT, int COLUMNS>
struct Operands {
    u32 weight[COUNT][4], x[COLUMNS][2];

    // From where the lane's parts of the first tile and of the first rows are.
    __device__ void load(u32 weight_at, u32 x_at) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) load_matrices(weight[i], weight_at + i * 16 * BOX_ROW_BYTES);
        if constexpr (COLUMNS == 1) {
            load_two_matrices(x[0], x_at);
        } else {
#pragma unroll
            for (int column = 0; column < COLUMNS; column += 2) {
                u32 four[4];
                load_matrices(four, x_at + column * 8 * BOX_ROW_BYTES);
                x[column][0] = four[0], x[column][1] = four[1];
                x[column + 1][0] = four[2], x[column + 1][1] = four[3];
            }
        }
    }
};

// One warp's sums: of `units` tiles of 16 outputs, or none.
template <int COUNT_OF_COLUMNS>
struct WarpProducts {
    static constexpr int COLUMNS = COUNT_OF_COLUMNS, TEAMS_MAX = WARPS;
    typedef ::Block<COLUMNS> Block;
    static constexpr bool HAVE_ROOM = false;  // in registers
    static constexpr u32 ROWS = COLUMNS * 8;
    static constexpr u32 APART = STEP * sizeof(Element);  // steps in a row of a box

    const Block& block;
    u32 lane = threadIdx.x % 32, warp = warp_of_block(), team, unit, units;
    u32 weight_place, x_place;  // of what this lane loads first, in the boxes of a stage
    float sums[UNITS][COLUMNS][4];

    __device__ explicit WarpProducts(const Block& block) : block(block) {
        const u32 most = (block.p.tile + 15) / 16;
        team = warp / block.p.team, unit = warp % block.p.team * UNITS;
        units = team < block.p.teams && unit < most ? min(most - unit, static_cast<u32>(UNITS)) : 0;
        weight_place = place_in_box(unit * 16 + lane % 16, lane / 16);
        x_place = place_in_box(COLUMNS == 1 ? lane % 8 : lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }

    __device__ static u32 multipliers(const GemmStreamParams& p) {
        return ((p.tile + 15) / 16 + UNITS - 1) / UNITS;
    }

    __device__ void clear() { clear_sums(sums); }

    // The team's stages of a tile; `turn` is then at the first one of the next tile.
    template <int COUNT>
    __device__ void multiply_tile(Turn& turn) {
        const u32 teams = block.p.teams, stages = block.p.stages;
        for (; turn.chunk < block.chunks; turn.chunk += teams) {
            wait_phase(block.weight_landed(turn.stage), turn.round % 2);
            wait_phase(block.x_landed(turn.stage), turn.round % 2);
            const u32 weight = block.weight_of(turn.stage) + weight_place;
            const u32 x = block.x_of(turn.stage) + x_place;
            multiply<COUNT>(weight, x);
            __syncwarp();
            if (lane == 0) arrive(block.used(turn.stage));
            turn.stage += teams;
            if (turn.stage >= stages) turn.stage -= stages, turn.round++;
        }
        turn.chunk -= block.chunks;
    }

    // One warp's part of a stage: while a step is multiplied, the next one is loaded. Steps of a box
    // lie where its parts are swapped to.
    template <int COUNT>
    __device__ void multiply(u32 weight, u32 x) {
        const u32 boxes = block.p.boxes, weight_box = block.p.tile * BOX_ROW_BYTES;
        Operands<COUNT, COLUMNS> even, odd;
        even.load(weight, x);
        for (u32 box = 0; box < boxes; box++) {
#pragma unroll
            for (u32 step = 0; step < STEPS_OF_BOX; step += 2) {
                odd.load(weight ^ (step + 1) * APART, x ^ (step + 1) * APART);
                multiply_add_all(even);
                if (step + 2 < STEPS_OF_BOX) {
                    even.load(weight ^ (step + 2) * APART, x ^ (step + 2) * APART);
                } else if (box + 1 < boxes) {
                    weight += weight_box, x += ROWS * BOX_ROW_BYTES;
                    even.load(weight, x);
                }
                multiply_add_all(odd);
            }
        }
    }

    template <int COUNT>
    __device__ void multiply_add_all(const Operands<COUNT, COLUMNS>& operands) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                const u32(&x)[2] = operands.x[column];
                multiply_add(sums[i][column], operands.weight[i], x[0], x[1]);
            }
        }
    }

    __device__ void multiply_tile(Turn& turn) {
        switch (units) {
            case 1: return multiply_tile<1>(turn);
            case 2: return multiply_tile<2>(turn);
            case 3: return multiply_tile<3>(turn);
            case 4: return multiply_tile<4>(turn);
        }
    }

    __device__ void keep(float* all) const {
        float* own = all + warp * ROWS * STRIDE;
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) keep_sums(own + unit * 16, sums[unit]);
    }
};

// By rows of x.
#define GEMM_STREAM(NAME, COLUMNS)                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) \
        NAME(const __grid_constant__ GemmStreamParams p) {   \
        gemm<WarpProducts<COLUMNS>, false>(p);               \
    }

GEMM_STREAM(gemm_stream_8, 1)
GEMM_STREAM(gemm_stream_16, 2)
GEMM_STREAM(gemm_stream_32, 4)

// With adapters a block has one tile, and of up to 8 rows no more registers than leave room for shrink,
// which is to be ready beside it.
#define GEMM_ADAPTED(NAME, COLUMNS, COUNT)                       \
    extern "C" __global__ void REGISTERS(COUNT, ADAPTED_THREADS) \
        NAME(const __grid_constant__ GemmStreamParams p) {       \
        gemm<WarpProducts<COLUMNS>, true>(p);                    \
    }

// After Hopper they need more, for reasons of the compiler.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
GEMM_ADAPTED(gemm_adapted_8, 1, 136)
GEMM_ADAPTED(gemm_adapted_16, 2, 136)
#else
GEMM_ADAPTED(gemm_adapted_8, 1, 88)
GEMM_ADAPTED(gemm_adapted_16, 2, 104)
#endif
GEMM_ADAPTED(gemm_adapted_32, 4, 144)
