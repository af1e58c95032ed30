// out = sum of softmax(scale * query . key) * value over the positions that one row sees: decode, and
// prefill where tensor cores do not serve (f32, unusual head widths).
// A block takes a chunk of the positions of one row, and up to HEADS query heads that share a
// key/value head, so that keys and values are read once for all of them. Each warp keeps a running
// softmax over its own positions. How a row is cut into chunks depends on how much it sees alone, so
// a row comes out the same whatever else is in the batch. The last block of a row to arrive adds the
// chunks up, in order.
#include "paged.cuh"

constexpr int THREADS = 128, WARPS = THREADS / 32;
constexpr u32 TILE = THREADS;     // positions that a block takes at once, one a lane
constexpr u32 CHUNKS_MAX = 16;    // bounds the memory of partial results

// Accumulators of one head over some of its positions: sum of weights, largest exponent.
struct Softmax {
    float largest, total;
};

// exp2(a - b), where both may be minus infinity.
__device__ inline float weight_of(float a, float b) { return a == b ? 1.0f : exp2f(a - b); }

struct Chunk {
    u32 begin, end, count;
};

__device__ inline Chunk chunk_of(u32 position, u32 window, u32 index) {
    u32 begin = window > 0 && position + 1 > window ? position + 1 - window : 0, end = position + 1;
    u32 tiles = (end - begin + TILE - 1) / TILE;
    u32 chunk_tiles = (tiles + CHUNKS_MAX - 1) / CHUNKS_MAX;
    u32 from = begin + index * chunk_tiles * TILE;
    return {from, min(from + chunk_tiles * TILE, end), (tiles + chunk_tiles - 1) / chunk_tiles};
}

// What one warp has gathered. A lane holds 8 of the head's elements; LANES lanes hold a position.
template <int HEADS>
struct Gathered {
    float largest[HEADS], total[HEADS], sum[HEADS][8];
};

template <int LANES, int HEADS>
struct Rows {
    static constexpr int GROUPS = 32 / LANES;  // positions that a warp reads at once

    const AttentionParams& p;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 element = lane % LANES * 8;
    bool holds = element < p.dim;

    // This lane's elements of a head; zeros past its end.
    __device__ Pack<8, Element> read(const Element* head) const {
        Pack<8, Element> pack = {};
        if (p.dim % 8 == 0) {
            if (holds) pack = *reinterpret_cast<const Pack<8, Element>*>(head + element);
            return pack;
        }
#pragma unroll
        for (int n = 0; n < 8; n++) {
            if (element + n < p.dim) pack.at[n] = head[element + n];
        }
        return pack;
    }

    // Scores of 32 positions, one a lane, into `scores[head][lane]`. Four positions a lane group are
    // in flight at once.
    __device__ void score(const float (&query)[HEADS][8], u32 slot, float (*scores)[32]) const {
        constexpr int BATCH = LANES < 4 ? LANES : 4;
        for (int first = 0; first < LANES; first += BATCH) {
            Pack<8, Element> keys[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int at = (first + i) * GROUPS + lane / LANES;
                keys[i] = read(p.keys + static_cast<u64>(__shfl_sync(~0u, slot, at)) * p.dim);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int at = (first + i) * GROUPS + lane / LANES;
                float key[8];
                widen(key, keys[i]);
#pragma unroll
                for (int head = 0; head < HEADS; head++) {
                    float score = 0.0f;
#pragma unroll
                    for (int n = 0; n < 8; n++) score += query[head][n] * key[n];
#pragma unroll
                    for (int other = LANES / 2; other > 0; other /= 2) {
                        score += __shfl_xor_sync(~0u, score, other);
                    }
                    if (lane % LANES == 0) scores[head][at] = score;
                }
            }
        }
    }

