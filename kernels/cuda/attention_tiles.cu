// out = softmax(scale * Q K^T) V for 64 rows of one sequence and one query head at a time, on
// tensor cores: prefill of 16-bit models (the forward pass of arXiv 2307.08691).
// Each warp holds 16 of the rows. Keys and values stream through shared memory, one tile ahead of
// the products. Scores become weights in registers: the result of one product is laid out as the
// next one wants its left operand. Rows of a tile are 16 bytes longer in shared memory than they
// need be: then the 8 rows that a matrix load reads lie in different banks.
#include "mma.cuh"
#include "paged.cuh"

constexpr int THREADS = 128, WARPS = THREADS / 32, ROWS = 16 * WARPS;

template <int DIM>
struct Shape {
    static constexpr int KEYS = DIM > 128 ? 32 : 64;  // positions of one tile
    static constexpr int STRIDE = DIM + 8;
    static constexpr int CHUNKS = DIM / 8;  // 16-byte pieces of a row
};

// What is said about 16 rows, in the layout of a product's result: a lane knows two of them.
template <int DIM>
struct Gathered {
    float largest[2], total[2], sum[DIM / 8][4];
};

// The part of the cache that one block reads.
struct Source {
    const AttentionParams& p;
    Span span;
    u32 head, end;
};

// Starts copying the keys or values of `Shape::KEYS` positions from `first` on; lane i of a warp
// finds the place of the warp's i-th position, and all of them copy.
template <int DIM>
__device__ inline void fetch_tile(const Source& source, const Element* cache, u32 first,
                                  Element* to) {
    using S = Shape<DIM>;
    constexpr int MINE = S::KEYS / WARPS;
    const AttentionParams& p = source.p;
    u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * MINE;
    u32 position = min(first + row + lane % MINE, source.end - 1);
    u32 slot = place(p.index, source.span, position, p.block_tokens, p.key_heads, source.head);
#pragma unroll
    for (u32 chunk = lane; chunk < MINE * S::CHUNKS; chunk += 32) {
        u32 r = chunk / S::CHUNKS, c = chunk % S::CHUNKS * 8;
        u64 from = static_cast<u64>(__shfl_sync(~0u, slot, r)) * DIM + c;
        copy_16(to + (row + r) * S::STRIDE + c, cache + from, first + row + r < source.end);
    }
}

// scores[n] = Q K^T of 16 rows and positions 8 n to 8 n + 7 of a tile.
template <int DIM>
__device__ inline void score(float (&scores)[Shape<DIM>::KEYS / 8][4], const Element* queries,
                             const Element* keys) {
    using S = Shape<DIM>;
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < DIM; k += 16) {
        u32 q[4];
        load_matrices(q, queries + lane % 16 * S::STRIDE + k + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < S::KEYS; n += 16) {
            u32 key[4];
            u32 row = n + lane / 16 * 8 + lane % 8;
            load_matrices(key, keys + row * S::STRIDE + k + lane / 8 % 2 * 8);
            multiply_add(scores[n / 8], q, key[0], key[1]);
            multiply_add(scores[n / 8 + 1], q, key[2], key[3]);
        }
    }
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
            if (!seen) scores[n][i] = __int_as_float(0xff800000);
        }
    }
}

// Turns scores into weights and makes room for them in the running softmax.
template <int DIM, int N>
__device__ inline void weigh(float (&scores)[N][4], float scale, Gathered<DIM>& got) {
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
        float base = largest == __int_as_float(0xff800000) ? 0.0f : largest * scale;
        float keep = exp2f(got.largest[half] * scale - base), total = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = half * 2; i < half * 2 + 2; i++) {
                scores[n][i] = exp2f(scores[n][i] * scale - base);
                total += scores[n][i];
            }
        }
        got.total[half] = got.total[half] * keep + total;
        got.largest[half] = largest;
#pragma unroll
        for (int d = 0; d < DIM / 8; d++) {
            got.sum[d][half * 2] *= keep;
            got.sum[d][half * 2 + 1] *= keep;
        }
    }
}

