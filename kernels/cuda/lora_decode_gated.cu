// out = silu(gate + h_gate B_gate^T) * (up + h_up B_up^T) where every sequence has one row: expand and
// activation in one. Half of a block's warps have the gate's columns of a tile and half those of what
// it lets through.
#include "lora_decode_expand.cuh"

constexpr int EACH = 2;  // pairs of results of a thread that wait for what they are made of

// Some columns of both, and the rows that have an adapter there, or none.
struct GatedPiece {
    ExpandPiece of[2];
    u32 first, columns;

    __device__ const Segment& segment() const { return of[0].segment; }
};

// Two neighbouring columns of both, as they are moved.
struct Both {
    Pack<2, Element> gate, up;
};

struct Gated {
    const LoraDecodeParams& p;
    u32 part = threadIdx.x / (THREADS / 2);
    ExpandTile tile;  // of this thread's part

    __device__ Gated(const LoraDecodeParams& p, unsigned char* shared)
        : p(p), tile(p, shared, part, 2) {}

    // The row of a thread's n-th two results, and the first column of all of them: half of the columns
    // are a power of two.
    __device__ u32 row_of(u32 n) const {
        return (n * THREADS + threadIdx.x) >> (31 - __clz(p.columns / 2));
    }
    __device__ u32 column() const { return (threadIdx.x & (p.columns / 2 - 1)) * 2; }

    __device__ bool exists(const GatedPiece& piece, u32 n) const {
        return row_of(n) < piece.segment().rows && column() < piece.columns;
    }

    // In rows of so many columns.
    __device__ u64 place(const GatedPiece& piece, u32 n, u32 width) const {
        const u64 row = piece.segment().row + row_of(n);
        return row * width + piece.first + column();
    }

    __device__ void load_old(const GatedPiece& piece, Both (&old)[EACH], u32 first) const {
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            if (!exists(piece, first + n)) continue;
            const Element* from = p.y + place(piece, first + n, 2 * p.width);
            old[n] = {fetch<2>(from), fetch<2>(from + p.width)};
        }
    }

    // What pairs that are not there, or have not all columns, leave out.
    __device__ void clear(const GatedPiece& piece) const {
        if (piece.of[part].columns == piece.columns) return;
        for (u32 row = 0; row < piece.segment().rows; row++) {
            for (u32 i = tile.thread(); i < piece.columns; i += THREADS / 2) {
                tile.results[row * tile.stride + i] = 0.0f;
            }
        }
    }

    __device__ void write(const GatedPiece& piece, u32 n, const Both& old) const {
        const float* sums = tile.results - part * ROWS * tile.stride;
        sums += row_of(n) * tile.stride + column();
        float gate[2], up[2];
        widen(gate, old.gate), widen(up, old.up);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            gate[i] += sums[i], up[i] += sums[ROWS * tile.stride + i];
            gate[i] = silu(gate[i]) * up[i];
        }
        store(p.out + place(piece, n, p.width), gate);
    }

    __device__ void write_all(const GatedPiece& piece, Both (&old)[EACH]) const {
        for (u32 first = 0; row_of(first) < piece.segment().rows; first += EACH) {
            if (first > 0) load_old(piece, old, first);
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                if (exists(piece, first + n)) write(piece, first + n, old[n]);
            }
        }
    }

    // `b` has the first units; meanwhile it comes to hold those of `next`.
    __device__ void run(const GatedPiece& piece, Unit (&b)[AHEAD], const GatedPiece* next) const {
        const ExpandPiece& pair = piece.of[part];
        Both old[EACH];
        __syncthreads();
        load_old(piece, old, 0);
        clear(piece);
        if (pair.columns > 0) tile.stage<4>(pair);
        __syncthreads();
        float* to = tile.results + (pair.column - piece.first - part * p.width);
        if (pair.columns > 0) tile.multiply(pair, b, to);
        if (next) tile.fetch_first(next->of[part], b);
        __syncthreads();
        write_all(piece, old);
    }
};

// Of a multiprocessor; before Hopper they need more registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int BLOCKS = 3;
#else
constexpr int BLOCKS = 4;
#endif

// B is on its way before the kernels that make h, gate and up have ended.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    lora_decode_gated(LoraDecodeParams p) {
    extern __shared__ __align__(16) unsigned char shared[];
    const Gated gated(p, shared);
    const u32 tiles = p.tile_end[0];
    bool waited = false;
    auto look_up = [&](u32 item) {
        const Segment segment = p.segments[item / tiles];
        const u32 first = item % tiles * p.columns, columns = min(p.columns, p.width - first);
        GatedPiece piece{{{segment}, {segment}}, first, columns};
        if (segment.slot == NO_SLOT) return piece;
        const LoraPair* pairs = p.pairs + segment.slot * 2;
        piece.of[0] = piece_of(pairs[0], segment, first, columns);
        piece.of[1] = piece_of(pairs[1], segment, p.width + first, columns);
        return piece;
    };
    for_each_piece<GatedPiece>(p, tiles, look_up, [&](const GatedPiece* pieces, u32 count) {
        Unit b[AHEAD] = {};
        gated.tile.fetch_first(pieces[0].of[gated.part], b);
        if (!waited) wait_for_previous();
        waited = true;
        for (u32 i = 0; i < count; i++) {
            gated.run(pieces[i], b, i + 1 < count ? pieces + i + 1 : nullptr);
        }
    });
    if (!waited) wait_for_previous();
}