    // Turns scores into weights and makes room for them in the running softmax.
    __device__ void weigh(bool seen, float (*scores)[32], Gathered<HEADS>& got) const {
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
            float score = seen ? scores[head][lane] : __int_as_float(0xff800000);
            float largest = score;
#pragma unroll
            for (int other = 16; other > 0; other /= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
            }
            largest = fmaxf(largest, got.largest[head]);
            float keep = weight_of(got.largest[head], largest);
            float weight = seen ? exp2f(score - largest) : 0.0f;
            got.total[head] = got.total[head] * keep + weight;
            got.largest[head] = largest;
#pragma unroll
            for (int n = 0; n < 8; n++) got.sum[head][n] *= keep;
            scores[head][lane] = weight;
        }
    }

    __device__ void gather(u32 slot, float (*weights)[32], Gathered<HEADS>& got) const {
        constexpr int BATCH = LANES < 4 ? LANES : 4;
        for (int first = 0; first < LANES; first += BATCH) {
            Pack<8, Element> values[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int at = (first + i) * GROUPS + lane / LANES;
                values[i] = read(p.values + static_cast<u64>(__shfl_sync(~0u, slot, at)) * p.dim);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int at = (first + i) * GROUPS + lane / LANES;
                float value[8];
                widen(value, values[i]);
#pragma unroll
                for (int head = 0; head < HEADS; head++) {
                    float weight = weights[head][at];
#pragma unroll
                    for (int n = 0; n < 8; n++) got.sum[head][n] += weight * value[n];
                }
            }
        }
    }

    // Adds up what the lane groups hold: afterwards the first group has the warp's sums.
    __device__ void join(Gathered<HEADS>& got) const {
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
#pragma unroll
            for (int other = 16; other > 0; other /= 2) {
                got.total[head] += __shfl_xor_sync(~0u, got.total[head], other);
            }
#pragma unroll
            for (int other = LANES; other < 32; other *= 2) {
#pragma unroll
                for (int n = 0; n < 8; n++) {
                    got.sum[head][n] += __shfl_xor_sync(~0u, got.sum[head][n], other);
                }
            }
        }
    }

    __device__ Gathered<HEADS> walk(const float (&query)[HEADS][8], const Span& span, u32 head,
                                    const Chunk& chunk, float (*scores)[32]) const {
        Gathered<HEADS> got = {};
#pragma unroll
        for (int h = 0; h < HEADS; h++) got.largest[h] = __int_as_float(0xff800000);
        for (u32 tile = chunk.begin; tile < chunk.end; tile += TILE) {
            if (tile + warp * 32 >= chunk.end) break;
            u32 position = tile + threadIdx.x;
            bool seen = position < chunk.end;
            u32 slot = place(p.index, span, seen ? position : chunk.begin, p.block_tokens,
                             p.key_heads, head);
            score(query, slot, scores);
            __syncwarp();
            weigh(seen, scores, got);
            __syncwarp();
            gather(slot, scores, got);
            __syncwarp();
        }
        join(got);
        return got;
    }
};

// `count` accumulators of one head, `stride` floats apart, each [largest, total, sum[dim]].
struct Joined {
    float largest, total, sum;
};

__device__ inline Joined join(const float* parts, u32 count, u32 stride, u32 element) {
    Joined all = {__int_as_float(0xff800000), 0.0f, 0.0f};
    for (u32 i = 0; i < count; i++) all.largest = fmaxf(all.largest, parts[i * stride]);
    for (u32 i = 0; i < count; i++) {
        const float* part = parts + i * stride;
        float weight = weight_of(part[0], all.largest);
        all.total += weight * part[1];
        all.sum += weight * part[2 + element];
    }
    return all;
}

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

