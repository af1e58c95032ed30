// How expand multiplies some columns of one B where every sequence has one row, on tensor cores.
// Columns of y are the left operand's rows and the rows of h, rounded to 16 bits, the right one's
// columns. B goes from memory to registers as it lies: a product does not mind in which order it
// meets the lora ranks, as long as both operands agree. Lane l = 4 g + t holds, of 16 columns, g and
// g + 8: 8 of 32 lora ranks, from 8 t on, or of pairs with up to 16 lora ranks 4, from 4 t on.
// Pieces that do not come out even (lora ranks that are no multiple of 8, say) are multiplied one
// column a thread.
#pragma once

#include "lora_decode.cuh"

constexpr int AHEAD = 3;  // units of B on their way
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
        return (within + at) / of_block * padded();
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
    const bool whole = pair.b_blocks == 1;
    const u32 ranks = whole ? pair.expand_rank : pair.expand_rank / pair.b_blocks;
    const u32 of_block = whole ? pair.outputs : pair.outputs / pair.b_blocks;
    const u32 within = begin - pair.output;
    const Element* b = pair.b + static_cast<u64>(within) * ranks;
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
    u32 step;           // the one of the next
    u32 ranks, own;

    // From column `first` on, `each` of them.
    __device__ Columns(const ExpandPiece& piece, u32 first, u32 each) : ranks(piece.ranks) {
        own = first;
        const u32 end = min(first + each, piece.columns);
        steps = NARROW ? 1 : (ranks + 31) / 32;
        units = own < end ? (end - own) / TILE * steps : 0;
        at = piece.b + static_cast<u64>(own + g) * ranks + t * (NARROW ? 4 : 8);
        step = 0;
    }

    __device__ void fetch(Unit& to) {
        if constexpr (NARROW) {
            to = {};
            if (t * 4 < ranks) {
                const uint2 a = ::fetch<4>(at).raw.words, b = ::fetch<4>(at + 8 * ranks).raw.words;
                const uint2 c = ::fetch<4>(at + 16 * ranks).raw.words;
                const uint2 d = ::fetch<4>(at + 24 * ranks).raw.words;
                to = {{uint4{a.x, a.y, b.x, b.y}, uint4{c.x, c.y, d.x, d.y}}};
            }
        } else {
            to = {};
            if (step * 32 + t * 8 < ranks) {
                to = {{fetch_once(at), fetch_once(at + 8 * ranks)}};
            }
        }
        advance();
    }

    __device__ void advance() {
        if constexpr (NARROW) {
            at += 32 * ranks;
        } else {
            at += 32;
            if (++step == steps) step = 0, at += 16 * ranks - steps * 32;
        }
    }

    __device__ void fetch_first(Unit (&to)[AHEAD]) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (i < units) fetch(to[i]);
        }
    }

    // As if the first units had been fetched.
    __device__ void skip_first() {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) advance();
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
        const Element* from = h + g * h_stride + t * (NARROW ? 4 : 8);
        u32 column = own, now = 0;
        u32 staged = 0, left = ~0u;  // where the diagonal block starts, and its columns from here on
        if (piece.blocks > 1) {
            staged = piece.staged_of(own), left = piece.of_block - (piece.within + own) % piece.of_block;
        }
        auto next_columns = [&] {
            column += TILE, left -= TILE;
            if (left == 0) left = piece.of_block, staged += piece.padded();
        };
        float sums[4] = {};
        for (u32 unit = 0; unit < units; unit += AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (unit + i >= units) break;
                const uint4 v = b[i].words[0], w = b[i].words[1];
                if constexpr (NARROW) {
                    const uint2 x = ::fetch<4>(from + staged).raw.words;
                    const u32 one[4] = {v.x, v.z, v.y, v.w}, two[4] = {w.x, w.z, w.y, w.w};
                    float first[4] = {}, second[4] = {};
                    multiply_add(first, one, x.x, x.y);
                    multiply_add(second, two, x.x, x.y);
                    keep(first, results + column, rows, stride);
                    keep(second, results + column + 16, rows, stride);
                    next_columns();
                } else {
                    const u32 one[4] = {v.x, w.x, v.y, w.y}, two[4] = {v.z, w.z, v.w, w.w};
                    const uint4 x = ::fetch<8>(from + staged + now * 32).raw.words;
                    multiply_add(sums, one, x.x, x.y);
                    multiply_add(sums, two, x.z, x.w);
                    if (++now == steps) {
                        keep(sums, results + column, rows, stride);
                        sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
                        now = 0, next_columns();
                    }
                }
                if (unit + AHEAD + i < units) fetch(b[i]);
            }
        }
    }
};

