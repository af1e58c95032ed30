// y += h B^T where every sequence has one row, on tensor cores.
#include "lora_decode_expand.cuh"

constexpr int EACH = 4;  // results of a thread that wait for what y has

struct Expand {
    const LoraDecodeParams& p;
    ExpandTile tile;

    __device__ Expand(const LoraDecodeParams& p, unsigned char* shared)
        : p(p), tile(p, shared, 0, 1) {}

    // The row and the column of a thread's n-th result; of columns there are 1, 2 or 4 a row.
    __device__ u32 row_of(u32 n) const { return n >> p.columns / THREADS / 2; }
    __device__ u32 column_of(u32 n) const {
        return threadIdx.x + (n & (p.columns / THREADS - 1)) * THREADS;
    }

    __device__ bool exists(const ExpandPiece& piece, u32 n) const {
        return row_of(n) < piece.segment.rows && column_of(n) < piece.columns;
    }

    __device__ Element* place(const ExpandPiece& piece, u32 n) const {
        const u64 row = piece.segment.row + row_of(n);
        return p.y + row * p.width + piece.column + column_of(n);
    }

    __device__ void load_old(const ExpandPiece& piece, Element (&old)[EACH], u32 first) const {
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            if (exists(piece, first + n)) old[n] = *place(piece, first + n);
        }
    }

    __device__ void add(const ExpandPiece& piece, Element (&old)[EACH]) const {
        const u32 all = piece.segment.rows * (p.columns / THREADS);
        for (u32 first = 0; first < all; first += EACH) {
            if (first > 0) load_old(piece, old, first);
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                if (!exists(piece, first + n)) continue;
                const float sum =
                    tile.results[row_of(first + n) * tile.stride + column_of(first + n)];
                from_f32(*place(piece, first + n), to_f32(old[n]) + sum);
            }
        }
    }

    // `b` has the first units; meanwhile it comes to hold those of `next`.
    __device__ void run(const ExpandPiece& piece, Unit (&b)[AHEAD], const ExpandPiece* next) const {
        Element old[EACH];
        __syncthreads();
        load_old(piece, old, 0);
        if (piece.columns > 0) tile.stage<8>(piece);
        __syncthreads();
        if (piece.columns > 0) tile.multiply(piece, b, tile.results);
        if (next) tile.fetch_first(*next, b);
        __syncthreads();
        add(piece, old);
    }
};

// B is on its way before the kernels that make h and y have ended.
extern "C" __global__ void __launch_bounds__(THREADS, 4) lora_decode_expand(LoraDecodeParams p) {
    extern __shared__ __align__(16) unsigned char shared[];
    const Expand expand(p, shared);
    const u32 tiles = p.tile_end[p.targets - 1];
    bool waited = false;
    auto look_up = [&](u32 item) {
        const u32 tile = item % tiles;
        u32 target = 0;
        while (tile >= p.tile_end[target]) target++;
        const u32 first = target == 0 ? 0 : p.tile_end[target - 1];
        const Segment segment = p.segments[item / tiles];
        const LoraPair pair = p.pairs[segment.slot * p.targets + target];
        const u32 column = p.target_column[target] + (tile - first) * p.columns;
        return piece_of(pair, segment, column, p.columns);
    };
    for_each_piece<ExpandPiece>(p, tiles, look_up, [&](const ExpandPiece* pieces, u32 count) {
        Unit b[AHEAD] = {};
        expand.tile.fetch_first(pieces[0], b);
        if (!waited) wait_for_previous();
        waited = true;
        for (u32 i = 0; i < count; i++) {
            expand.run(pieces[i], b, i + 1 < count ? pieces + i + 1 : nullptr);
        }
    });
    if (!waited) wait_for_previous();
}
