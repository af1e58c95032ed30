// Shrink and expand where every sequence has one row (arXiv 2310.18547), for 16 bits. Blocks take
// pieces of work in turn: how many there are is in device memory, not in the launch, so one recorded
// launch serves every mix of adapters. While a block works on one piece, the factors of its next
// one are on their way. Segments have no more than 8 rows (kernels/src/cuda/step.rs cuts them).
//
// h is [splits, rows, h_stride]: to fill the card with few adapters, the inputs of shrink are cut
// into `splits`, and expand adds the parts up, in order.
#include "mma.cuh"
#include "params.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr u32 ROWS = 8;
constexpr u32 PIECES = 8;  // that a block looks up at once

// 8 elements from `at` on, zeros from `end` on.
__device__ inline uint4 eight(const Element* row, u32 at, u32 end, bool aligned) {
    if (at >= end) return uint4{};
    if (aligned) return fetch<8>(row + at).raw.words;
    Element elements[8] = {};
#pragma unroll
    for (int n = 0; n < 8; n++) {
        if (at + n < end) elements[n] = row[at + n];
    }
    uint4 words;
    memcpy(&words, elements, sizeof(words));
    return words;
}

// Tells `work` of every piece of this block, as `look_up` finds them.
template <class Piece, class LookUp, class Work>
__device__ inline void for_each_piece(u32 items, LookUp look_up, Work work) {
    __shared__ Piece pieces[PIECES];
    for (u32 first = blockIdx.x; first < items; first += gridDim.x * PIECES) {
        const u32 count = min((items - first + gridDim.x - 1) / gridDim.x, PIECES);
        __syncthreads();
        if (threadIdx.x < count) pieces[threadIdx.x] = look_up(first + threadIdx.x * gridDim.x);
        __syncthreads();
        work(pieces, count);
    }
}

// A tile of one A, one part of its inputs, and the rows of x that it multiplies.
struct ShrinkPiece {
    ShrinkTile tile;
    Segment segment;
    u32 split;
};

constexpr int AHEAD = 4;  // steps of 32 inputs on their way

// One warp's part of a piece: lane l = 4 g + t holds, of every 32 inputs, those from 8 t on: of
// lora rank g, and of row g.
struct Part {
    const LoraDecodeParams& p;
    const ShrinkPiece& piece;
    u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, begin, end;
    bool aligned;

    __device__ Part(const LoraDecodeParams& p, const ShrinkPiece& piece) : p(p), piece(piece) {
        const ShrinkTile& tile = piece.tile;
        const u32 steps = (tile.inputs + 31) / 32, shares = p.splits * WARPS;
        const u32 share = (steps + shares - 1) / shares;
        begin = min((piece.split * WARPS + threadIdx.x / 32) * share, steps);
        end = min(begin + share, steps);
        aligned = (tile.inputs | tile.input | p.width) % 8 == 0;
    }

    __device__ void fetch_a(uint4 (&a)[AHEAD], u32 step) const {
        const ShrinkTile& tile = piece.tile;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const Element* row = tile.a + static_cast<u64>(g) * tile.inputs;
            const u32 last = g < tile.rows && step + i < end ? tile.inputs : 0;
            a[i] = eight(row, (step + i) * 32 + t * 8, last, aligned);
        }
    }

    // sums of row g, lora ranks 2 t and the next; the other two rows of a product are empty.
    __device__ void multiply(const uint4 (&a)[AHEAD], u32 step, float (&sums)[4]) const {
        const ShrinkTile& tile = piece.tile;
        uint4 x[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const Element* row =
                p.x + static_cast<u64>(piece.segment.row + g) * p.width + tile.input;
            const u32 last = g < piece.segment.rows && step + i < end ? tile.inputs : 0;
            x[i] = eight(row, (step + i) * 32 + t * 8, last, aligned);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const u32 first[4] = {x[i].x, 0, x[i].y, 0}, second[4] = {x[i].z, 0, x[i].w, 0};
            multiply_add(sums, first, a[i].x, a[i].y);
            multiply_add(sums, second, a[i].z, a[i].w);
        }
    }

    __device__ void write(const float (&sums)[4]) const {
        __shared__ float shares[WARPS][ROWS][8];
        float(*own)[8] = shares[threadIdx.x / 32];
        __syncthreads();
        own[g][2 * t] = sums[0], own[g][2 * t + 1] = sums[1];
        __syncthreads();
        const u32 r = threadIdx.x / 8, j = threadIdx.x % 8;
        if (r >= piece.segment.rows || j >= piece.tile.rows) return;
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += shares[warp][r][j];
        const u64 row = static_cast<u64>(piece.split) * p.rows + piece.segment.row + r;
        p.h[row * p.h_stride + piece.tile.h + j] = sum;
    }

    // `a` has the first inputs; meanwhile it comes to hold those of `next`.
    __device__ void run(uint4 (&a)[AHEAD], const ShrinkPiece* next) const {
        float sums[4] = {};
        for (u32 step = begin; step < end; step += AHEAD) {
            if (step > begin) fetch_a(a, step);
            multiply(a, step, sums);
        }
        if (next) {
            const Part part(p, *next);
            part.fetch_a(a, part.begin);
        }
        if (piece.tile.rows > 0) write(sums);
    }
};

