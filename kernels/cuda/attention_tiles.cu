// out = softmax(scale * Q K^T) V for 128 rows of one sequence and one query head at a time, on
// tensor cores: prefill of 16-bit models (the forward pass of arXiv 2307.08691).
// Each warp holds 32 of the rows, in two tiles of 16: what bounds it is the way from shared memory
// to tensor cores, and so every key and value is multiplied twice once it is there. Keys and values
// stream through shared memory, one tile ahead of the products. Scores become weights in registers:
// the result of one product is laid out as the next one wants its left operand. Rows of a tile are
// 16 bytes longer in shared memory than they need be: then the 8 rows that a matrix load reads lie
// in different banks.
#include "mma.cuh"
#include "paged.cuh"

constexpr int THREADS = 128, WARPS = THREADS / 32;

// Two blocks share a multiprocessor, and one finds room where a block gets no more than 99 KiB.
template <int DIM>
struct Shape {
    static constexpr int TILES = DIM > 128 ? 1 : 2;  // of 16 rows, in a warp: registers bound them
    static constexpr int ROWS_OF_WARP = 16 * TILES, ROWS = WARPS * ROWS_OF_WARP;
    static constexpr int KEYS = DIM > 128 ? 32 : DIM > 64 ? 48 : 64;  // positions of one tile
    static constexpr int STRIDE = DIM + 8;
    static constexpr int STRIDE_BYTES = STRIDE * sizeof(Element);
    static constexpr int CHUNKS = DIM / 8;  // 16-byte pieces of a row
    static constexpr int TILE = KEYS * STRIDE;
};

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

// Copies keys and values of `Shape::KEYS` positions at a time, those of `MINE` by each warp. A lane
// knows the block of one of them: asked for a tile ahead, it is there when it is needed.
template <int DIM>
struct Copier {
    using S = Shape<DIM>;
    static constexpr u32 MINE = S::KEYS / WARPS;

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

    // Starts copying the next tile of keys, and behind it that of values.
    __device__ void copy(Element* tile) {
        const u32 row = threadIdx.x / 32 * MINE;
        const u32 slot = (block * p.key_heads + head) * p.block_tokens + within;
#pragma unroll
        for (u32 i = 0; i < MINE * S::CHUNKS; i += 32) {
            const u32 chunk = i + threadIdx.x % 32;
            const u32 r = chunk / S::CHUNKS, c = chunk % S::CHUNKS * 8;
            const u64 from = static_cast<u64>(__shfl_sync(~0u, slot, r)) * DIM + c;
            if (chunk >= MINE * S::CHUNKS) break;
            Element* to = tile + (row + r) * S::STRIDE + c;
            const bool exists = first + r < end;
            copy_16(to, p.keys + from, exists);
            copy_16(to + S::TILE, p.values + from, exists);
        }
        first += S::KEYS;
        look_up();
    }
};

