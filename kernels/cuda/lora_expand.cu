// y += h B^T for every row of a segment and every pair of its slot (arXiv 2310.18547). With
// diagonal blocks, output o reads the lora ranks of block o / (outputs / blocks) only.
// A thread takes one output column and ROWS rows at a time; it reads its row of B once for all of
// them. The shrunk activations of these rows are brought to shared memory first, pair after pair,
// each pair's at a multiple of 4. After an all-gather a pair's lora ranks lie in one part a rank.
#include "lora.cuh"

constexpr int THREADS = 128;

__device__ inline u32 up_to_4(u32 n) { return (n + 3) / 4 * 4; }

// The pair that adds to an output column, if there is one.
struct Column {
    bool found;
    u32 target;
    u32 h;  // where its shrunk activations lie in shared memory
};

__device__ inline Column find_column(const LoraParams& p, const Job& job, u32 output) {
    u32 h = 0;
    for (u32 target = 0; target < p.targets; target++) {
        if (!job.has(p, target)) continue;
        const LoraPair& pair = job.pairs[target];
        bool inside = output >= pair.output && output - pair.output < pair.outputs;
        if (inside) return {true, target, h};
        h += up_to_4(pair.expand_rank);
    }
    return {};
}

__device__ inline void stage(const LoraParams& p, const Job& job, u32 row, u32 rows,
                             float* staged) {
    for (u32 target = 0; target < p.targets; target++) {
        if (!job.has(p, target)) continue;
        const LoraPair& pair = job.pairs[target];
        for (u32 i = threadIdx.x; i < rows * pair.expand_rank; i += THREADS) {
            u32 r = i / pair.expand_rank, rank = i % pair.expand_rank;
            u32 part = rank / pair.shrink_rank, inside = rank % pair.shrink_rank;
            u64 from = static_cast<u64>(part) * job.total + job.start + (row + r) * job.width;
            staged[r * p.h_stride + rank] = p.h[from + pair.h + inside];
        }
        staged += up_to_4(pair.expand_rank);
    }
}

// sums[r] += the B row at `b` times the shrunk activations of row r.
template <int ROWS, int N>
__device__ inline void multiply(const LoraParams& p, const Element* b, u32 ranks, const float* h,
                                float (&sums)[ROWS]) {
#pragma unroll 4
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
    extern __shared__ __align__(16) float staged[];
    wait_for_previous();
    const Job& job = own_job(p);
    if (job.width == 0) return;
    const u32 output = blockIdx.x * THREADS + threadIdx.x;
    const Column column = find_column(p, job, output);
    const LoraPair& pair = job.pairs[column.target];
    u32 ranks = 0, block = 0;
    if (column.found) {
        ranks = pair.expand_rank / pair.b_blocks;
        block = (output - pair.output) / (pair.outputs / pair.b_blocks);
    }
    const Element* b =
        in_device_memory(pair.b) + static_cast<u64>(output - pair.output) * ranks;
    const float* h = staged + column.h + block * ranks;
    for (u32 row = blockIdx.z * ROWS; row < job.segment.rows; row += gridDim.z * ROWS) {
        u32 rows = min(job.segment.rows - row, ROWS);
        __syncthreads();
        stage(p, job, row, rows, staged);
        __syncthreads();
        if (!column.found) continue;
        float sums[ROWS] = {};
        if (ranks % 8 == 0) {
            multiply<ROWS, 8>(p, b, ranks, h, sums);
        } else if (ranks % 2 == 0) {
            multiply<ROWS, 2>(p, b, ranks, h, sums);
        } else {
            multiply<ROWS, 1>(p, b, ranks, h, sums);
        }
        Element* y = p.y + static_cast<u64>(job.segment.row + row) * p.width + output;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++, y += p.width) {
            if (r < rows) from_f32(*y, to_f32(*y) + sums[r]);
        }
    }
}

// Grid: output columns, segments, groups of rows.
extern "C" __global__ void __launch_bounds__(THREADS, 8) lora_expand_1(LoraParams p) {
    expand<1>(p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) lora_expand_8(LoraParams p) {
    expand<8>(p);
}