template <int LANES, int HEADS>
__device__ void attend(const AttentionParams& p) {
    constexpr u32 STRIDE = 2 + LANES * 8;
    __shared__ float scores[WARPS][HEADS][32];
    __shared__ float shares[HEADS][WARPS][STRIDE];
    const u32 group = p.query_heads / p.key_heads, parts = (group + HEADS - 1) / HEADS;
    const u32 key_head = blockIdx.y / parts, first = blockIdx.y % parts * HEADS;
    const u32 heads = min(group - first, HEADS), query_head = key_head * group + first;
    const u32 row = p.work ? p.work[blockIdx.z] : p.first + blockIdx.z;
    const Chunk chunk = chunk_of(p.index.positions[row], p.window, blockIdx.x);
    if (blockIdx.x >= chunk.count) return;

    // The queries, scaled; a head past the group's last stays zero.
    const Rows<LANES, HEADS> rows = {p};
    const u64 fused = static_cast<u64>(p.query_heads + 2 * p.key_heads) * p.dim;
    float query[HEADS][8] = {};
#pragma unroll
    for (u32 head = 0; head < HEADS; head++) {
        if (head >= heads) continue;
        widen(query[head], rows.read(p.qkv + row * fused + (query_head + head) * p.dim));
#pragma unroll
        for (int n = 0; n < 8; n++) query[head][n] *= p.scale;
    }
    const Span span = p.index.spans[p.index.row_span[row]];
    const Gathered<HEADS> got = rows.walk(query, span, key_head, chunk, scores[rows.warp]);

    // The warps meet in shared memory.
#pragma unroll
    for (int head = 0; head < HEADS; head++) {
        float* share = shares[head][rows.warp];
        if (rows.lane == 0) share[0] = got.largest[head], share[1] = got.total[head];
        if (rows.lane >= LANES || !rows.holds) continue;
#pragma unroll
        for (int n = 0; n < 8; n++) share[2 + rows.element + n] = got.sum[head][n];
    }
    __syncthreads();

    // The chunks meet in device memory, unless there is only one.
    const u32 stride = 2 + p.dim;
    const u64 task = static_cast<u64>(blockIdx.z) * gridDim.y + blockIdx.y;
    float* partials = p.partials + task * CHUNKS_MAX * HEADS * stride;
    Element* out = p.out + (static_cast<u64>(row) * p.query_heads + query_head) * p.dim;
    for (u32 i = threadIdx.x; i < heads * p.dim; i += THREADS) {
        u32 head = i / p.dim, element = i % p.dim;
        Joined all = join(&shares[head][0][0], WARPS, STRIDE, element);
        if (chunk.count == 1) {
            from_f32(out[i], all.sum / all.total);
            continue;
        }
        float* partial = partials + (head * CHUNKS_MAX + blockIdx.x) * stride;
        if (element == 0) partial[0] = all.largest, partial[1] = all.total;
        partial[2 + element] = all.sum;
    }
    if (chunk.count == 1 || !last_to_arrive(p.arrivals + task, chunk.count)) return;
    for (u32 i = threadIdx.x; i < heads * p.dim; i += THREADS) {
        u32 head = i / p.dim, element = i % p.dim;
        Joined all = join(partials + head * CHUNKS_MAX * stride, chunk.count, stride, element);
        from_f32(out[i], all.sum / all.total);
    }
}

// Grid: chunks, parts of key/value heads, rows: those that `work` names, or all from `first` on.
// BLOCKS share a multiprocessor: more of them would spill registers.
#define ATTENTION_ROWS(LANES, HEADS, BLOCKS)                              \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)         \
        attention_rows_##LANES##_##HEADS(AttentionParams p) {             \
        attend<LANES, HEADS>(p);                                          \
    }

ATTENTION_ROWS(8, 1, 4)
ATTENTION_ROWS(8, 2, 3)
ATTENTION_ROWS(8, 4, 3)
ATTENTION_ROWS(8, 8, 2)
ATTENTION_ROWS(16, 1, 4)
ATTENTION_ROWS(16, 2, 3)
ATTENTION_ROWS(16, 4, 3)
ATTENTION_ROWS(16, 8, 2)
ATTENTION_ROWS(32, 1, 4)
ATTENTION_ROWS(32, 2, 3)
ATTENTION_ROWS(32, 4, 3)
ATTENTION_ROWS(32, 8, 2)
