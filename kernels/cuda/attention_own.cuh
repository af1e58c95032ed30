// A decoded row's own key and value (attention_decode.cu): rotated and kept for later steps, as
// rope_kv_store.cu does, and left in shared memory for this one, which does not wait for the cache.
#pragma once

#include "attention.cuh"
#include "mma.cuh"

// Queries, keys and values of a row.
template <int DIM>
__device__ inline const Element* row_of(const AttentionParams& p, u32 row) {
    return p.qkv + static_cast<u64>(row) * (p.query_heads + 2 * p.key_heads) * DIM;
}

constexpr u32 NOWHERE = ~0u;  // behind all positions

// A row's own key and value: where they are and where they go, and by which angles the key is rotated.
// All of it is known before they are.
struct Own {
    u32 position = NOWHERE, slot;  // NOWHERE in blocks that do not have the row's position
    const Element *key, *value;
    const float* angles;
};

template <int DIM>
__device__ inline Own own_of(const AttentionParams& p, const Task& task, const Span& span) {
    const u32 position = p.index.positions[task.row];
    const u32 slot = place(p.index, span, position, p.block_tokens, p.key_heads, task.key_head);
    const Element* key = row_of<DIM>(p, task.row) + (p.query_heads + task.key_head) * DIM;
    const float* angles = p.table + static_cast<u64>(position) * DIM;
    constexpr u32 LINE = 32;  // elements
    if (threadIdx.x * LINE < DIM) {
        asm volatile("prefetch.global.L1 [%0];" ::"l"(angles + threadIdx.x * LINE));
    }
    return {task.chunk.end == position + 1 ? position : NOWHERE, slot, key, key + p.key_heads * DIM,
            angles};
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

    // What a thread brings: a key's parts that are rotated together, or one of a value.
    struct Brought {
        uint4 low, high;
    };

    __device__ static Brought fetch(const Own& own) {
        Brought brought = {};
        const u32 i = threadIdx.x;
        if (own.position == NOWHERE || i >= TURNS + COPIES) return brought;
        brought.low = i < TURNS ? part_of<DIM>(own.key, 0, i) : part_of<DIM>(own.value, 0, i - TURNS);
        if (i < TURNS) brought.high = part_of<DIM>(own.key, 0, TURNS + i);
        return brought;
    }

    // Writes it to where later steps find it, too. Blocks that share a key/value head write the same.
    __device__ void put(const AttentionParams& p, const Own& own, Brought brought) {
        u32 i = threadIdx.x;
        if (own.position == NOWHERE || i >= TURNS + COPIES) return;
        if (i < TURNS) {
            turn(brought.low, brought.high, own.angles + i * 8, DIM / 2);
            key[i] = brought.low, key[TURNS + i] = brought.high;
            write_part<DIM>(p.keys, own.slot, i, brought.low);
            write_part<DIM>(p.keys, own.slot, TURNS + i, brought.high);
        } else {
            i -= TURNS;
            value[i] = brought.low;
            write_part<DIM>(p.values, own.slot, i, brought.low);
        }
    }
};