// A is on its way before the kernel that makes x has ended.
extern "C" __global__ void __launch_bounds__(THREADS, 3) lora_decode_shrink(LoraDecodeParams p) {
    const u32 each = p.shrink_tiles * p.splits, items = *p.segment_count * each;
    bool waited = false;
    auto look_up = [&](u32 item) {
        const Segment segment = p.segments[item / each];
        const u32 tile = item % each / p.splits;
        return ShrinkPiece{p.shrink[segment.slot * p.shrink_tiles + tile], segment,
                           item % p.splits};
    };
    for_each_piece<ShrinkPiece>(items, look_up, [&](const ShrinkPiece* pieces, u32 count) {
        uint4 a[AHEAD];
        const Part first(p, pieces[0]);
        first.fetch_a(a, first.begin);
        if (!waited) wait_for_previous();
        waited = true;
        for (u32 i = 0; i < count; i++) {
            Part(p, pieces[i]).run(a, i + 1 < count ? pieces + i + 1 : nullptr);
        }
    });
    if (!waited) wait_for_previous();
}

constexpr u32 EACH = 4;                      // output columns of a thread
constexpr u32 COLUMNS = THREADS * EACH;      // of a piece
constexpr u32 RANKS = 16;                    // lora ranks on their way, of each column

// Blocks that fit on a multiprocessor without spilled registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int EXPAND_RESIDENT = 1;
#else
constexpr int EXPAND_RESIDENT = 2;
#endif

// Some columns of one B, and the rows of y that they add to.
struct ExpandPiece {
    LoraPair pair;
    Segment segment;
    u32 output;  // its first column in the site's output row
    bool any;    // whether there is a pair
};

// What one thread knows about its columns, THREADS apart.
struct Columns {
    const LoraDecodeParams& p;
    const ExpandPiece& piece;
    u32 ranks;
    bool aligned;

    __device__ Columns(const LoraDecodeParams& p, const ExpandPiece& piece) : p(p), piece(piece) {
        ranks = piece.any ? piece.pair.expand_rank / piece.pair.b_blocks : 0;
        aligned = ranks % 8 == 0;
    }

    __device__ u32 within(u32 column) const {
        return piece.output + column * THREADS + threadIdx.x - piece.pair.output;
    }

    // Below the pair's first column it wraps around.
    __device__ bool has(u32 column) const { return within(column) < piece.pair.outputs; }

    __device__ void fetch_b(uint4 (&to)[EACH][RANKS / 8], u32 rank) const {
#pragma unroll
        for (u32 column = 0; column < EACH; column++) {
            const Element* row = piece.pair.b + static_cast<u64>(within(column)) * ranks;
            const u32 last = has(column) ? ranks : 0;
#pragma unroll
            for (u32 i = 0; i < RANKS / 8; i++) {
                to[column][i] = eight(row, rank + i * 8, last, aligned);
            }
        }
    }

    // The shrunk activations of the rows, zeros up to a multiple of 8 of every block's.
    __device__ void stage(float* staged) const {
        const u32 stride = padded(), all = padded() * piece.pair.b_blocks;
        const u64 part = static_cast<u64>(p.rows) * p.h_stride;
        for (u32 i = threadIdx.x; i < piece.segment.rows * all; i += THREADS) {
            const u32 r = i / all, block = i % all / stride, rank = i % stride;
            const float* from = p.h + static_cast<u64>(piece.segment.row + r) * p.h_stride +
                                piece.pair.h + block * ranks + rank;
            float sum = 0.0f;
            if (rank < ranks) {
#pragma unroll 4
                for (u32 split = 0; split < p.splits; split++) sum += from[split * part];
            }
            staged[i] = sum;
        }
    }