// What some warps of a block share to multiply a piece. The results lie in shared memory, so that they
// are written in runs.
struct ExpandTile {
    const LoraDecodeParams& p;
    Element* h;      // [ROWS, h_stride]
    float* results;  // [ROWS, stride]
    u32 warp, warps;  // this one, and how many there are
    u32 h_stride, stride;

    // The `part`-th of `parts`, from `shared` on.
    __device__ ExpandTile(const LoraDecodeParams& p, unsigned char* shared, u32 part, u32 parts)
        : p(p) {
        warps = WARPS / parts, warp = threadIdx.x / 32 % warps;
        h_stride = p.staged + GAP, stride = p.columns + GAP;
        results = reinterpret_cast<float*>(shared) + part * ROWS * stride;
        float* end = reinterpret_cast<float*>(shared) + parts * ROWS * stride;
        h = reinterpret_cast<Element*>(end) + part * ROWS * h_stride;
    }

    __device__ u32 thread() const { return warp * 32 + threadIdx.x % 32; }

    template <bool NARROW>
    __device__ Columns<NARROW> columns(const ExpandPiece& piece) const {
        const u32 each = p.columns / warps;
        return Columns<NARROW>(piece, warp * each, each);
    }

    __device__ void fetch_first(const ExpandPiece& piece, Unit (&b)[AHEAD]) const {
        if (!piece.even()) return;
        piece.narrow() ? columns<true>(piece).fetch_first(b) : columns<false>(piece).fetch_first(b);
    }

    // The shrunk activations of the rows; zeros where there are no lora ranks. Of the other rows
    // there is anything, as there is in the results for them. Of the splits, so many loads are on
    // their way at once.
    template <int AT_ONCE>
    __device__ void stage(const ExpandPiece& piece) const {
        piece.narrow() ? stage_by<AT_ONCE, 16>(piece) : stage_by<AT_ONCE, 32>(piece);
    }

    // A run of so many lora ranks, which is a part of one diagonal block, at a time.
    template <int AT_ONCE, u32 RUN>
    __device__ void stage_by(const ExpandPiece& piece) const {
        const u32 of_block = piece.padded() / RUN, runs = of_block * piece.blocks;
        const u64 part = static_cast<u64>(p.rows) * p.h_stride;
        const u32 rows = piece.segment.rows;
        u32 row = 0, run = thread() / RUN;
        for (;; run += warps * 32 / RUN) {
            for (; run >= runs && row < rows; run -= runs) row++;
            if (row >= rows) return;
            const u32 block = piece.blocks == 1 ? 0 : run / of_block;
            const u32 rank = (run - block * of_block) * RUN + thread() % RUN;
            const float* from = p.h + static_cast<u64>(piece.segment.row + row) * p.h_stride +
                                piece.h + block * piece.ranks + rank;
            float sum = 0.0f;
            if (rank < piece.ranks) {
#pragma unroll AT_ONCE
                for (u32 split = 0; split < p.splits; split++) sum += from[split * part];
            }
            from_f32(h[row * h_stride + run * RUN + thread() % RUN], sum);
        }
    }

    // `to` is where the results of the piece's first column go, [rows, stride]. `b` has the first units.
    __device__ void multiply(const ExpandPiece& piece, Unit (&b)[AHEAD], float* to) const {
        if (!piece.even()) return multiply_any(piece, to);
        piece.narrow() ? multiply_even<true>(piece, b, to) : multiply_even<false>(piece, b, to);
    }

    template <bool NARROW>
    __device__ void multiply_even(const ExpandPiece& piece, Unit (&b)[AHEAD], float* to) const {
        Columns<NARROW> own = columns<NARROW>(piece);
        own.skip_first();
        own.multiply(b, piece, h, h_stride, to, stride);
    }

    // A column a thread.
    __device__ void multiply_any(const ExpandPiece& piece, float* to) const {
        for (u32 column = thread(); column < piece.columns; column += warps * 32) {
            const Element* b = piece.b + static_cast<u64>(column) * piece.ranks;
            for (u32 r = 0; r < piece.segment.rows; r++) {
                const u32 staged = piece.blocks == 1 ? 0 : piece.staged_of(column);
                const Element* from = h + r * h_stride + staged;
                float sum = 0.0f;
                for (u32 n = 0; n < piece.ranks; n++) sum += to_f32(b[n]) * to_f32(from[n]);
                to[r * stride + column] = sum;
            }
        }
    }
};
