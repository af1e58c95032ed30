// What the kernels that attend to single rows share: how the positions of a row are cut into
// chunks, a block each, and how the chunks' results become one.
// The cut depends on how much the row sees and on nothing else, so a row comes out the same
// whatever else is in the batch. The last block of a row to arrive adds the chunks up, in order.
#pragma once

#include "paged.cuh"

// Two blocks of 6 warps leave each thread the registers that it needs.
constexpr int WARPS = 6, THREADS = WARPS * 32;
constexpr u32 TILE = THREADS;   // positions that a block takes at once, 32 a warp
constexpr u32 CHUNKS_MAX = 16;  // bounds the memory of partial results
constexpr u32 CHUNK_TILES_MIN = 2;  // adding up chunks costs more time than a tile

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

// exp2(a - b), where both may be minus infinity.
__device__ inline float weight_of(float a, float b) { return a == b ? 1.0f : exp2f(a - b); }

struct Chunk {
    u32 begin, end, count;
};

__device__ inline Chunk chunk_of(u32 position, u32 window, u32 index) {
    if (position == PADDING) return {};
    u32 begin = window > 0 && position + 1 > window ? position + 1 - window : 0, end = position + 1;
    u32 tiles = (end - begin + TILE - 1) / TILE;
    u32 chunk_tiles = max((tiles + CHUNKS_MAX - 1) / CHUNKS_MAX, CHUNK_TILES_MIN);
    u32 from = begin + index * chunk_tiles * TILE;
    return {from, min(from + chunk_tiles * TILE, end), (tiles + chunk_tiles - 1) / chunk_tiles};
}

// One block's work: a chunk of what one row sees, for heads that share a key/value head.
struct Task {
    u32 row, key_head, query_head, heads;
    Chunk chunk;
};

// Grid: chunks, parts of key/value heads, rows: those that `work` names, or all from `first` on.
template <int HEADS>
__device__ inline Task task_of(const AttentionParams& p) {
    u32 group = p.query_heads / p.key_heads, parts = (group + HEADS - 1) / HEADS;
    u32 key_head = blockIdx.y / parts, first = blockIdx.y % parts * HEADS;
    u32 row = p.work ? p.work[blockIdx.z] : p.first + blockIdx.z;
    Chunk chunk = chunk_of(p.index.positions[row], p.window, blockIdx.x);
    return {row, key_head, key_head * group + first, min(group - first, HEADS), chunk};
}

// What one warp has gathered for one head: largest score, sum of weights, weighted sum of values. Its
// size parts the banks of shared memory: those who write for every other head do not meet.
template <int DIM>
struct alignas(16) Share {
    float sum[DIM], largest, total;
};
static_assert(sizeof(Share<128>) % 128 == 16, "four floats on from one to the next");

// True in the last block to arrive of `count`, which sees what all of them wrote before.
__device__ inline bool last_to_arrive(u32* arrivals, u32 count) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrivals, 1) == count - 1;
        if (last) *arrivals = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// Adds up the chunks of a row: `partials[head][chunk]` are `2 + dim` floats like a Share.
template <int HEADS>
__device__ inline void add_chunks(const AttentionParams& p, const Task& task,
                                  const float* partials, Element* out) {
    static_assert(HEADS * CHUNKS_MAX <= THREADS, "a thread a chunk");
    __shared__ float weights[HEADS][CHUNKS_MAX];
    const u32 stride = 2 + p.dim, head = threadIdx.x / CHUNKS_MAX, chunk = threadIdx.x % CHUNKS_MAX;
    const float* partial = partials + threadIdx.x * stride;
    const bool exists = head < task.heads && chunk < task.chunk.count;
    float own = exists ? partial[0] : minus_infinity(), total = exists ? partial[1] : 0.0f;
    float largest = own;
#pragma unroll
    for (int lanes = CHUNKS_MAX / 2; lanes > 0; lanes /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
    }
    float weight = weight_of(own, largest);
    total *= weight;
#pragma unroll
    for (int lanes = CHUNKS_MAX / 2; lanes > 0; lanes /= 2) {
        total += __shfl_xor_sync(~0u, total, lanes);
    }
    if (exists) weights[head][chunk] = weight / total;
    __syncthreads();
    for (u32 i = threadIdx.x; i < task.heads * p.dim; i += THREADS) {
        u32 head = i / p.dim, element = i % p.dim;
        const float* from = partials + head * CHUNKS_MAX * stride + 2 + element;
        float sum = 0.0f;
#pragma unroll 4
        for (u32 chunk = 0; chunk < task.chunk.count; chunk++) {
            sum += weights[head][chunk] * from[chunk * stride];
        }
        from_f32(out[i], sum);
    }
}

// What the warps have of N elements of one head, as one.
template <int N>
struct Combined {
    float largest = minus_infinity(), total = 0.0f, sum[N] = {};

    template <int DIM, int HEADS>
    __device__ Combined(const Share<DIM> (*shares)[HEADS], u32 head, u32 element) {
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            largest = fmaxf(largest, shares[warp][head].largest);
        }
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            const Share<DIM>& share = shares[warp][head];
            const float weight = weight_of(share.largest, largest);
            float values[N];
            load(values, share.sum + element);
            total += weight * share.total;
#pragma unroll
            for (int n = 0; n < N; n++) sum[n] += weight * values[n];
        }
    }
};

// The warps' shares become the chunk's: all of the row, or a part of it. N divides the head's width.
template <int N, int HEADS, int DIM>
__device__ inline void combine(const AttentionParams& p, const Task& task,
                               const Share<DIM> (*shares)[HEADS], float* partials, Element* out) {
    for (u32 i = threadIdx.x * N; i < task.heads * p.dim; i += THREADS * N) {
        const u32 head = i / p.dim, element = i % p.dim;
        Combined<N> all(shares, head, element);
        if (task.chunk.count == 1) {
#pragma unroll
            for (int n = 0; n < N; n++) all.sum[n] /= all.total;
            store(out + i, all.sum);
            continue;
        }
        float* partial = partials + (head * CHUNKS_MAX + blockIdx.x) * (2 + p.dim);
        if (element == 0) partial[0] = all.largest, partial[1] = all.total;
#pragma unroll
        for (int n = 0; n < N; n++) partial[2 + element + n] = all.sum[n];
    }
}

// The warps' shares become the chunk's, and the chunks' the row's.
template <int HEADS, int DIM>
__device__ inline void finish(const AttentionParams& p, const Task& task,
                              const Share<DIM> (*shares)[HEADS]) {
    const u64 place = static_cast<u64>(blockIdx.z) * gridDim.y + blockIdx.y;
    float* partials = p.partials + place * HEADS * CHUNKS_MAX * (2 + p.dim);
    Element* out = p.out + (static_cast<u64>(task.row) * p.query_heads + task.query_head) * p.dim;
    __syncthreads();
    p.dim % 4 == 0 ? combine<4>(p, task, shares, partials, out)
                   : combine<1>(p, task, shares, partials, out);
    const u32 count = task.chunk.count;
    if (count == 1 || !last_to_arrive(p.arrivals + place, count)) return;
    add_chunks<HEADS>(p, task, partials, out);
}
