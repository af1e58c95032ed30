// out = y + h B^T where every sequence has one row, on tensor cores, or out = h B^T where there is no y.
#include "lora_decode_expand.cuh"

constexpr int EACH = 4;  // results of a thread that wait for what y has

// Some columns of the site that a segment's rows get results in, and what has some of them, or none.
struct SitePiece {
    ExpandPiece of;
    u32 first, columns;

    __device__ const Segment& segment() const { return of.segment; }
};

struct Expand {
    const LoraDecodeParams& p;
    ExpandTile tile;

    __device__ Expand(const LoraDecodeParams& p, unsigned char* shared)
        : p(p), tile(p, shared, 0, 1) {}

    // What a tile of columns of a target adds to y, or all of it where there is no y.
    __device__ SitePiece piece(const Segment& segment, u32 target, u32 first, u32 columns) const {
        SitePiece piece = {{segment}, first, columns};
        if (segment.slot != NO_SLOT) {
            const LoraPair pair = p.pairs[segment.slot * p.targets + target];
            piece.of = piece_of(pair, segment, first, columns);
        }
        if (p.y) piece.first = piece.of.column, piece.columns = piece.of.columns;
        return piece;
    }

    // The row and the column of a thread's n-th result; of columns there are 1, 2 or 4 a row.
    __device__ u32 row_of(u32 n) const { return n >> p.columns / THREADS / 2; }
    __device__ u32 column_of(u32 n) const {
        return threadIdx.x + (n & (p.columns / THREADS - 1)) * THREADS;
    }

    __device__ bool exists(const SitePiece& piece, u32 n) const {
        return row_of(n) < piece.segment().rows && column_of(n) < piece.columns;
    }

    __device__ u64 place(const SitePiece& piece, u32 n) const {
        const u64 row = piece.segment().row + row_of(n);
        return row * p.width + piece.first + column_of(n);
    }

    __device__ void load_old(const SitePiece& piece, Element (&old)[EACH], u32 first) const {
        if (!p.y) return;
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            if (exists(piece, first + n)) old[n] = p.y[place(piece, first + n)];
        }
    }

    // What no pair has.
    __device__ void clear(const SitePiece& piece) const {
        if (piece.of.columns == piece.columns) return;
        for (u32 row = 0; row < piece.segment().rows; row++) {
            for (u32 i = threadIdx.x; i < piece.columns; i += THREADS) {
                tile.results[row * tile.stride + i] = 0.0f;
            }
        }
    }

    __device__ void write(const SitePiece& piece, Element (&old)[EACH]) const {
        const u32 all = piece.segment().rows * (p.columns / THREADS);
        for (u32 first = 0; first < all; first += EACH) {
            if (first > 0) load_old(piece, old, first);
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                if (!exists(piece, first + n)) continue;
                const float sum =
                    tile.results[row_of(first + n) * tile.stride + column_of(first + n)];
                from_f32(p.out[place(piece, first + n)], to_f32(old[n]) + sum);
            }
        }
    }

    // `b` has the first units; meanwhile it comes to hold those of `next`.
    __device__ void run(const SitePiece& piece, Unit (&b)[AHEAD], const SitePiece* next) const {
        const ExpandPiece& pair = piece.of;
        Element old[EACH] = {};
        __syncthreads();
        load_old(piece, old, 0);
        clear(piece);
        if (pair.columns > 0) tile.stage<8>(pair);
        __syncthreads();
        if (pair.columns > 0) {
            tile.multiply(pair, b, tile.results + (pair.column - piece.first));
        }
        if (next) tile.fetch_first(next->of, b);
        __syncthreads();
        write(piece, old);
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
        const u32 before = target == 0 ? 0 : p.tile_end[target - 1];
        const u32 first = p.target_column[target] + (tile - before) * p.columns;
        const u32 end = target + 1 < p.targets ? p.target_column[target + 1] : p.width;
        return expand.piece(p.segments[item / tiles], target, first, min(p.columns, end - first));
    };
    for_each_piece<SitePiece>(p, tiles, look_up, [&](const SitePiece* pieces, u32 count) {
        Unit b[AHEAD] = {};
        expand.tile.fetch_first(pieces[0].of, b);
        if (!waited) wait_for_previous();
        waited = true;
        for (u32 i = 0; i < count; i++) {
            expand.run(pieces[i], b, i + 1 < count ? pieces + i + 1 : nullptr);
        }
    });
    if (!waited) wait_for_previous();
}
