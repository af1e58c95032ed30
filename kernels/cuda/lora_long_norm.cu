// residual += h B^T, and then hidden = residual / sqrt(mean(residual^2) + eps) * weight, for long
// segments of prefill and up to 16 lora ranks: expand of whole rows and the norm behind it in one, so
// that the residual stream is read once instead of twice.
// A cluster of blocks takes 16 rows, which stay in its registers, so that B is brought once for as many.
// A warp has 128 columns of them; blocks tell each other the sums of squares of their columns.
#include "cluster.cuh"
#include "lora_few.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / 32, BLOCKS_MAX = 8;
constexpr u32 TILES = 2, ROWS = TILES * FEW_ROWS, PARTS = 2, COLUMNS = PARTS * FEW_COLUMNS;  // of a warp

// The thread's n-th row.
__device__ inline u32 row_of(u32 n) { return n / 2 * FEW_ROWS + FewLane().t * 2 + n % 2; }

struct Shared {
    FewCopy<THREADS> b[PARTS];
    FewShrunk h[TILES][32];                              // by lanes
    float warps[WARPS][ROWS], blocks[BLOCKS_MAX][ROWS];  // sums of squares
    float scales[ROWS];
    u64 told;  // what blocks tell each other is there
};
static_assert(sizeof(Shared) <= 34896, "kernels/src/cuda/lora_long_norm.rs asks for as much");

// One warp's columns of the cluster's rows.
struct Own {
    FewSum of[TILES][PARTS];

    __device__ void fetch(const Element* from, u32 width, u32 rows) {
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            const u32 first = tile * FEW_ROWS, left = rows > first ? rows - first : 0;
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) {
                of[tile][part].fetch(from + first * width + part * FEW_COLUMNS, width, left);
            }
        }
    }

    // Adds to what was fetched, rounds it, and adds the squares of each row up.
    __device__ void add(const FewCopy<THREADS> (&copies)[PARTS], const FewShrunk (&shrunk)[TILES][32],
                        float (&squares)[TILES][2]) {
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
            const FewFactor b = copies[part].take();
#pragma unroll
            for (u32 tile = 0; tile < TILES; tile++) {
                FewSum& sum = of[tile][part];
                u32 h[2];
                shrunk[tile][threadIdx.x % 32].round(h);
                sum.add(b, h, [&](u32 i, u32 n, float one, float two) {
                    sum.of[i][n].raw.words = pair_of(one, two);
                    float rounded[2];
                    widen(rounded, sum.of[i][n]);
                    squares[tile][i] += rounded[0] * rounded[0] + rounded[1] * rounded[1];
                });
            }
        }
    }

    __device__ void write(const LoraLongNormParams& p, u64 to, u32 column, u32 rows,
                          const float (&scales)[ROWS]) const {
        const FewLane lane;
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
            const u32 own = part * FEW_COLUMNS + lane.g * 8;
            float weight[8];
            load(weight, p.weight + column + own);
#pragma unroll
            for (u32 i = 0; i < TILES * 2; i++) {
                const u32 row = row_of(i);
                if (row >= rows) continue;
                const u64 at = to + static_cast<u64>(row) * p.width + own;
                float values[8];
                of[i / 2][part].widen_row(values, i % 2);
                store(p.residual + at, values);
#pragma unroll
                for (u32 n = 0; n < 8; n++) values[n] *= scales[row] * weight[n];
                store(p.hidden + at, values);
            }
        }
    }
};

// All blocks' sums of squares, in order, and what they make of each row.
template <u32 BLOCKS>
__device__ void scale(Shared& shared, const float (&squares)[TILES][2], float mean, float eps) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, told = shared_address(&shared.told);
#pragma unroll
    for (u32 i = 0; i < TILES * 2; i++) {
        float sum = squares[i / 2][i % 2];
#pragma unroll
        for (u32 lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
        if (lane < 4) shared.warps[warp][row_of(i)] = sum;
    }
    if (threadIdx.x == 0) announce(told, BLOCKS * ROWS * sizeof(float));
    __syncthreads();
    if (warp < BLOCKS && lane < ROWS) {
        float sum = 0.0f;
#pragma unroll
        for (u32 other = 0; other < WARPS; other++) sum += shared.warps[other][lane];
        store_at(warp, shared_address(&shared.blocks[rank_in_cluster()][lane]), sum, told);
    }
    if (threadIdx.x < ROWS) {
        wait_phase(told, 0);
        float sum = 0.0f;
#pragma unroll
        for (u32 block = 0; block < BLOCKS; block++) sum += shared.blocks[block][lane];
        shared.scales[lane] = 1.0f / sqrtf(sum * mean + eps);
    }
    __syncthreads();
}

template <u32 BLOCKS>
__device__ void expand_norm(const LoraLongNormParams& p) {
    extern __shared__ __align__(128) unsigned char bytes[];
    Shared& shared = *reinterpret_cast<Shared*>(bytes);
    const LongExpand& own = p.entries[blockIdx.y];
    const u32 first = blockIdx.x / BLOCKS * ROWS, warp = threadIdx.x / 32;
    if (first >= own.rows) return;  // all of the cluster
    const u32 rows = min(own.rows - first, ROWS);
    const u32 warps = (p.width / COLUMNS + BLOCKS - 1) / BLOCKS;  // of a block, that have columns
    const u32 column = (rank_in_cluster() * warps + warp) * COLUMNS;
    const bool exists = warp < warps && column < p.width;
    const u64 place = static_cast<u64>(own.row + first) * p.width + column;
    if (threadIdx.x == 0) init_barrier(shared_address(&shared.told), 1);
    arrive_at_cluster();

    // Factors are written by no kernel.
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        const u64 row = column + part * FEW_COLUMNS;
        if (exists) shared.b[part].copy(own.pair.b + row * own.pair.rank, own.pair.rank);
    }
    wait_for_previous();
    if (warp < TILES) {
        const u32 skipped = warp * FEW_ROWS;
        const float* from = p.h + own.h + static_cast<u64>(first + skipped) * own.width + own.pair.h;
        shared.h[warp][threadIdx.x % 32].copy(from, own.width, own.pair.rank,
                                              rows > skipped ? rows - skipped : 0);
    }
    commit_copies();
    Own sums;
    sums.fetch(p.residual + place, p.width, exists ? rows : 0);
    wait_copies<0>();
    __syncthreads();
    float squares[TILES][2] = {};
    if (exists) sums.add(shared.b, shared.h, squares);
    await_cluster();
    scale<BLOCKS>(shared, squares, 1.0f / p.width, p.eps);
    if (exists) sums.write(p, place, column, rows, shared.scales);
}

// Grid: groups of ROWS rows, a cluster each; entries. By blocks of a cluster.
#define LORA_LONG_NORM(BLOCKS)                                                                  \
    extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, 3)     \
        lora_long_norm_##BLOCKS(const __grid_constant__ LoraLongNormParams p) {                 \
        expand_norm<BLOCKS>(p);                                                                 \
    }

LORA_LONG_NORM(1)
LORA_LONG_NORM(2)
LORA_LONG_NORM(4)
LORA_LONG_NORM(8)