    __device__ u32 padded() const { return (ranks + 7) / 8 * 8; }

    // sums += B times the shrunk activations, lora ranks `rank` to `rank + 15`.
    __device__ void multiply(const uint4 (&b)[EACH][RANKS / 8], u32 rank, const float* staged,
                             float (&sums)[EACH][ROWS]) const {
        const u32 all = padded() * piece.pair.b_blocks;
        const u32 outputs = piece.pair.outputs / piece.pair.b_blocks;
#pragma unroll
        for (u32 i = 0; i < RANKS / 8; i++) {
            if (rank + i * 8 >= ranks) break;
#pragma unroll
            for (u32 column = 0; column < EACH; column++) {
                if (!has(column)) continue;
                float weights[8];
                widen(weights, Pack<8, Element>{{b[column][i]}});
                const float* from = staged + within(column) / outputs * padded() + rank + i * 8;
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) {
                    if (r >= piece.segment.rows) break;
                    float shrunk[8];
                    load(shrunk, from + r * all);
#pragma unroll
                    for (int n = 0; n < 8; n++) sums[column][r] += weights[n] * shrunk[n];
                }
            }
        }
    }

    __device__ void add(const float (&sums)[EACH][ROWS]) const {
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (r >= piece.segment.rows) break;
            Element* y = p.y + static_cast<u64>(piece.segment.row + r) * p.width + piece.output +
                         threadIdx.x;
            Element old[EACH];
#pragma unroll
            for (u32 column = 0; column < EACH; column++) {
                if (has(column)) old[column] = y[column * THREADS];
            }
#pragma unroll
            for (u32 column = 0; column < EACH; column++) {
                if (has(column)) from_f32(y[column * THREADS], to_f32(old[column]) + sums[column][r]);
            }
        }
    }

    // `b` has the first lora ranks; meanwhile it comes to hold those of `next`.
    __device__ void run(uint4 (&b)[EACH][RANKS / 8], const ExpandPiece* next, float* staged) const {
        __syncthreads();
        stage(staged);
        __syncthreads();
        float sums[EACH][ROWS] = {};
        for (u32 rank = 0; rank < ranks; rank += RANKS) {
            uint4 now[EACH][RANKS / 8];
            memcpy(now, b, sizeof(now));
            if (rank + RANKS < ranks) fetch_b(b, rank + RANKS);
            multiply(now, rank, staged, sums);
        }
        if (next) Columns(p, *next).fetch_b(b, 0);
        if (piece.any) add(sums);
    }
};

// B is on its way before the kernels that make h and y have ended.
extern "C" __global__ void __launch_bounds__(THREADS, EXPAND_RESIDENT) lora_decode_expand(LoraDecodeParams p) {
    extern __shared__ __align__(16) float staged[];  // [ROWS, the most lora ranks of a pair]
    const u32 tiles = p.tile_end[p.targets - 1], items = *p.segment_count * tiles;
    bool waited = false;
    auto look_up = [&](u32 item) {
        const u32 tile = item % tiles;
        u32 target = 0;
        while (tile >= p.tile_end[target]) target++;
        const u32 first = target == 0 ? 0 : p.tile_end[target - 1];
        const Segment segment = p.segments[item / tiles];
        const LoraPair pair = p.pairs[segment.slot * p.targets + target];
        return ExpandPiece{pair, segment, p.target_column[target] + (tile - first) * COLUMNS,
                           pair.shrink_rank > 0 && pair.exchange == 0};
    };
    for_each_piece<ExpandPiece>(items, look_up, [&](const ExpandPiece* pieces, u32 count) {
        uint4 b[EACH][RANKS / 8];
        Columns(p, pieces[0]).fetch_b(b, 0);
        if (!waited) wait_for_previous();
        waited = true;
        for (u32 i = 0; i < count; i++) {
            Columns(p, pieces[i]).run(b, i + 1 < count ? pieces + i + 1 : nullptr, staged);
        }
    });
    if (!waited) wait_for_previous();
}
