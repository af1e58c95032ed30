// y += h B^T where every sequence has one row, on tensor cores.
// Columns of y are the left operand's rows and the rows of h, rounded to 16 bits, the right one's
// columns. B goes from memory to registers as it lies: a product does not mind in which order it
// meets the lora ranks, as long as both operands agree. Lane l = 4 g + t holds, of 16 columns, g and
// g + 8: 8 of 32 lora ranks, from 8 t on, or of pairs with up to 16 lora ranks 4, from 4 t on.
// Pieces that do not come out even (lora ranks that are no multiple of 8, say) are multiplied one
// column a thread.
#include "lora_decode.cuh"

constexpr int AHEAD = 3;  // units of B on their way
constexpr int EACH = 4;   // results of a thread that wait for what y has
constexpr u32 GAP = 8;    // elements that part the banks of neighbouring rows

// Some columns of one B, and the rows of y that they add to.
struct ExpandPiece {
    Segment segment;
    const Element* b;  // the row of its first column
    u32 column;        // which that is of a row of y
    u32 columns;       // none where there is no pair
    u32 ranks;         // of a diagonal block
    u32 h;             // where the pair's start in those of a row
    u32 blocks;        // diagonal blocks of the pair
    u32 of_block;      // columns of one
    u32 within;        // its first column, counted from the pair's first

    __device__ bool narrow() const { return ranks <= 16; }

    // Lora ranks of a block as they are staged.
    __device__ u32 padded() const { return narrow() ? 16 : (ranks + 31) / 32 * 32; }

    // Where those of a column start among what is staged.
    __device__ u32 staged_of(u32 at) const {
        return blocks == 1 ? 0 : (within + at) / of_block * padded();
    }

    // Whether tiles of columns are those of one block, and no load is of less than 16 bytes.
    __device__ bool even() const {
        const u32 tile = narrow() ? 32 : 16;
        return ranks % 8 == 0 && columns % tile == 0 &&
               (blocks == 1 || (of_block % tile == 0 && within % tile == 0));
    }
};

__device__ inline ExpandPiece piece_of(const LoraPair& pair, const Segment& segment, u32 first,
                                       u32 columns) {
    const u32 begin = max(first, pair.output), end = min(first + columns, pair.output + pair.outputs);
    if (pair.shrink_rank == 0 || pair.exchange != 0 || begin >= end) return ExpandPiece{segment};
    const u32 ranks = pair.expand_rank / pair.b_blocks, within = begin - pair.output;
    const Element* b = pair.b + static_cast<u64>(within) * ranks;
    const u32 of_block = pair.outputs / pair.b_blocks;
    return {segment, b, begin, end - begin, ranks, pair.h, pair.b_blocks, of_block, within};
}

// What a warp has on its way of B at once: of 16 columns 32 lora ranks, or of 32 columns 16.
struct Unit {
    uint4 words[2];
};

// One warp's columns of a piece that comes out even, unit by unit.
template <bool NARROW>
struct Columns {
    static constexpr u32 TILE = NARROW ? 32 : 16;

    u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 steps, units;   // lora ranks of a tile, 32 at a time; all tiles'
    const Element* at;  // of what is fetched next
    u32 fetched, step;  // units so far, and the step of the next
    u32 ranks, own;

    __device__ Columns(const ExpandPiece& piece, u32 columns) : ranks(piece.ranks) {
        own = threadIdx.x / 32 * (columns / WARPS);
        const u32 end = min(own + columns / WARPS, piece.columns);
        steps = NARROW ? 1 : (ranks + 31) / 32;
        units = own < end ? (end - own) / TILE * steps : 0;
        at = piece.b + static_cast<u64>(own + g) * ranks + t * (NARROW ? 4 : 8);
        fetched = step = 0;
    }

    __device__ void fetch(Unit& to) {
        if (fetched++ >= units) return;
        if constexpr (NARROW) {
            to = {};
            if (t * 4 < ranks) {
                const uint2 a = ::fetch<4>(at).raw.words, b = ::fetch<4>(at + 8 * ranks).raw.words;
                const uint2 c = ::fetch<4>(at + 16 * ranks).raw.words;
                const uint2 d = ::fetch<4>(at + 24 * ranks).raw.words;
                to = {{uint4{a.x, a.y, b.x, b.y}, uint4{c.x, c.y, d.x, d.y}}};
            }
            at += 32 * ranks;
        } else {
            to = {};
            if (step * 32 + t * 8 < ranks) {
                to = {{::fetch<8>(at).raw.words, ::fetch<8>(at + 8 * ranks).raw.words}};
            }
            at += 32;
            if (++step == steps) step = 0, at += 16 * ranks - steps * 32;
        }
    }

