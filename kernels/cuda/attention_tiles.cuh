// What kernels of prefill's attention share (attention_tiles.cu, attention_groups.cu): how tiles of keys
// and values come to shared memory, and the running softmax of rows whose scores are in registers. A
// kernel's `S` says how many warps there are, and where a row's 16-byte pieces are in a tile.
#pragma once

#include "mma.cuh"
#include "paged.cuh"

// What is said about 16 rows, in the layout of a product's result: a lane knows two of them.
template <int DIM>
struct Gathered {
    float largest[2], total[2], sum[DIM / 8][4];
};

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

// 2^x, and 0 where that is no normal number.
__device__ inline float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// Copies keys and values of `S::KEYS` positions at a time, some of them by each warp. A lane knows the
// block of one of them: asked for a tile ahead, it is there when it is needed.
template <class S>
struct Copier {
    static constexpr u32 MINE = S::KEYS / S::WARPS, CHUNKS = S::DIM / 8;

    const AttentionParams& p;
    Span span;
    u32 head, end;
    u32 first;  // of the warp's positions
    u32 block, within;

    __device__ void look_up() {
        const u32 position = min(first + threadIdx.x % 32 % MINE, end - 1);
        block = p.index.blocks[span.blocks + position / p.block_tokens];
        within = position % p.block_tokens;
    }

    // Starts copying the first tile, from a position on.
    __device__ void start(u32 begin, u32 tile) {
        first = begin + threadIdx.x / 32 * MINE;
        look_up();
        copy(tile);
        commit_copies();
    }

    // Starts copying the next tile of keys, and behind it that of values.
    __device__ void copy(u32 tile) {
        const u32 row = threadIdx.x / 32 * MINE;
        const u32 slot = (block * p.key_heads + head) * p.block_tokens + within;
#pragma unroll
        for (u32 i = 0; i < MINE * CHUNKS; i += 32) {
            const u32 chunk = i + threadIdx.x % 32;
            const u32 r = chunk / CHUNKS, c = chunk % CHUNKS;
            const u64 from = static_cast<u64>(__shfl_sync(~0u, slot, r)) * S::DIM + c * 8;
            if (chunk >= MINE * CHUNKS) break;
            const u32 to = tile + S::at(row + r, c, S::KEYS);
            const bool exists = first + r < end;
            copy_16(to, p.keys + from, exists);
            copy_16(to + S::TILE_BYTES, p.values + from, exists);
        }
        first += S::KEYS;
        look_up();
    }
};

// The queries start copying to shared memory; rows that there are not are zeros.
template <class S>
__device__ inline void copy_queries(const AttentionParams& p, u32 first, u32 rows, u32 to) {
    constexpr u32 CHUNKS = S::DIM / 8;
    const u64 fused = static_cast<u64>(p.query_heads + 2 * p.key_heads) * S::DIM;
    for (u32 i = threadIdx.x; i < S::ROWS * CHUNKS; i += S::WARPS * 32) {
        const u32 row = i / CHUNKS, c = i % CHUNKS;
        const Element* from = p.qkv + (first + min(row, rows - 1)) * fused + blockIdx.x * S::DIM + c * 8;
        copy_16(to + S::at(row, c, S::ROWS), from, row < rows);
    }
}

// Where the first tile starts that rows from a position on see some of.
template <class S>
__device__ inline u32 first_seen(const AttentionParams& p, u32 position) {
    const u32 begin = p.window > 0 && position + 1 > p.window ? position + 1 - p.window : 0;
    return begin / S::KEYS * S::KEYS;
}

// Hides what a row does not see: later positions, and those before its window.
template <int N>
__device__ inline void hide(float (&scores)[N][4], u32 first, u32 position, u32 window) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 key = first + n * 8 + lane % 4 * 2 + i % 2, query = position + i / 2 * 8;
            bool seen = key <= query && (window == 0 || key + window > query);
            if (!seen) scores[n][i] = minus_infinity();
        }
    }
}

// Turns scores into weights and makes room for them in the running softmax: once the largest score
// of every row was met, there is none to make.
template <int DIM, int N>
__device__ inline void weigh(float (&scores)[N][4], float scale, Gathered<DIM>& got) {
    float keep[2];
    bool grows = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float largest = got.largest[half];
#pragma unroll
        for (int n = 0; n < N; n++) {
            largest = fmaxf(largest, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        // A row that has seen nothing yet has weights of 0, not of NaN.
        const float base = largest == minus_infinity() ? 0.0f : largest * scale;
        const bool larger = largest > got.largest[half];
        keep[half] = larger ? power_of_two(got.largest[half] * scale - base) : 1.0f;
        grows |= larger;
        got.largest[half] = largest;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = half * 2; i < half * 2 + 2; i++) {
                scores[n][i] = power_of_two(scores[n][i] * scale - base);
                total += scores[n][i];
            }
        }
        got.total[half] = got.total[half] * keep[half] + total;
    }
    if (!__any_sync(~0u, grows)) return;
#pragma unroll
    for (int d = 0; d < DIM / 8; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) got.sum[d][i] *= keep[i / 2];
    }
}

template <int DIM>
__device__ inline void write(const AttentionParams& p, u32 row, u32 end, u32 head,
                             Gathered<DIM>& got) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++, row += 8) {
        float total = got.total[half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        if (row >= end) continue;
        Element* out = p.out + (static_cast<u64>(row) * p.query_heads + head) * DIM;
#pragma unroll
        for (int d = 0; d < DIM / 8; d++) {
            const float(&sum)[4] = got.sum[d];
            u32 both = pair_of(sum[half * 2] / total, sum[half * 2 + 1] / total);
            *reinterpret_cast<u32*>(out + d * 8 + lane % 4 * 2) = both;
        }
    }
}
