// out = sum of softmax(scale * query . key) * value over the positions that one row sees, on tensor
// cores: decode of 16-bit models. Where it is given angles, it first does what rope_kv_store.cu does.
// Up to 8 query heads that share a key/value head are the columns of both products, so that keys
// and values are read once for all of them: S^T = K Q^T, and O^T = V^T P^T. Keys and values go from
// memory to registers, 16 bytes a lane, as they lie: a product does not mind in which order it
// meets the elements of a head, as long as both operands agree, nor an output which of its rows is
// which.
//
// For 16 positions of one warp, lane l = 4 g + t holds
//   of K^T, for every 32 elements of the head: elements 8 t to 8 t + 7 of positions g and g + 8;
//   of S^T and P^T: positions g and g + 8, heads 2 t and 2 t + 1;
//   of V^T, for every 64 elements: elements 8 g to 8 g + 7 of positions 2 t, 2 t + 1, 2 t + 8 and
//     2 t + 9;
//   of O^T, for every 64 elements: elements 8 g to 8 g + 7 of heads 2 t and 2 t + 1.
// Where only 32 elements are left of a head, the last two lines have 4 g to 4 g + 3.
#include "attention.cuh"
#include "mma.cuh"

constexpr int HEADS = 8;

// Two positions' pairs of elements, turned into two elements' pairs of positions.
__device__ inline void interleave(u32 a, u32 b, u32& low, u32& high) {
    low = __byte_perm(a, b, 0x5410);
    high = __byte_perm(a, b, 0x7632);
}

// Whether both halves of a pair of elements that are rotated together are one lane's.
template <int DIM>
__device__ constexpr bool turns() {
    return DIM % 64 == 0;
}

// Queries, keys and values of a row.
template <int DIM>
__device__ inline const Element* row_of(const AttentionParams& p, u32 row) {
    return p.qkv + static_cast<u64>(row) * (p.query_heads + 2 * p.key_heads) * DIM;
}

// Where a row's own keys and values go, and by which angles it is rotated: known before they are.
struct Own {
    u32 position, slot;
    const float* angles;
};

template <int DIM>
__device__ inline Own own_of(const AttentionParams& p, const Task& task, const Span& span) {
    const u32 position = p.index.positions[task.row];
    const u32 slot = place(p.index, span, position, p.block_tokens, p.key_heads, task.key_head);
    const float* angles = p.table + static_cast<u64>(position) * DIM;
    constexpr u32 LINE = 32;  // elements
    if (threadIdx.x * LINE < DIM) {
        asm volatile("prefetch.global.L1 [%0];" ::"l"(angles + threadIdx.x * LINE));
    }
    return {position, slot, angles};
}

// Rotates 8 pairs of elements by their angles, as rope_kv_store.cu does.
__device__ inline void turn(Pack<8, Element>& first, Pack<8, Element>& second, const float* cosines,
                            u32 half) {
    float x[8], y[8], cos[8], sin[8], low[8], high[8];
    widen(x, first);
    widen(y, second);
    load(cos, cosines);
    load(sin, cosines + half);
#pragma unroll
    for (int n = 0; n < 8; n++) {
        low[n] = x[n] * cos[n] - y[n] * sin[n];
        high[n] = y[n] * cos[n] + x[n] * sin[n];
    }
    first.raw.words = uint4{pair_of(low[0], low[1]), pair_of(low[2], low[3]),
                            pair_of(low[4], low[5]), pair_of(low[6], low[7])};
    second.raw.words = uint4{pair_of(high[0], high[1]), pair_of(high[2], high[3]),
                             pair_of(high[4], high[5]), pair_of(high[6], high[7])};
}

// Rotates the row's own key, and writes key and value to where the block finds them with the others.
// Blocks that share them write the same.
template <int DIM>
__device__ inline void keep_own(const AttentionParams& p, const Task& task, const Own& own) {
    if (task.chunk.end != own.position + 1) return;
    const u64 at = static_cast<u64>(own.slot) * DIM;
    const Element* key = row_of<DIM>(p, task.row) + (p.query_heads + task.key_head) * DIM;
    const Element* value = key + p.key_heads * DIM;
    constexpr u32 TURNS = DIM / 16, COPIES = DIM / 8;  // threads
    static_assert(TURNS + COPIES <= THREADS, "8 elements a thread");
    if (threadIdx.x < TURNS) {
        const u32 i = threadIdx.x * 8;
        Pack<8, Element> low = fetch<8>(key + i), high = fetch<8>(key + DIM / 2 + i);
        turn(low, high, own.angles + i, DIM / 2);
        *reinterpret_cast<uint4*>(p.keys + at + i) = low.raw.words;
        *reinterpret_cast<uint4*>(p.keys + at + DIM / 2 + i) = high.raw.words;
    } else if (threadIdx.x < TURNS + COPIES) {
        const u32 i = (threadIdx.x - TURNS) * 8;
        *reinterpret_cast<uint4*>(p.values + at + i) = fetch<8>(value + i).raw.words;
    }
    __syncthreads();
}

