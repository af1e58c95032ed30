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

constexpr int AHEAD_UNITS = 4;  // of B, on their way
constexpr u32 GAP = 4;           // words that part the banks of neighbouring rows

// Some columns of one B, and the rows of y that they add to.
struct ExpandPiece {
    LoraPair pair;
    Segment segment;
    u32 output;  // its first column in the site's output row
    bool any;    // whether there is a pair
};

// What a warp has on its way of B: 16 columns and 32 lora ranks, 8 a lane; or, of pairs with up to
// 16 lora ranks, 32 columns and 16 lora ranks, 4 a lane. Lane l = 4 g + t holds columns g and g + 8.
struct Unit {
    uint4 words[2];
};

// A warp's columns of a piece are the left operand's rows, and the rows of h, which expand finds as
// sums of two 16-bit numbers in shared memory, the right one's columns.
struct Columns {
    const LoraDecodeParams& p;
    const ExpandPiece& piece;
    u32 ranks, steps, units, first, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    bool narrow;

    __device__ Columns(const LoraDecodeParams& p, const ExpandPiece& piece) : p(p), piece(piece) {
        const u32 each = p.columns / WARPS;
        ranks = piece.any ? piece.pair.expand_rank / piece.pair.b_blocks : 0;
        narrow = ranks <= 16;
        steps = narrow ? 1 : (ranks + 31) / 32;
        units = piece.any ? each / (narrow ? 32 : 16) * steps : 0;
        first = threadIdx.x / 32 * each;
    }

    // Counted from the pair's first column; below it, it wraps around.
    __device__ u32 within(u32 column) const { return piece.output + column - piece.pair.output; }

    __device__ u32 padded() const { return (ranks + 31) / 32 * 32; }
    __device__ u32 stride() const { return padded() * piece.pair.b_blocks + 2 * GAP; }

    // 8 or 4 lora ranks of one column.
    __device__ uint4 fetch_8(u32 column, u32 rank) const {
        const u32 at = within(column);
        const Element* row = piece.pair.b + static_cast<u64>(at) * ranks;
        return eight(row, rank, at < piece.pair.outputs ? ranks : 0, ranks % 8 == 0);
    }

