// h = x A^T for long segments of prefill and few lora ranks, on tensor cores of 16 bits: bound by
// reading x, so a block takes 64 rows of it and all of the lora ranks, and all segments are one launch.
// Stages of two boxes of 64 inputs of both come to a ring in shared memory; half of the warps multiply
// the one box of every stage, half the other, and their sums are added up in the end.
#include "bulk.cuh"

constexpr int THREADS = 256, STAGES = 4;
constexpr u32 ROWS = 64, RANKS = LONG_RANKS_MAX, BOXES = 2;
constexpr u32 ROWS_AT_ONCE = THREADS / 8;  // that all threads copy, 16 bytes each

struct Box {
    Element x[ROWS][BOX_WIDTH], a[RANKS][BOX_WIDTH];
};

struct Stage {
    Box boxes[BOXES];
};

// What one thread copies: the same part of some rows of a matrix.
struct Source {
    const Element* from;  // its part of its first row
    u64 stride;
    u32 rows, inputs;

    __device__ Source(const Element* first, u64 stride, u32 rows, u32 inputs)
        : from(first + threadIdx.x / 8 * stride + threadIdx.x % 8 * 8), stride(stride), rows(rows),
          inputs(inputs) {}

    template <u32 MOST>
    __device__ void copy(Element (&to)[MOST][BOX_WIDTH], u32 box) const {
        const u32 row = threadIdx.x / 8, part = threadIdx.x % 8;
        const bool inside = box * BOX_WIDTH + part * 8 < inputs;
        const u32 at = shared_address(to) + place_in_box(row, part);
#pragma unroll
        for (u32 i = 0; i < MOST; i += ROWS_AT_ONCE) {
            if (i > 0 && i >= rows) return;
            const bool exists = inside && row + i < rows;
            const Element* source = from + (exists ? i * stride + box * BOX_WIDTH : 0);
            copy_16(at + i * BOX_ROW_BYTES, source, exists);
        }
    }
};

// One warp's sums: 16 rows and all lora ranks, of its box of every stage.
struct Warp {
    u32 rows = threadIdx.x / 32 % 4 * 16, half = threadIdx.x / 128, lane = threadIdx.x % 32;
    float sums[RANKS / 8][4] = {};

    __device__ void add(const Box& box, u32 ranks) {
        const u32 x = shared_address(box.x), a = shared_address(box.a);
#pragma unroll
        for (u32 part = 0; part < BOX_WIDTH / 8; part += 2) {
            u32 left[4];
            load_matrices(left, x + place_in_box(rows + lane % 16, part + lane / 16));
#pragma unroll
            for (u32 rank = 0; rank < RANKS; rank += 16) {
                if (rank >= ranks) continue;
                const u32 row = rank + lane / 16 * 8 + lane % 8;
                u32 right[4];
                load_matrices(right, a + place_in_box(row, part + lane / 8 % 2));
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
    const u32 rows = min(own.rows - first, ROWS), ranks = own.ranks;
    const Element* row = p.x + static_cast<u64>(own.row + first) * p.width + own.column;
    const Source x(row, p.width, rows, own.inputs), a(own.a, own.inputs, ranks, own.inputs);
    auto copy_x = [&](u32 stage) {
        for (u32 i = 0; i < BOXES; i++) x.copy(stages[stage % STAGES].boxes[i].x, stage * BOXES + i);
    };
    auto copy_a = [&](u32 stage) {
        for (u32 i = 0; i < BOXES; i++) a.copy(stages[stage % STAGES].boxes[i].a, stage * BOXES + i);
    };

    // Factors are written by no kernel: the first of them need not wait.
    for (u32 stage = 0; stage < STAGES - 1; stage++) copy_a(stage);
    wait_for_previous();
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        copy_x(stage);
        commit_copies();
    }
    Warp warp;
    const u32 all = (own.inputs + BOXES * BOX_WIDTH - 1) / (BOXES * BOX_WIDTH);
    for (u32 stage = 0; stage < all; stage++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        copy_a(stage + STAGES - 1);
        copy_x(stage + STAGES - 1);
        commit_copies();
        warp.add(stages[stage % STAGES].boxes[warp.half], ranks);
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
        if (row >= rows || rank >= ranks) return;
        h[static_cast<u64>(row) * own.width + rank] = sum + other[row * RANKS + rank];
    });
}
