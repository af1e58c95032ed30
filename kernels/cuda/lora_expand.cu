// y += h B^T for every row of a segment and every pair of its slot (arXiv 2310.18547). With diagonal
// blocks, output o reads the lora ranks of block o / (outputs / blocks) only.
// A thread takes one output column and ROWS rows at a time; it reads its row of B once for all of
// them. The shrunk activations of these rows are brought to shared memory first, pair after pair,
// each pair's at a multiple of 4. After an all-gather a pair's lora ranks lie in one part a rank.
#include "lora.cuh"

constexpr int THREADS = 128;

__device__ inline u32 up_to_4(u32 n) { return (n + 3) / 4 * 4; }

__device__ inline bool takes_part(const LoraParams& p, const LoraPair& pair) {
    return pair.shrink_rank > 0 && pair.exchange == p.exchange;
}

// The pair that adds to an output column, and where its shrunk activations lie in shared memory.
struct Column {
    LoraPair pair;
    u32 output;  // counted from the pair's first
    u32 h;
};

__device__ inline bool find_column(const LoraParams& p, u32 slot, u32 output, Column& column) {
    u32 h = 0;
    for (u32 target = 0; target < p.targets; target++) {
        const LoraPair pair = p.pairs[slot * p.targets + target];
        if (!takes_part(p, pair)) continue;
        if (output >= pair.output && output - pair.output < pair.outputs) {
            column = {pair, output - pair.output, h};
            return true;
        }
        h += up_to_4(pair.expand_rank);
    }
    return false;
}

__device__ inline void stage(const LoraParams& p, u32 slot, const Shrunk& at, u32 row, u32 rows,
                             float* staged) {
    u32 h = 0;
    for (u32 target = 0; target < p.targets; target++) {
        const LoraPair pair = p.pairs[slot * p.targets + target];
        if (!takes_part(p, pair)) continue;
        for (u32 i = threadIdx.x; i < rows * pair.expand_rank; i += THREADS) {
            u32 r = i / pair.expand_rank, rank = i % pair.expand_rank;
            u32 part = rank / pair.shrink_rank, inside = rank % pair.shrink_rank;
            u64 from = static_cast<u64>(part) * at.total + at.start + (row + r) * at.width;
            staged[r * p.h_stride + h + rank] = p.h[from + pair.h + inside];
        }
        h += up_to_4(pair.expand_rank);
    }
}

template <int ROWS, int N>
__device__ inline void multiply(const LoraParams& p, const Column& column, const float* staged,
                                float (&sums)[ROWS]) {
    const LoraPair& pair = column.pair;
    u32 ranks = pair.expand_rank / pair.b_blocks;
    const float* h = staged + column.h + column.output / (pair.outputs / pair.b_blocks) * ranks;
    const Element* b = pair.b + static_cast<u64>(column.output) * ranks;
#pragma unroll 2
    for (u32 i = 0; i < ranks; i += N) {
        float weights[N];
        load(weights, b + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float shrunk[N];
            load(shrunk, h + r * p.h_stride + i);
#pragma unroll
            for (int n = 0; n < N; n++) sums[r] += weights[n] * shrunk[n];
        }
    }
}

template <int ROWS>
__device__ void expand(const LoraParams& p) {
    extern __shared__ float staged[];
    const Segment segment = p.segments[blockIdx.y];
    const Shrunk at = shrunk(p, blockIdx.y);
    if (at.width == 0) return;
    u32 output = blockIdx.x * THREADS + threadIdx.x;
    Column column;
    bool found = find_column(p, segment.slot, output, column);
    for (u32 row = blockIdx.z * ROWS; row < segment.rows; row += gridDim.z * ROWS) {
        u32 rows = min(segment.rows - row, ROWS);
        __syncthreads();
        stage(p, segment.slot, at, row, rows, staged);
        __syncthreads();
        if (!found) continue;
        float sums[ROWS] = {};
        u32 ranks = column.pair.expand_rank / column.pair.b_blocks;
        if (ranks % 8 == 0) {
            multiply<ROWS, 8>(p, column, staged, sums);
        } else if (ranks % 2 == 0) {
            multiply<ROWS, 2>(p, column, staged, sums);
        } else {
            multiply<ROWS, 1>(p, column, staged, sums);
        }
        Element* y = p.y + static_cast<u64>(segment.row + row) * p.width + output;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++, y += p.width) {
            if (r < rows) from_f32(*y, to_f32(*y) + sums[r]);
        }
    }
}

// Grid: output columns, segments, groups of rows.
extern "C" __global__ void __launch_bounds__(THREADS, 12) lora_expand_1(LoraParams p) { expand<1>(p); }

extern "C" __global__ void __launch_bounds__(THREADS) lora_expand_8(LoraParams p) { expand<8>(p); }