    __device__ uint2 fetch_4(u32 column) const {
        const u32 at = within(column), rank = t * 4;
        if (at >= piece.pair.outputs || rank >= ranks) return uint2{};
        const Element* row = piece.pair.b + static_cast<u64>(at) * ranks;
        if (ranks % 4 == 0) return ::fetch<4>(row + rank).raw.words;
        Element elements[4] = {};
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            if (rank + n < ranks) elements[n] = row[rank + n];
        }
        uint2 words;
        memcpy(&words, elements, sizeof(words));
        return words;
    }

    __device__ void fetch(Unit& to, u32 unit) const {
        if (unit >= units) return;
        if (narrow) {
            const u32 column = first + unit * 32 + g;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint2 a = fetch_4(column + half * 16), b = fetch_4(column + half * 16 + 8);
                to.words[half] = uint4{a.x, a.y, b.x, b.y};
            }
            return;
        }
        const u32 column = first + unit / steps * 16 + g, rank = unit % steps * 32 + t * 8;
        to.words[0] = fetch_8(column, rank);
        to.words[1] = fetch_8(column + 8, rank);
    }

    // The shrunk activations of 8 rows, in two parts, zeros where there are none.
    __device__ void stage(Element* high, Element* low) const {
        const u32 all = padded() * piece.pair.b_blocks;
        const u64 part = static_cast<u64>(p.rows) * p.h_stride;
        for (u32 i = threadIdx.x; i < ROWS * all; i += THREADS) {
            const u32 r = i / all, block = i % all / padded(), rank = i % padded();
            const float* from = p.h + static_cast<u64>(piece.segment.row + r) * p.h_stride +
                                piece.pair.h + block * ranks + rank;
            float sum = 0.0f;
            if (rank < ranks && r < piece.segment.rows) {
#pragma unroll 4
                for (u32 split = 0; split < p.splits; split++) sum += from[split * part];
            }
            const u32 to = r * stride() + i % all;
            from_f32(high[to], sum);
            from_f32(low[to], sum - to_f32(high[to]));
        }
    }

    // The diagonal block of a column of the pair.
    __device__ u32 block_of(u32 column) const {
        const u32 at = min(within(column), piece.pair.outputs - 1);
        return at / (piece.pair.outputs / piece.pair.b_blocks);
    }

    // sums += 16 columns from `column` on times 16 lora ranks from `at` on, 4 a lane, of every block
    // that has some of these columns.
    __device__ void multiply(const u32 (&b)[4], u32 column, u32 at, const Element* high,
                             const Element* low, float (&sums)[4]) const {
        // A column in front of the pair's first has weights of 0, whatever its block.
        const u32 begin = within(column) < piece.pair.outputs ? block_of(column) : 0;
        for (u32 block = begin; block <= block_of(column + 15); block++) {
            u32 own[4] = {b[0], b[1], b[2], b[3]};
            if (block_of(column + g) != block) own[0] = own[2] = 0;
            if (block_of(column + g + 8) != block) own[1] = own[3] = 0;
            const u32 from = g * stride() + block * padded() + at;
            const uint2 near = ::fetch<4>(high + from).raw.words;
            const uint2 rest = ::fetch<4>(low + from).raw.words;
            multiply_add(sums, own, near.x, near.y);
            multiply_add(sums, own, rest.x, rest.y);
        }
    }

    __device__ void keep(const float (&sums)[4], u32 column, float* results) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            results[(t * 2 + i % 2) * (p.columns + GAP) + column + g + i / 2 * 8] = sums[i];
        }
    }

    __device__ void take(const Unit& unit, u32 at, const Element* high, const Element* low,
                         float (&sums)[4], float* results) const {
        if (narrow) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint4 w = unit.words[half];
                const u32 b[4] = {w.x, w.z, w.y, w.w}, column = first + at * 32 + half * 16;
                float own[4] = {};
                multiply(b, column, t * 4, high, low, own);
                keep(own, column, results);
            }
            return;
        }
        const u32 column = first + at / steps * 16, step = at % steps;
        const uint4 v = unit.words[0], w = unit.words[1];
        const u32 one[4] = {v.x, w.x, v.y, w.y}, two[4] = {v.z, w.z, v.w, w.w};
        if (step == 0) sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
        multiply(one, column, step * 32 + t * 8, high, low, sums);
        multiply(two, column, step * 32 + t * 8 + 4, high, low, sums);
        if (step == steps - 1) keep(sums, column, results);
    }

    __device__ void fetch_first(Unit (&to)[AHEAD_UNITS]) const {
#pragma unroll
        for (int i = 0; i < AHEAD_UNITS; i++) fetch(to[i], i);
    }

    __device__ void sum_up(Unit (&b)[AHEAD_UNITS], const Element* high, const Element* low,
                           float* results) const {
        float sums[4];
        for (u32 unit = 0; unit < units; unit += AHEAD_UNITS) {
#pragma unroll
            for (int i = 0; i < AHEAD_UNITS; i++) {
                if (unit + i >= units) break;
                take(b[i], unit + i, high, low, sums, results);
                fetch(b[i], unit + i + AHEAD_UNITS);
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
        for (u32 begin = threadIdx.x; begin < all; begin += EACH * THREADS) {
            Element old[EACH];
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                const u32 i = begin + n * THREADS;
                if (exists(i)) old[n] = *place(i);
            }
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                const u32 i = begin + n * THREADS;
                if (!exists(i)) continue;
                const float sum = results[i / p.columns * (p.columns + GAP) + i % p.columns];
                from_f32(*place(i), to_f32(old[n]) + sum);
            }
        }
    }

    // `b` has the first units; meanwhile it comes to hold those of `next`.
    __device__ void run(Unit (&b)[AHEAD_UNITS], const ExpandPiece* next, float* shared) const {
        float* results = shared + ROWS * (p.staged + 2 * GAP);
        Element* high = reinterpret_cast<Element*>(shared);
        Element* low = high + ROWS * (p.staged + 2 * GAP);
        __syncthreads();
        if (piece.any) stage(high, low);
        __syncthreads();
        sum_up(b, high, low, results);
        if (next) Columns(p, *next).fetch_first(b);
        __syncthreads();
        if (piece.any) add(results);
    }
};

// B is on its way before the kernels that make h and y have ended.
extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_decode_expand(LoraDecodeParams p) {
    // [2, ROWS, staged + 2 GAP] of 16 bits, and [ROWS, columns + GAP] of 32.
    extern __shared__ __align__(16) float shared[];
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
                           pair.shrink_rank > 0 && pair.exchange == 0 && pair.outputs > 0};
    };
    for_each_piece<ExpandPiece>(items, look_up, [&](const ExpandPiece* pieces, u32 count) {
        Unit b[AHEAD_UNITS] = {};
        Columns(p, pieces[0]).fetch_first(b);
        if (!waited) wait_for_previous();
        waited = true;
        for (u32 i = 0; i < count; i++) {
            Columns(p, pieces[i]).run(b, i + 1 < count ? pieces + i + 1 : nullptr, shared);
        }
    });
    if (!waited) wait_for_previous();
}
