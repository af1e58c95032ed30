// out = sum of softmax(scale * query . key) * value over the positions that one row sees, where
// tensor cores do not serve: f32, and unusual head widths.
// A block takes a chunk of the positions of one row, and up to HEADS query heads that share a
// key/value head, so that keys and values are read once for all of them. Each warp keeps a running
// softmax over its own positions.
#include "attention.cuh"

// What one warp has gathered. A lane holds 8 of the head's elements; LANES lanes hold a position.
template <int HEADS>
struct Gathered {
    float largest[HEADS], total[HEADS], sum[HEADS][8];
};

template <int LANES, int HEADS>
struct Rows {
    static constexpr int GROUPS = 32 / LANES;  // positions that a warp reads at once
    static constexpr int BATCH = 4;            // times that, in flight at once

    const AttentionParams& p;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 element = lane % LANES * 8;
    bool holds = element < p.dim;

    // This lane's elements of a head; zeros past its end.
    __device__ Pack<8, Element> read(const Element* head) const {
        if (!holds) return {};
        if (p.dim % 8 == 0) return fetch<8>(head + element);
        Element elements[8] = {};
#pragma unroll
        for (int n = 0; n < 8; n++) {
            if (element + n < p.dim) elements[n] = head[element + n];
        }
        Pack<8, Element> pack;
        memcpy(&pack.raw, elements, sizeof(elements));
        return pack;
    }

    // Of the positions that lie in `slot` of each lane, BATCH that this lane helps to read.
    __device__ void read_batch(Pack<8, Element> (&to)[BATCH], const Element* cache, u32 slot,
                               int first) const {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            u64 at = __shfl_sync(~0u, slot, (first + i) * GROUPS + lane / LANES);
            to[i] = read(cache + at * p.dim);
        }
    }

    // Scores of 32 positions, one a lane, into `scores[head][lane]`.
    __device__ void score(const float (&query)[HEADS][8], u32 slot, float (*scores)[32]) const {
        for (int first = 0; first < LANES; first += BATCH) {
            Pack<8, Element> keys[BATCH];
            read_batch(keys, p.keys, slot, first);
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
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
                    int at = (first + i) * GROUPS + lane / LANES;
                    if (lane % LANES == 0) scores[head][at] = score;
                }
            }
        }
    }

    // Turns scores into weights and makes room for them in the running softmax.
    __device__ void weigh(bool seen, float (*scores)[32], Gathered<HEADS>& got) const {
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
            float score = seen ? scores[head][lane] : minus_infinity();
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
        for (int first = 0; first < LANES; first += BATCH) {
            Pack<8, Element> values[BATCH];
            read_batch(values, p.values, slot, first);
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                float value[8];
                widen(value, values[i]);
#pragma unroll
                for (int head = 0; head < HEADS; head++) {
                    float weight = weights[head][(first + i) * GROUPS + lane / LANES];
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

    __device__ Gathered<HEADS> walk(const float (&query)[HEADS][8], const Task& task,
                                    float (*scores)[32]) const {
        Gathered<HEADS> got = {};
#pragma unroll
        for (int h = 0; h < HEADS; h++) got.largest[h] = minus_infinity();
        const Span span = p.index.spans[p.index.row_span[task.row]];
        const u32 begin = task.chunk.begin, end = task.chunk.end;
        for (u32 first = begin + warp * 32; first < end; first += TILE) {
            bool seen = first + lane < end;
            u32 slot = place(p.index, span, seen ? first + lane : first, p.block_tokens,
                             p.key_heads, task.key_head);
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

template <int LANES, int HEADS>
__device__ void attend(const AttentionParams& p) {
    __shared__ float scores[WARPS][HEADS][32];
    __shared__ Share<LANES * 8> shares[WARPS][HEADS];
    wait_for_previous();
    const Task task = task_of<HEADS>(p);
    if (blockIdx.x >= task.chunk.count) return;

    // The queries, scaled; a head past the group's last stays zero.
    const Rows<LANES, HEADS> rows = {p};
    const u64 fused = static_cast<u64>(p.query_heads + 2 * p.key_heads) * p.dim;
    float query[HEADS][8] = {};
#pragma unroll
    for (u32 head = 0; head < HEADS; head++) {
        if (head >= task.heads) continue;
        const Element* from = p.qkv + task.row * fused + (task.query_head + head) * p.dim;
        widen(query[head], rows.read(from));
#pragma unroll
        for (int n = 0; n < 8; n++) query[head][n] *= p.scale;
    }
    const Gathered<HEADS> got = rows.walk(query, task, scores[rows.warp]);
#pragma unroll
    for (int head = 0; head < HEADS; head++) {
        Share<LANES * 8>& share = shares[rows.warp][head];
        if (rows.lane == 0) share.largest = got.largest[head], share.total = got.total[head];
        if (rows.lane >= LANES) continue;
#pragma unroll
        for (int n = 0; n < 8; n++) share.sum[rows.element + n] = got.sum[head][n];
    }
    finish<HEADS>(p, task, shares);
}

// BLOCKS share a multiprocessor: more of them would spill registers.
#define ATTENTION_ROWS(LANES, HEADS, BLOCKS)                      \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
        attention_rows_##LANES##_##HEADS(AttentionParams p) {     \
        attend<LANES, HEADS>(p);                                  \
    }

ATTENTION_ROWS(8, 1, 3)
ATTENTION_ROWS(8, 4, 2)
ATTENTION_ROWS(16, 1, 3)
ATTENTION_ROWS(16, 4, 2)
ATTENTION_ROWS(32, 1, 3)
ATTENTION_ROWS(32, 4, 2)
