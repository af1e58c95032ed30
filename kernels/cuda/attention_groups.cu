// As attention_tiles.cu, for cards whose tensor cores read from shared memory by themselves (Hopper,
// wgmma.cuh): a warpgroup holds 64 rows, and a block two of them. Scores become weights in registers, and
// weights are the left operand of the second product from there. While one warpgroup of a
// multiprocessor weighs, others multiply.
#include "attention_tiles.cuh"
#include "wgmma.cuh"

constexpr int THREADS = 256;

// Two blocks share a multiprocessor. A tile is a box of every 64 elements of a head.
template <int WIDTH>
struct Shape {
    static constexpr u32 DIM = WIDTH, WARPS = THREADS / 32, ROWS_OF_GROUP = 64;
    static constexpr u32 ROWS = THREADS / 128 * ROWS_OF_GROUP, KEYS = DIM > 64 ? 48 : 64;
    static constexpr u32 BOX_BYTES = KEYS * BOX_ROW_BYTES, BOXES = DIM / BOX_WIDTH;
    static constexpr u32 TILE_BYTES = BOXES * BOX_BYTES;

    // Of a tile of so many rows.
    __device__ static u32 at(u32 row, u32 chunk, u32 rows) {
        return chunk / 8 * rows * BOX_ROW_BYTES + place_in_box(row, chunk % 8);
    }
};

// Q K^T of a warpgroup's rows and a tile's positions.
template <class S>
__device__ inline void score(float (&scores)[S::KEYS / 8][4], u32 queries, u32 keys) {
    begin_products();
#pragma unroll
    for (u32 k = 0; k < S::DIM; k += 16) {
        const u32 within = k % BOX_WIDTH * sizeof(Element), box = k / BOX_WIDTH;
        const u64 left = matrix_at(queries + box * S::ROWS * BOX_ROW_BYTES + within, 16);
        const u64 right = matrix_at(keys + box * S::BOX_BYTES + within, 16);
        multiply_boxes(scores, left, right, k > 0);
    }
    end_products();
}

// Adds the values of a tile, weighted.
template <class S>
__device__ inline void gather(const float (&weights)[S::KEYS / 8][4], u32 values,
                              float (&sums)[S::DIM / 8][4]) {
    u32 rounded[S::KEYS / 16][4];
#pragma unroll
    for (u32 k = 0; k < S::KEYS / 16; k++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const float(&from)[4] = weights[2 * k + i / 2];
            rounded[k][i] = pair_of(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
    }
    begin_products();
#pragma unroll
    for (u32 k = 0; k < S::KEYS / 16; k++) {
        multiply_rows(sums, rounded[k], matrix_at(values + k * 16 * BOX_ROW_BYTES, S::BOX_BYTES));
    }
    end_products();
}

template <int DIM>
__device__ void attend(const AttentionParams& p) {
    using S = Shape<DIM>;
    extern __shared__ unsigned char unaligned[];
    wait_for_previous();
    const Span span = p.index.spans[p.work[blockIdx.y * 2]];
    const u32 first = p.work[blockIdx.y * 2 + 1], end = span.row + span.rows;
    const u32 rows = min(end - first, S::ROWS), head = blockIdx.x;
    const u32 warp = warp_of_block(), lane = threadIdx.x % 32;

    const u32 position = p.index.positions[first], seen = position + rows;
    const u32 begin = first_seen<S>(p, position);

    // The queries and the first tile are on their way together.
    const u32 start = shared_address(unaligned) + (0u - shared_address(unaligned)) % 1024;
    const u32 tiles = start + S::ROWS * S::DIM * sizeof(Element);  // keys, values, keys, values
    copy_queries<S>(p, first, rows, start);
    Copier<S> copier = {p, span, head / (p.query_heads / p.key_heads), seen};
    copier.start(begin, tiles);

    Gathered<DIM> got = {};
    got.largest[0] = got.largest[1] = minus_infinity();
    const u32 group = warp / 4 * S::ROWS_OF_GROUP;  // the first of the warpgroup's rows
    const u32 mine = warp * 16, own = position + mine + lane / 4;
    const u32 queries = start + group * BOX_ROW_BYTES;
    for (u32 key = begin, stage = 0; key < seen; key += S::KEYS, stage ^= 1) {
        wait_copies<0>();
        show_to_products();
        __syncthreads();
        if (key + S::KEYS < seen) copier.copy(tiles + (stage ^ 1) * 2 * S::TILE_BYTES);
        commit_copies();
        if (group >= rows || key >= position + group + S::ROWS_OF_GROUP) continue;
        const u32 keys = tiles + stage * 2 * S::TILE_BYTES;
        float scores[S::KEYS / 8][4];
        score<S>(scores, queries, keys);
        const bool all = key + S::KEYS <= position + mine + 1 && p.window == 0;
        if (!all) hide(scores, key, own, p.window);
        weigh<DIM>(scores, p.scale, got);
        gather<S>(scores, keys + S::TILE_BYTES, got.sum);
    }
    write<DIM>(p, first + mine + lane / 4, end, head, got);
}

// Grid: query heads, work. `work` is that of attention_tiles.cu.
#define ATTENTION_GROUPS(DIM)                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) \
        attention_groups_##DIM(AttentionParams p) {          \
        attend<DIM>(p);                                      \
    }

ATTENTION_GROUPS(64)
ATTENTION_GROUPS(128)