// scores[tile][n] = Q K^T of 16 rows and positions 8 n to 8 n + 7 of a tile. Both addresses are in
// shared memory, of what a lane loads first.
template <int DIM, int TILES, int N>
__device__ inline void score(float (&scores)[TILES][N][4], u32 queries, u32 keys) {
    using S = Shape<DIM>;
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        u32 q[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            load_matrices(q[tile], queries + tile * 16 * S::STRIDE_BYTES + k * 32);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 key[4];
            load_matrices(key, keys + n * 8 * S::STRIDE_BYTES + k * 32);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply_add(scores[tile][n], q[tile], key[0], key[1]);
                multiply_add(scores[tile][n + 1], q[tile], key[2], key[3]);
            }
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

// Adds the values of a tile, weighted. The address is of what a lane loads first.
template <int DIM, int TILES, int N>
__device__ inline void gather(const float (&weights)[TILES][N][4], u32 values,
                              Gathered<DIM> (&got)[TILES]) {
    using S = Shape<DIM>;
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        u32 weight[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const float(&low)[4] = weights[tile][2 * k];
            const float(&high)[4] = weights[tile][2 * k + 1];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                weight[tile][half] = pair_of(low[half * 2], low[half * 2 + 1]);
                weight[tile][half + 2] = pair_of(high[half * 2], high[half * 2 + 1]);
            }
        }
#pragma unroll
        for (int d = 0; d < DIM / 16; d++) {
            u32 value[4];
            load_transposed(value, values + k * 16 * S::STRIDE_BYTES + d * 32);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply_add(got[tile].sum[2 * d], weight[tile], value[0], value[1]);
                multiply_add(got[tile].sum[2 * d + 1], weight[tile], value[2], value[3]);
            }
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

// The queries start copying to shared memory; rows that there are not are zeros.
template <int DIM>
__device__ inline void copy_queries(const AttentionParams& p, u32 first, u32 rows, Element* to) {
    using S = Shape<DIM>;
    const u64 fused = static_cast<u64>(p.query_heads + 2 * p.key_heads) * DIM;
    for (u32 i = threadIdx.x; i < S::ROWS * S::CHUNKS; i += THREADS) {
        const u32 row = i / S::CHUNKS, c = i % S::CHUNKS * 8;
        const Element* from = p.qkv + (first + min(row, rows - 1)) * fused + blockIdx.x * DIM + c;
        copy_16(to + row * S::STRIDE + c, from, row < rows);
    }
}

template <int DIM>
__device__ void attend(const AttentionParams& p) {
    using S = Shape<DIM>;
    extern __shared__ __align__(16) Element shared[];
    wait_for_previous();
    const Span span = p.index.spans[p.work[blockIdx.y * 2]];
    const u32 first = p.work[blockIdx.y * 2 + 1] + blockIdx.z * S::ROWS, end = span.row + span.rows;
    if (first >= end) return;
    const u32 rows = min(end - first, S::ROWS), head = blockIdx.x;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    // Which positions do these rows see?
    const u32 position = p.index.positions[first], seen = position + rows;
    u32 begin = p.window > 0 && position + 1 > p.window ? position + 1 - p.window : 0;
    begin = begin / S::KEYS * S::KEYS;

    // The queries and the first tile are on their way together.
    Element* tiles = shared + S::ROWS * S::STRIDE;  // keys, values, keys, values
    copy_queries<DIM>(p, first, rows, shared);
    Copier<DIM> copier = {p, span, head / (p.query_heads / p.key_heads), seen};
    copier.first = begin + warp * Copier<DIM>::MINE;
    copier.look_up();
    copier.copy(tiles);
    commit_copies();

    Gathered<DIM> got[S::TILES] = {};
#pragma unroll
    for (int tile = 0; tile < S::TILES; tile++) {
        got[tile].largest[0] = got[tile].largest[1] = minus_infinity();
    }
    // What a lane loads first of the operands' matrices: rows and 16-byte pieces.
    const u32 tall = (lane % 16 * S::STRIDE + lane / 16 * 8) * sizeof(Element);
    const u32 wide = ((lane / 16 * 8 + lane % 8) * S::STRIDE + lane / 8 % 2 * 8) * sizeof(Element);
    const u32 mine = warp * S::ROWS_OF_WARP;  // the first of the warp's rows
    const u32 queries = shared_address(shared + mine * S::STRIDE) + tall;
    for (u32 key = begin, stage = 0; key < seen; key += S::KEYS, stage ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (key + S::KEYS < seen) copier.copy(tiles + (stage ^ 1) * 2 * S::TILE);
        commit_copies();
        if (mine >= rows || key >= position + mine + S::ROWS_OF_WARP) continue;
        const u32 keys = shared_address(tiles + stage * 2 * S::TILE);
        float scores[S::TILES][S::KEYS / 8][4] = {};
        score<DIM>(scores, queries, keys + wide);
        const bool all = key + S::KEYS <= position + mine + 1 && p.window == 0;
#pragma unroll
        for (int tile = 0; tile < S::TILES; tile++) {
            const u32 own = position + mine + tile * 16 + lane / 4;
            if (!all) hide(scores[tile], key, own, p.window);
            weigh<DIM>(scores[tile], p.scale, got[tile]);
        }
        gather<DIM>(scores, keys + S::TILE * sizeof(Element) + tall, got);
    }
#pragma unroll
    for (int tile = 0; tile < S::TILES; tile++) {
        write<DIM>(p, first + mine + tile * 16 + lane / 4, end, head, got[tile]);
    }
}

// Grid: query heads, work, groups of `Shape::ROWS` of the 128 rows. `work` names a span and the
// first of its 128 rows, pair by pair, those that see the most first: what is started last, of the
// last head too, is then soon done.
#define ATTENTION_TILES(DIM)                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) \
        attention_tiles_##DIM(AttentionParams p) {           \
        attend<DIM>(p);                                      \
    }

#if !defined(ELEMENT_F32)
ATTENTION_TILES(64)
ATTENTION_TILES(96)
ATTENTION_TILES(128)
ATTENTION_TILES(256)
#endif
