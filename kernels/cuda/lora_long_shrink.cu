// h = x A^T for long segments of prefill and few lora ranks, on tensor cores of 16 bits: bound by
// reading x, so a block takes 64 rows of it and all of the lora ranks, and all segments are one launch.
// Stages of 64 inputs of both come to a ring in shared memory; half of the warps multiply one half of
// a stage's inputs, half the other, and their sums are added up in the end.
#include "bulk.cuh"

constexpr int THREADS = 256, STAGES = 8;
constexpr u32 ROWS = 64, RANKS = LONG_RANKS_MAX;
constexpr u32 ROWS_AT_ONCE = THREADS / 8;  // that all threads copy, 16 bytes each

struct Stage {
    Element x[ROWS][BOX_WIDTH], a[RANKS][BOX_WIDTH];
};

// What one block works on: some rows of a segment.
struct RowTile {
    const LoraLongShrinkParams& p;
    const LongShrink& own;
    u32 first, rows;

    // Every thread copies the same part of some rows.
    template <u32 COUNT>
    __device__ void copy(u32 to, const Element* from, u64 stride, u32 rows, u32 step) const {
        const u32 row = threadIdx.x / 8, part = threadIdx.x % 8, input = step * BOX_WIDTH + part * 8;
#pragma unroll
        for (u32 i = 0; i < COUNT; i += ROWS_AT_ONCE) {
            const bool exists = row + i < rows && input < own.inputs;
            const Element* at = from + (exists ? (row + i) * stride + input : 0);
            copy_16(to + place_in_box(row + i, part), at, exists);
        }
    }

    __device__ void copy_x(Stage& to, u32 step) const {
        const Element* from = p.x + static_cast<u64>(own.row + first) * p.width + own.column;
        copy<ROWS>(shared_address(to.x), from, p.width, rows, step);
    }

    __device__ void copy_a(Stage& to, u32 step) const {
        copy<RANKS>(shared_address(to.a), own.a, own.inputs, own.ranks, step);
    }
};

// One warp's sums: 16 rows and all lora ranks, of its half of the inputs.
struct Warp {
    u32 rows = threadIdx.x / 32 % 4 * 16, half = threadIdx.x / 128, lane = threadIdx.x % 32;
    float sums[RANKS / 8][4] = {};

    __device__ void add(const Stage& stage, u32 ranks) {
        const u32 x = shared_address(stage.x), a = shared_address(stage.a);
#pragma unroll
        for (u32 k = half * 4; k < half * 4 + 4; k += 2) {
            u32 left[4];
            load_matrices(left, x + place_in_box(rows + lane % 16, k + lane / 16));
#pragma unroll
            for (u32 rank = 0; rank < RANKS; rank += 16) {
                if (rank >= ranks) continue;
                u32 right[4];
                load_matrices(right, a + place_in_box(rank + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
                multiply_add(sums[rank / 8], left, right[0], right[1]);
                multiply_add(sums[rank / 8 + 1], left, right[2], right[3]);
            }
        }
    }

    // Tells `work` of every sum and where it belongs.
    template <class Work>
    __device__ void each(Work work) {
#pragma unroll
        for (u32 n = 0; n < RANKS / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                work(rows + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2, sums[n][i]);
            }
        }
    }
};

// Grid: groups of ROWS rows, entries.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    lora_long_shrink(const __grid_constant__ LoraLongShrinkParams p) {
    extern __shared__ __align__(128) unsigned char shared[];
    Stage* stages = reinterpret_cast<Stage*>(shared);
    const LongShrink& own = p.entries[blockIdx.y];
    const u32 first = blockIdx.x * ROWS;
    if (first >= own.rows) return;
    const RowTile tile = {p, own, first, min(own.rows - first, ROWS)};
    const u32 steps = (own.inputs + BOX_WIDTH - 1) / BOX_WIDTH;

    // Factors are written by no kernel: the first of them need not wait.
    for (u32 step = 0; step < STAGES - 1; step++) tile.copy_a(stages[step], step);
    wait_for_previous();
    for (u32 step = 0; step < STAGES - 1; step++) {
        tile.copy_x(stages[step], step);
        commit_copies();
    }
    Warp warp;
    for (u32 step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        const u32 next = step + STAGES - 1;
        tile.copy_a(stages[next % STAGES], next);
        tile.copy_x(stages[next % STAGES], next);
        commit_copies();
        warp.add(stages[step % STAGES], own.ranks);
    }
    wait_copies<0>();
    __syncthreads();
    float* other = reinterpret_cast<float*>(shared);
    if (warp.half == 1) {
        warp.each([&](u32 row, u32 rank, float sum) { other[row * RANKS + rank] = sum; });
    }
    __syncthreads();
    if (warp.half == 1) return;
    float* h = p.h + own.h + static_cast<u64>(first) * own.width;
    warp.each([&](u32 row, u32 rank, float sum) {
        if (row >= tile.rows || rank >= own.ranks) return;
        h[static_cast<u64>(row) * own.width + rank] = sum + other[row * RANKS + rank];
    });
}
