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

constexpr int LOADS = 8;  // 16 bytes of B each that a lane has on their way

// Some columns of one B, and the rows of y that they add to.
struct ExpandPiece {
    LoraPair pair;
    Segment segment;
    u32 output;  // its first column in the site's output row
    bool any;    // whether there is a pair
};

// What a warp does with its columns, 32 at a time. Lora ranks lie side by side in a row of B, and
// rows one behind the other: so that a load is one run of memory, `lanes` lanes share a column, 8
// lora ranks each, and a load is for 32 / lanes columns. Lane l of a unit of 32 columns ends up with
// the sum of column l % lanes * (32 / lanes) + l / lanes.
struct Columns {
    const LoraDecodeParams& p;
    const ExpandPiece& piece;
    u32 ranks, lanes, lane = threadIdx.x % 32;
    bool aligned;

    __device__ Columns(const LoraDecodeParams& p, const ExpandPiece& piece) : p(p), piece(piece) {
        ranks = piece.any ? piece.pair.expand_rank / piece.pair.b_blocks : 0;
        lanes = 1;
        while (lanes < 32 && lanes * 8 < ranks) lanes *= 2;
        aligned = ranks % 8 == 0;
    }

    // Loads of one slice of 8 * lanes lora ranks.
    __device__ u32 loads() const { return p.columns / (WARPS * 32) * lanes; }

    __device__ u32 padded() const { return (ranks + 7) / 8 * 8; }

    // The column that a lane helps with in a load, counted from the piece's first.
    __device__ u32 column(u32 load) const {
        const u32 unit = threadIdx.x / 32 * (p.columns / (WARPS * 32)) + load / lanes;
        return unit * 32 + load % lanes * (32 / lanes) + lane / lanes;
    }

    // Counted from the pair's first; below it, it wraps around.
    __device__ u32 within(u32 column) const { return piece.output + column - piece.pair.output; }

    __device__ uint4 fetch(u32 load, u32 rank) const {
        const u32 at = within(column(load));
        const bool exists = load < loads() && at < piece.pair.outputs;
        const Element* row = piece.pair.b + static_cast<u64>(at) * ranks;
        return eight(row, rank + lane % lanes * 8, exists ? ranks : 0, aligned);
    }

    __device__ void fetch_first(uint4 (&to)[LOADS]) const {
#pragma unroll
        for (int i = 0; i < LOADS; i++) to[i] = fetch(i, 0);
    }

    // The shrunk activations of the rows, zeros up to a multiple of 8 of every block's.
    __device__ void stage(float* staged) const {
        const u32 stride = padded(), all = stride * piece.pair.b_blocks;
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

    // The columns' sums of one load, in every lane of a column.
    __device__ void multiply(const uint4& b, u32 load, u32 rank, const float* staged,
                             float (&sums)[ROWS]) const {
        const u32 at = within(column(load)), own = rank + lane % lanes * 8;
        const bool exists = at < piece.pair.outputs && own < ranks;
        const u32 block = exists ? at / (piece.pair.outputs / piece.pair.b_blocks) : 0;
        const float* from = staged + (exists ? block * padded() + own : 0);
        const u32 all = padded() * piece.pair.b_blocks;
        float weights[8];
        widen(weights, Pack<8, Element>{{b}});
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (r >= piece.segment.rows) break;
            float shrunk[8], sum = 0.0f;
            ::load(shrunk, from + r * all);
#pragma unroll
            for (int n = 0; n < 8; n++) sum += weights[n] * shrunk[n];
            for (u32 other = 1; other < lanes; other *= 2) {
                sum += __shfl_xor_sync(~0u, sum, other);
            }
            sums[r] = sum;
        }
    }

    // `b` has the first loads; `results` are [ROWS, columns].
    __device__ void sum_up(uint4 (&b)[LOADS], const float* staged, float* results) const {
        for (u32 rank = 0; rank < ranks; rank += lanes * 8) {
            if (rank > 0) {
#pragma unroll
                for (int i = 0; i < LOADS; i++) b[i] = fetch(i, rank);
            }
            for (u32 first = 0; first < loads(); first += LOADS) {
#pragma unroll
                for (int i = 0; i < LOADS; i++) {
                    if (first + i >= loads()) break;
                    const uint4 now = b[i];
                    b[i] = fetch(first + i + LOADS, rank);
                    float sums[ROWS];
                    multiply(now, first + i, rank, staged, sums);
                    if (lane % lanes != 0) continue;
                    float* to = results + column(first + i);
#pragma unroll
                    for (u32 r = 0; r < ROWS; r++, to += p.columns) {
                        if (r >= piece.segment.rows) break;
                        *to = rank > 0 ? *to + sums[r] : sums[r];
                    }
                }
            }
        }
    }

    __device__ void add(const float* results) const {
        constexpr int EACH = 4;  // on their way at once
        const u32 all = piece.segment.rows * p.columns;
        auto place = [&](u32 i) {
            const u64 row = piece.segment.row + i / p.columns;
            return p.y + row * p.width + piece.output + i % p.columns;
        };
        auto exists = [&](u32 i) { return i < all && within(i % p.columns) < piece.pair.outputs; };
        for (u32 first = threadIdx.x; first < all; first += EACH * THREADS) {
            Element old[EACH];
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                const u32 i = first + n * THREADS;
                if (exists(i)) old[n] = *place(i);
            }
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                const u32 i = first + n * THREADS;
                if (exists(i)) from_f32(*place(i), to_f32(old[n]) + results[i]);
            }
        }
    }

    // `b` has the first loads; meanwhile it comes to hold those of `next`.
    __device__ void run(uint4 (&b)[LOADS], const ExpandPiece* next, float* shared) const {
        float* results = shared + ROWS * p.staged;
        __syncthreads();
        stage(shared);
        __syncthreads();
        sum_up(b, shared, results);
        if (next) Columns(p, *next).fetch_first(b);
        __syncthreads();
        if (piece.any) add(results);
    }
};

// B is on its way before the kernels that make h and y have ended.
extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_decode_expand(LoraDecodeParams p) {
    extern __shared__ __align__(16) float shared[];  // [ROWS, staged], [ROWS, columns]
    const u32 tiles = p.tile_end[p.targets - 1], items = *p.segment_count * tiles;
    bool waited = false;
    auto look_up = [&](u32 item) {
        const u32 tile = item % tiles;
        u32 target = 0;
        while (tile >= p.tile_end[target]) target++;
        const u32 first = target == 0 ? 0 : p.tile_end[target - 1];
        const Segment segment = p.segments[item / tiles];
        const LoraPair pair = p.pairs[segment.slot * p.targets + target];
        return ExpandPiece{pair, segment, p.target_column[target] + (tile - first) * p.columns,
                           pair.shrink_rank > 0 && pair.exchange == 0};
    };
    for_each_piece<ExpandPiece>(items, look_up, [&](const ExpandPiece* pieces, u32 count) {
        uint4 b[LOADS];
        Columns(p, pieces[0]).fetch_first(b);
        if (!waited) wait_for_previous();
        waited = true;
        for (u32 i = 0; i < count; i++) {
            Columns(p, pieces[i]).run(b, i + 1 < count ? pieces + i + 1 : nullptr, shared);
        }
    });
    if (!waited) wait_for_previous();
}