// 8 elements of a key or value. Counted in parts, 32 bits reach all of a cache.
template <int DIM>
__device__ inline uint4 part_of(const Element* cache, u32 slot, u32 part) {
    return reinterpret_cast<const uint4*>(cache)[slot * (DIM / 8) + part];
}

template <int DIM>
struct Decode {
    static constexpr int STEPS = DIM / 16;  // products that a score takes
    static constexpr int TILES = DIM / 16;  // products that 16 positions' values take
    // Of the values, 64 elements at a time, those that there are registers for beside the keys.
    static constexpr int EARLY = DIM > 128 ? 0 : DIM / 64;

    u32 query[STEPS][2];
    float largest[2], total[2], sum[TILES][4];

    __device__ Decode(const AttentionParams& p, const Task& task, const Own& own) {
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const Element* from = row_of<DIM>(p, task.row) + (task.query_head + g) * DIM + t * 8;
        Pack<8, Element> raw[DIM / 32] = {};
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            if (g < task.heads) raw[i] = fetch<8>(from + i * 32);
        }
        if constexpr (turns<DIM>()) {
#pragma unroll
            for (int i = 0; i < DIM / 64 && p.table; i++) {
                turn(raw[i], raw[i + DIM / 64], own.angles + i * 32 + t * 8, DIM / 2);
            }
        }
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            const uint4 words = raw[i].raw.words;
            query[2 * i][0] = words.x, query[2 * i][1] = words.y;
            query[2 * i + 1][0] = words.z, query[2 * i + 1][1] = words.w;
        }
        largest[0] = largest[1] = minus_infinity();
        total[0] = total[1] = 0.0f;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[tile][i] = 0.0f;
        }
    }

    // The 16 positions that lie in `slot` of the lanes from `first` on, of which `seen` are seen.
    __device__ void take(const AttentionParams& p, u32 slot, u32 first, u32 seen) {
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        auto slot_of = [&](u32 i) { return __shfl_sync(~0u, slot, first + i); };
        const u32 low = slot_of(g), high = slot_of(g + 8);
        const u32 slots[4] = {slot_of(2 * t), slot_of(2 * t + 1), slot_of(2 * t + 8),
                              slot_of(2 * t + 9)};
        uint4 keys[DIM / 32][2];
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            keys[i][0] = part_of<DIM>(p.keys, low, i * 4 + t);
            keys[i][1] = part_of<DIM>(p.keys, high, i * 4 + t);
        }
        float scores[4] = {};
        uint4 values[DIM / 64][4];
        auto fetch_values = [&](int i) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                values[i][n] = part_of<DIM>(p.values, slots[n], i * 8 + g);
            }
        };
#pragma unroll
        for (int i = 0; i < EARLY; i++) fetch_values(i);
        score(scores, keys);
#pragma unroll
        for (int i = EARLY; i < DIM / 64; i++) fetch_values(i);
        u32 weights[2];
        weigh(scores, p.scale, seen, weights);
        gather(values, weights);
        if constexpr (DIM % 64 != 0) {
            uint2 rest[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                rest[n] = fetch<4>(p.values + static_cast<u64>(slots[n]) * DIM + DIM / 64 * 64 + g * 4).raw.words;
            }
            add(DIM / 64 * 4, rest[0].x, rest[1].x, rest[2].x, rest[3].x, weights);
            add(DIM / 64 * 4 + 1, rest[0].y, rest[1].y, rest[2].y, rest[3].y, weights);
        }
    }

    __device__ void score(float (&scores)[4], const uint4 (&keys)[DIM / 32][2]) const {
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            const uint4 a = keys[i][0], b = keys[i][1];
            const u32 first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
            multiply_add(scores, first, query[2 * i][0], query[2 * i][1]);
            multiply_add(scores, second, query[2 * i + 1][0], query[2 * i + 1][1]);
        }
        if constexpr (EARLY < DIM / 64) asm volatile("" ::: "memory");  // no load moves up
    }

    // Turns scores into weights and makes room for them in the running softmax.
    __device__ void weigh(float (&scores)[4], float scale, u32 seen, u32 (&weights)[2]) {
        const u32 g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[i] = g + i / 2 * 8 < seen ? scores[i] * scale : minus_infinity();
        }
        float keep[2];
