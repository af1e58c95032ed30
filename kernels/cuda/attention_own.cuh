// A decoded row's own queries, key and value (attention_decode.cu), which a block brings to shared memory.
// Key and value are rotated and kept for later steps, as rope_kv_store.cu does, and are there for this
// one, which does not wait for the cache.
#pragma once

#include "attention.cuh"
#include "mma.cuh"

constexpr int HEADS = 8;       // of queries that a block takes
constexpr u32 SPLITS_MAX = 6;  // kernels/src/cuda/gemm_stream/cut.rs makes no more

// A row's queries of one block, and their key and value.
template <int DIM>
struct Heads {
    static constexpr u32 KEY = HEADS, VALUE = HEADS + 1, PARTS = DIM / 8;  // of 8 elements

    uint4 parts[HEADS + 2][PARTS];

    // Queries that are not there stay as they are.
    __device__ void bring(const AttentionParams& p, const Task& task) {
#pragma unroll
        for (u32 i = threadIdx.x; i < (HEADS + 2) * PARTS; i += THREADS) {
            const u32 head = i / PARTS, part = i % PARTS;
            if (head >= task.heads && head < HEADS) continue;
            const u32 of_row = head < HEADS ? task.query_head + head
                                            : p.query_heads + task.key_head + (head - KEY) * p.key_heads;
            parts[head][part] = part_of_row(p, task.row, of_row * DIM + part * 8);
        }
    }

    // 8 elements; of splits, all parts are asked for before one is added.
    __device__ static uint4 part_of_row(const AttentionParams& p, u32 row, u32 element) {
        const u32 width = (p.query_heads + 2 * p.key_heads) * DIM;
        const u64 at = static_cast<u64>(row) * width + element;
        if (p.splits == 0) return __ldcg(reinterpret_cast<const uint4*>(p.qkv + at));
        float4 shares[SPLITS_MAX][2] = {};
#pragma unroll
        for (u32 i = 0; i < SPLITS_MAX; i++) {
            if (i >= p.splits) continue;
            const auto from = reinterpret_cast<const float4*>(p.shares + i * u64{p.rows} * width + at);
            shares[i][0] = __ldcg(from), shares[i][1] = __ldcg(from + 1);
        }
        float4 low = {}, high = {};
#pragma unroll
        for (u32 i = 0; i < SPLITS_MAX; i++) add(low, shares[i][0]), add(high, shares[i][1]);
        return {pair_of(low.x, low.y), pair_of(low.z, low.w), pair_of(high.x, high.y),
                pair_of(high.z, high.w)};
    }

    __device__ static void add(float4& sum, float4 share) {
        sum.x += share.x, sum.y += share.y, sum.z += share.z, sum.w += share.w;
    }
};

constexpr u32 NOWHERE = ~0u;  // behind all positions

// Where a row's own key and value go, and by which angles the key is rotated: known before they are.
struct Own {
    u32 position = NOWHERE, slot;  // NOWHERE in blocks that do not have the row's position
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
    return {task.chunk.end == position + 1 ? position : NOWHERE, slot, angles};
}

// Rotates two pairs of elements by their angles, as rope_kv_store.cu does.
__device__ inline void turn(u32& first, u32& second, float2 cosines, float2 sines) {
    float x[2], y[2];
    widen(x, Pack<2, Element>{first});
    widen(y, Pack<2, Element>{second});
    first = pair_of(x[0] * cosines.x - y[0] * sines.x, x[1] * cosines.y - y[1] * sines.y);
    second = pair_of(y[0] * cosines.x + x[0] * sines.x, y[1] * cosines.y + x[1] * sines.y);
}

// 8 pairs.
__device__ inline void turn(uint4& first, uint4& second, const float* cosines, u32 half) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float4 cos = reinterpret_cast<const float4*>(cosines)[i];
        const float4 sin = reinterpret_cast<const float4*>(cosines + half)[i];
        u32 &x = i ? first.z : first.x, &y = i ? second.z : second.x;
        u32 &z = i ? first.w : first.y, &w = i ? second.w : second.y;
        turn(x, y, {cos.x, cos.y}, {sin.x, sin.y});
        turn(z, w, {cos.z, cos.w}, {sin.z, sin.w});
    }
}

// 8 elements of a key or value. Counted in parts, 32 bits reach all of a cache.
template <int DIM>
__device__ inline void write_part(Element* cache, u32 slot, u32 part, uint4 what) {
    reinterpret_cast<uint4*>(cache)[slot * (DIM / 8) + part] = what;
}

// It comes from the L2 cache, as no block needs it twice, and L1 may not hear of who writes it.
template <int DIM>
__device__ inline uint4 part_of(const Element* cache, u32 slot, u32 part) {
    return __ldcg(reinterpret_cast<const uint4*>(cache) + slot * (DIM / 8) + part);
}

// A row's own key, rotated, and value, in shared memory.
template <int DIM>
struct OwnParts {
    static constexpr u32 TURNS = DIM / 16, COPIES = DIM / 8;  // threads that bring a key, and a value
    static_assert(TURNS + COPIES <= THREADS, "8 elements a thread");

    uint4 key[DIM / 8], value[DIM / 8];

    // Writes them to where later steps find them, too. Blocks that share a key/value head write the same.
    // A thread has a key's parts that are rotated together, or one of a value.
    __device__ void put(const AttentionParams& p, const Own& own, const Heads<DIM>& heads) {
        u32 i = threadIdx.x;
        if (own.position == NOWHERE || i >= TURNS + COPIES) return;
        if (i < TURNS) {
            uint4 low = heads.parts[heads.KEY][i], high = heads.parts[heads.KEY][TURNS + i];
            turn(low, high, own.angles + i * 8, DIM / 2);
            key[i] = low, key[TURNS + i] = high;
            write_part<DIM>(p.keys, own.slot, i, low);
            write_part<DIM>(p.keys, own.slot, TURNS + i, high);
        } else {
            i -= TURNS;
            value[i] = heads.parts[heads.VALUE][i];
            write_part<DIM>(p.values, own.slot, i, value[i]);
        }
    }
};
