// out = softmax(scale * Q K^T) V for 128 rows of one sequence and one query head at a time, on
// tensor cores: prefill of 16-bit models (the forward pass of arXiv 2307.08691).
// Each warp holds 32 of the rows, in two tiles of 16: what bounds it is the way from shared memory
// to tensor cores, and so every key and value is multiplied twice once it is there. Keys and values
// stream through shared memory, one tile ahead of the products. Scores become weights in registers:
// the result of one product is laid out as the next one wants its left operand. Rows of a tile are
// 16 bytes longer in shared memory than they need be: then the 8 rows that a matrix load reads lie
// in different banks.
#include "attention_tiles.cuh"

constexpr int THREADS = 128;

// Two blocks share a multiprocessor, and one finds room where a block gets no more than 99 KiB.
template <int WIDTH>
struct Shape {
    static constexpr int DIM = WIDTH, WARPS = THREADS / 32;
    static constexpr int TILES = DIM > 128 ? 1 : 2;  // of 16 rows, in a warp: registers bound them
    static constexpr int ROWS_OF_WARP = 16 * TILES, ROWS = WARPS * ROWS_OF_WARP;
    static constexpr int KEYS = DIM > 128 ? 32 : DIM > 64 ? 48 : 64;  // positions of one tile
    static constexpr int STRIDE = DIM + 8;
    static constexpr int STRIDE_BYTES = STRIDE * sizeof(Element);
    static constexpr int TILE_BYTES = KEYS * STRIDE_BYTES;

    __device__ static u32 at(u32 row, u32 chunk, u32) { return row * STRIDE_BYTES + chunk * 16; }
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
__device__ void attend(const AttentionParams& p) {
    using S = Shape<DIM>;
    extern __shared__ __align__(16) Element shared[];
    wait_for_previous();
    const Span span = p.index.spans[p.work[blockIdx.y * 2]];
    const u32 first = p.work[blockIdx.y * 2 + 1] + blockIdx.z * S::ROWS, end = span.row + span.rows;
    if (first >= end) return;
    const u32 rows = min(end - first, S::ROWS), head = blockIdx.x;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    const u32 position = p.index.positions[first], seen = position + rows;
    const u32 begin = first_seen<S>(p, position);

    // The queries and the first tile are on their way together.
    const u32 start = shared_address(shared);
    const u32 tiles = start + S::ROWS * S::STRIDE_BYTES;  // keys, values, keys, values
    copy_queries<S>(p, first, rows, start);
    Copier<S> copier = {p, span, head / (p.query_heads / p.key_heads), seen};
    copier.start(begin, tiles);

    Gathered<DIM> got[S::TILES] = {};
#pragma unroll
    for (int tile = 0; tile < S::TILES; tile++) {
        got[tile].largest[0] = got[tile].largest[1] = minus_infinity();
    }
    // What a lane loads first of the operands' matrices: rows and 16-byte pieces.
    const u32 tall = (lane % 16 * S::STRIDE + lane / 16 * 8) * sizeof(Element);
    const u32 wide = ((lane / 16 * 8 + lane % 8) * S::STRIDE + lane / 8 % 2 * 8) * sizeof(Element);
    const u32 mine = warp * S::ROWS_OF_WARP;  // the first of the warp's rows
    const u32 queries = start + mine * S::STRIDE_BYTES + tall;
    for (u32 key = begin, stage = 0; key < seen; key += S::KEYS, stage ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (key + S::KEYS < seen) copier.copy(tiles + (stage ^ 1) * 2 * S::TILE_BYTES);
        commit_copies();
        if (mine >= rows || key >= position + mine + S::ROWS_OF_WARP) continue;
        const u32 keys = tiles + stage * 2 * S::TILE_BYTES;
        float scores[S::TILES][S::KEYS / 8][4] = {};
        score<DIM>(scores, queries, keys + wide);
        const bool all = key + S::KEYS <= position + mine + 1 && p.window == 0;
#pragma unroll
        for (int tile = 0; tile < S::TILES; tile++) {
            const u32 own = position + mine + tile * 16 + lane / 4;
            if (!all) hide(scores[tile], key, own, p.window);
            weigh<DIM>(scores[tile], p.scale, got[tile]);
        }
        gather<DIM>(scores, keys + S::TILE_BYTES + tall, got);
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