template <int DIM, int N>
__device__ inline void gather(const float (&weights)[N][4], const Element* values,
                              Gathered<DIM>& got) {
    using S = Shape<DIM>;
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        const float(&low)[4] = weights[2 * k];
        const float(&high)[4] = weights[2 * k + 1];
        const u32 weight[4] = {pair_of(low[0], low[1]), pair_of(low[2], low[3]),
                               pair_of(high[0], high[1]), pair_of(high[2], high[3])};
#pragma unroll
        for (int d = 0; d < DIM; d += 16) {
            u32 value[4];
            load_transposed(value, values + (k * 16 + lane % 16) * S::STRIDE + d + lane / 16 * 8);
            multiply_add(got.sum[d / 8], weight, value[0], value[1]);
            multiply_add(got.sum[d / 8 + 1], weight, value[2], value[3]);
        }
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

template <int DIM>
__device__ void attend(const AttentionParams& p) {
    using S = Shape<DIM>;
    extern __shared__ __align__(16) Element shared[];
    wait_for_previous();
    Element* queries = shared;
    Element* tiles = shared + ROWS * S::STRIDE;  // keys, values, keys, values
    constexpr int TILE = S::KEYS * S::STRIDE;
    const Span span = p.index.spans[p.work[blockIdx.x * 2]];
    const u32 first = p.work[blockIdx.x * 2 + 1], end = span.row + span.rows, head = blockIdx.y;
    const u32 rows = min(end - first, ROWS), warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    // Which positions do these rows see?
    const u32 position = p.index.positions[first];
    const Source source = {p, span, head / (p.query_heads / p.key_heads), position + rows};
    u32 begin = p.window > 0 && position + 1 > p.window ? position + 1 - p.window : 0;
    begin = begin / S::KEYS * S::KEYS;

    // The queries and the first tile are on their way together.
    const u64 fused = static_cast<u64>(p.query_heads + 2 * p.key_heads) * DIM;
    for (u32 i = threadIdx.x; i < ROWS * S::CHUNKS; i += THREADS) {
        u32 row = i / S::CHUNKS, c = i % S::CHUNKS * 8;
        const Element* from = p.qkv + (first + min(row, rows - 1)) * fused + head * DIM + c;
        copy_16(queries + row * S::STRIDE + c, from, row < rows);
    }
    fetch_tile<DIM>(source, p.keys, begin, tiles);
    fetch_tile<DIM>(source, p.values, begin, tiles + TILE);
    commit_copies();

    Gathered<DIM> got = {};
    got.largest[0] = got.largest[1] = __int_as_float(0xff800000);
    const u32 mine = warp * 16 + lane / 4;  // the first of this lane's two rows
    for (u32 key = begin, stage = 0; key < source.end; key += S::KEYS, stage ^= 1) {
        if (key + S::KEYS < source.end) {
            Element* next = tiles + (stage ^ 1) * 2 * TILE;
            fetch_tile<DIM>(source, p.keys, key + S::KEYS, next);
            fetch_tile<DIM>(source, p.values, key + S::KEYS, next + TILE);
        }
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        const Element* keys = tiles + stage * 2 * TILE;
        float scores[S::KEYS / 8][4] = {};
        score<DIM>(scores, queries + warp * 16 * S::STRIDE, keys);
        if (key + S::KEYS > position + warp * 16 || p.window > 0) {
            hide(scores, key, position + mine, p.window);
        }
        weigh<DIM>(scores, p.scale, got);
        gather<DIM>(scores, keys + TILE, got);
        __syncthreads();
    }
    write<DIM>(p, first + mine, end, head, got);
}

// Grid: work, query heads. `work` names a span and the first row of the 64, pair by pair.
#define ATTENTION_TILES(DIM)                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)    \
        attention_tiles_##DIM(AttentionParams p) {           \
        attend<DIM>(p);                                      \
    }

#if !defined(ELEMENT_F32)
ATTENTION_TILES(64)
ATTENTION_TILES(96)
ATTENTION_TILES(128)
ATTENTION_TILES(256)
#endif