    __device__ void fetch_first(Unit (&to)[AHEAD]) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) fetch(to[i]);
    }

    // As if the first units had been fetched.
    __device__ void skip_first() {
        fetched = AHEAD, step = AHEAD % steps;
        at += NARROW ? AHEAD * 32 * ranks : AHEAD / steps * 16 * ranks + step * 32;
    }

    // The results of 16 columns.
    __device__ void keep(const float (&sums)[4], float* results, u32 rows, u32 stride) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 row = t * 2 + i % 2;
            if (row < rows) results[row * stride + g + i / 2 * 8] = sums[i];
        }
    }

    // `b` has the first units. h is [ROWS, h_stride], results [ROWS, stride].
    __device__ void multiply(Unit (&b)[AHEAD], const ExpandPiece& piece, const Element* h,
                             u32 h_stride, float* results, u32 stride) {
        const u32 rows = piece.segment.rows;
        const Element* own_h = h + g * h_stride + t * (NARROW ? 4 : 8);
        u32 column = own, now = 0;
        float sums[4] = {};
        for (u32 unit = 0; unit < units; unit += AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (unit + i >= units) break;
                const uint4 v = b[i].words[0], w = b[i].words[1];
                const Element* from = own_h + piece.staged_of(column) + now * 32;
                if constexpr (NARROW) {
                    const u32 one[4] = {v.x, v.z, v.y, v.w}, two[4] = {w.x, w.z, w.y, w.w};
                    const uint2 x = ::fetch<4>(from).raw.words;
                    float first[4] = {}, second[4] = {};
                    multiply_add(first, one, x.x, x.y);
                    multiply_add(second, two, x.x, x.y);
                    keep(first, results + column, rows, stride);
                    keep(second, results + column + 16, rows, stride);
                    column += 32;
                } else {
                    const u32 one[4] = {v.x, w.x, v.y, w.y}, two[4] = {v.z, w.z, v.w, w.w};
                    const uint4 x = ::fetch<8>(from).raw.words;
                    multiply_add(sums, one, x.x, x.y);
                    multiply_add(sums, two, x.z, x.w);
                    if (++now == steps) {
                        keep(sums, results + column, rows, stride);
                        sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
                        now = 0, column += 16;
                    }
                }
                fetch(b[i]);
            }
        }
    }
};

struct Expand {
    const LoraDecodeParams& p;
    Element* h;      // [ROWS, staged + GAP]
    float* results;  // [ROWS, columns + GAP]
    u32 h_stride, stride;

    __device__ Expand(const LoraDecodeParams& p, unsigned char* shared) : p(p) {
        h_stride = p.staged + GAP, stride = p.columns + GAP;
        results = reinterpret_cast<float*>(shared);
        h = reinterpret_cast<Element*>(results + ROWS * stride);
    }

    __device__ void fetch_first(const ExpandPiece& piece, Unit (&b)[AHEAD]) const {
        if (!piece.even()) return;
        if (piece.narrow()) return Columns<true>(piece, p.columns).fetch_first(b);
        Columns<false>(piece, p.columns).fetch_first(b);
    }

    // The shrunk activations of the rows; zeros where there are no lora ranks. Of the other rows
    // there is anything, as there is in the results for them.
    __device__ void stage(const ExpandPiece& piece) const {
        const u32 padded = piece.padded(), all = padded * piece.blocks;
        const u64 part = static_cast<u64>(p.rows) * p.h_stride;
        for (u32 i = threadIdx.x; i < piece.segment.rows * all; i += THREADS) {
            const u32 r = i / all, block = i % all / padded, rank = i % padded;
            const float* from = p.h + static_cast<u64>(piece.segment.row + r) * p.h_stride +
                                piece.h + block * piece.ranks + rank;
            float sum = 0.0f;
            if (rank < piece.ranks) {
#pragma unroll 4
                for (u32 split = 0; split < p.splits; split++) sum += from[split * part];
            }
            from_f32(h[r * h_stride + i % all], sum);
        }
    }

    // A column a thread.
    __device__ void multiply_any(const ExpandPiece& piece) const {
        for (u32 column = threadIdx.x; column < piece.columns; column += THREADS) {
            const Element* b = piece.b + static_cast<u64>(column) * piece.ranks;
            for (u32 r = 0; r < piece.segment.rows; r++) {
                const Element* from = h + r * h_stride + piece.staged_of(column);
                float sum = 0.0f;
                for (u32 n = 0; n < piece.ranks; n++) sum += to_f32(b[n]) * to_f32(from[n]);
                results[r * stride + column] = sum;
            }
        }
    }

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
                const float sum = results[row_of(first + n) * stride + column_of(first + n)];
                from_f32(*place(piece, first + n), to_f32(old[n]) + sum);
            }
        }
    }

    // `b` has the first units; meanwhile it comes to hold those of `next`.
    __device__ void run(const ExpandPiece& piece, Unit (&b)[AHEAD], const ExpandPiece* next) const {
        Element old[EACH];
        __syncthreads();
        load_old(piece, old, 0);
        if (piece.columns > 0) stage(piece);
        __syncthreads();
        if (piece.columns > 0) multiply(piece, b);
        if (next) fetch_first(*next, b);
        __syncthreads();
        add(piece, old);
    }

    __device__ void multiply(const ExpandPiece& piece, Unit (&b)[AHEAD]) const {
        if (!piece.even()) return multiply_any(piece);
        if (piece.narrow()) return multiply_even<true>(piece, b);
        multiply_even<false>(piece, b);
    }

    template <bool NARROW>
    __device__ void multiply_even(const ExpandPiece& piece, Unit (&b)[AHEAD]) const {
        Columns<NARROW> columns(piece, p.columns);
        columns.skip_first();
        columns.multiply(b, piece, h, h_stride, results, stride);
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
        expand.fetch_first(pieces[0], b);
        if (!waited) wait_for_previous();
        waited = true;
        for (u32 i = 0; i < count; i++) {
            expand.run(pieces[i], b, i + 1 < count ? pieces + i + 1 : nullptr);
        }
    });
    if (!waited) wait_for_previous();
}