#pragma unroll
        for (int head = 0; head < 2; head++) {
            float most = fmaxf(scores[head], scores[head + 2]);
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 4));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 8));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 16));
            most = fmaxf(most, largest[head]);
            keep[head] = exp2f(largest[head] - most);
            largest[head] = most;
            scores[head] = exp2f(scores[head] - most);
            scores[head + 2] = exp2f(scores[head + 2] - most);
            total[head] = total[head] * keep[head] + scores[head] + scores[head + 2];
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[tile][i] *= keep[i % 2];
        }
        weights[0] = transpose(pair_of(scores[0], scores[1]));
        weights[1] = transpose(pair_of(scores[2], scores[3]));
    }

    __device__ void gather(const uint4 (&values)[DIM / 64][4], const u32 (&weights)[2]) {
#pragma unroll
        for (int i = 0; i < DIM / 64; i++) {
            const uint4 a = values[i][0], b = values[i][1], c = values[i][2], d = values[i][3];
            add(4 * i, a.x, b.x, c.x, d.x, weights);
            add(4 * i + 1, a.y, b.y, c.y, d.y, weights);
            add(4 * i + 2, a.z, b.z, c.z, d.z, weights);
            add(4 * i + 3, a.w, b.w, c.w, d.w, weights);
        }
    }

    // Two elements of four positions each.
    __device__ void add(int tile, u32 a, u32 b, u32 c, u32 d, const u32 (&weights)[2]) {
        u32 value[4];
        interleave(a, b, value[0], value[1]);
        interleave(c, d, value[2], value[3]);
        multiply_add(sum[tile], value, weights[0], weights[1]);
    }

    __device__ void share(Share<DIM> (*shares)[WARPS]) {
        const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int head = 0; head < 2; head++) {
            Share<DIM>& share = shares[2 * t + head][warp];
            total[head] += __shfl_xor_sync(~0u, total[head], 4);
            total[head] += __shfl_xor_sync(~0u, total[head], 8);
            total[head] += __shfl_xor_sync(~0u, total[head], 16);
            if (g == 0) share.largest = largest[head], share.total = total[head];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                int wide = DIM / 64 * 4, rest = tile - wide;
                u32 element = rest < 0 ? tile / 4 * 64 + g * 8 + tile % 4 * 2
                                       : DIM / 64 * 64 + g * 4 + rest * 2;
                share.sum[element] = sum[tile][head];
                share.sum[element + 1] = sum[tile][head + 2];
            }
        }
    }
};

// Where the positions of a tile lie that this warp takes, one a lane; past the end, the last one.
__device__ inline u32 slot_of(const AttentionParams& p, const Task& task, const Span& span,
                              u32 first) {
    const u32 position = min(first + threadIdx.x % 32, task.chunk.end - 1);
    return place(p.index, span, position, p.block_tokens, p.key_heads, task.key_head);
}

// Has a position's keys and values brought to the cache.
template <int DIM>
__device__ inline void bring(const AttentionParams& p, u32 slot) {
    const u64 at = static_cast<u64>(slot) * DIM;
#pragma unroll
    for (int line = 0; line < DIM; line += 64) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.keys + at + line));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.values + at + line));
    }
}

// Where everything lies is known before the row's own keys and values are, and older ones are on
// their way by then.
template <int DIM>
__device__ void attend(const AttentionParams& p) {
    extern __shared__ float shared[];
    auto shares = reinterpret_cast<Share<DIM>(*)[WARPS]>(shared);
    const Task task = task_of<HEADS>(p);
    if (blockIdx.x >= task.chunk.count) return wait_for_previous();
    const Span span = p.index.spans[p.index.row_span[task.row]];
    const u32 warp = threadIdx.x / 32, begin = task.chunk.begin + warp * 32, end = task.chunk.end;
    u32 slot = 0;
    for (u32 tile = 0; tile < CHUNK_TILES_MIN && begin + tile * TILE < end; tile++) {
        u32 brought = slot_of(p, task, span, begin + tile * TILE);
        bring<DIM>(p, brought);
        if (tile == 0) slot = brought;
    }
    Own own = {};
    if constexpr (turns<DIM>()) {
        if (p.table) own = own_of<DIM>(p, task, span);
    }
    wait_for_previous();
    // Its queries are asked for before its keys and values are kept, which a barrier follows.
    Decode<DIM> decode(p, task, own);
    if constexpr (turns<DIM>()) {
        if (p.table) keep_own<DIM>(p, task, own);
    }
    for (u32 first = begin; first < end; first += TILE) {
        if (first > begin) slot = slot_of(p, task, span, first);
        decode.take(p, slot, 0, end - first);
        if (first + 16 < end) decode.take(p, slot, 16, end - first - 16);
    }
    decode.share(shares);
    finish<HEADS>(p, task, shares);
}

// BLOCKS share a multiprocessor: more of them would spill registers.
#define ATTENTION_DECODE(DIM, BLOCKS)                             \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
        attention_decode_##DIM(AttentionParams p) {               \
        attend<DIM>(p);                                           \
    }

ATTENTION_DECODE(64, 3)
ATTENTION_DECODE(96, 2)
ATTENTION_DECODE(128, 2)
ATTENTION_DECODE(256, 1)
