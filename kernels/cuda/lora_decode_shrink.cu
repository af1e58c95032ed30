// h = x A^T where every sequence has one row.
#include "lora_decode.cuh"
#include "shrink_sums.cuh"

constexpr int AHEAD = 4;  // steps of 32 inputs on their way
constexpr u32 STEP = 32;

// A tile of one A, one part of its inputs, and the rows of x that it multiplies.
struct ShrinkPiece {
    ShrinkTile tile;
    Segment segment;
    u32 split, share;  // which part it is, and inputs of it that a warp has
    bool even;         // whether all loads are of 16 bytes
};

// What a warp has on its way at once, of both operands.
struct Inputs {
    uint4 a[AHEAD], x[AHEAD];
};

// One warp's part of a piece, from the inputs `at` on: lane l = 4 g + t holds, of every 32 inputs,
// those from 8 t on: of lora rank g, and of row g.
struct Part {
    const Element *a, *x;  // this lane's rows
    u32 at, end, a_end, x_end;  // the latter where this lane's loads of 16 bytes end

    __device__ Part(const LoraDecodeParams& p, const ShrinkPiece& piece) {
        const ShrinkTile& tile = piece.tile;
        const u32 g = threadIdx.x % 32 / 4;
        at = (piece.split * WARPS + threadIdx.x / 32) * piece.share;
        end = min(at + piece.share, tile.inputs);
        a = tile.a + static_cast<u64>(g) * tile.inputs;
        x = p.x + static_cast<u64>(piece.segment.row + g) * p.width + tile.input;
        a_end = piece.even && g < tile.rows ? end : 0;
        x_end = piece.even && g < piece.segment.rows ? end : 0;
    }

    // The first input of this lane in a step.
    __device__ u32 own(int step) const { return at + step * STEP + threadIdx.x % 4 * 8; }

    __device__ void fetch_a(Inputs& to, int step) const {
        to.a[step] = {};
        if (own(step) < a_end) to.a[step] = fetch_once(a + own(step));
    }

    __device__ void fetch_x(Inputs& to, int step) const {
        to.x[step] = {};
        if (own(step) < x_end) to.x[step] = fetch<8>(x + own(step)).raw.words;
    }
};

struct Shrink {
    const LoraDecodeParams& p;

    // Adds up what the warps have. Two pieces in turn have places of their own.
    __device__ void write(const ShrinkPiece& piece, const ShrinkSums& sums, u32 turn) const {
        __shared__ float all[2][WARPS][ROWS][8];
        const float(*shares)[ROWS][8] = all[turn % 2];
        float(*own)[8] = all[turn % 2][threadIdx.x / 32];
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        own[2 * t][g] = sums.sum(0), own[2 * t + 1][g] = sums.sum(1);
        __syncthreads();
        const u32 r = threadIdx.x / 8, j = threadIdx.x % 8;
        if (r >= piece.segment.rows || j >= piece.tile.rows) return;
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += shares[warp][r][j];
        const u64 row = static_cast<u64>(piece.split) * p.rows + piece.segment.row + r;
        p.h[row * p.h_stride + piece.tile.h + j] = sum;
    }

    // The same where no load of 16 bytes is possible: one product at a time.
    __device__ void add_uneven(const ShrinkPiece& piece, ShrinkSums& sums) const {
        const Part part(p, piece);
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        if (g >= piece.tile.rows) return;
        const Element* x = p.x + static_cast<u64>(piece.segment.row) * p.width + piece.tile.input;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            if (2 * t + i >= piece.segment.rows) continue;
            const Element* row = x + static_cast<u64>(2 * t + i) * p.width;
            float sum = 0.0f;
#pragma unroll 1
            for (u32 at = part.at; at < part.end; at++) sum += to_f32(part.a[at]) * to_f32(row[at]);
            sums.low[i] = sum;
        }
    }

    // One of so many pieces, whose first inputs are there. What was multiplied gives way to what comes
    // next, in this piece or in the one behind it.
    __device__ void run(const ShrinkPiece* pieces, u32 now, u32 count, Inputs& inputs) const {
        const ShrinkPiece& piece = pieces[now];
        Part part(p, piece);
        ShrinkSums sums;
        for (bool last = false; !last;) {
            part.at += AHEAD * STEP;
            last = part.at >= part.end;
            if (last && now + 1 < count) part = Part(p, pieces[now + 1]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                sums.add(inputs.a[i], inputs.x[i]);
                part.fetch_a(inputs, i), part.fetch_x(inputs, i);
            }
        }
        if (!piece.even) add_uneven(piece, sums);
        if (piece.tile.rows > 0) write(piece, sums, now);
    }
};

// Waits for x, and tells whoever waits for no more than that.
__device__ inline void wait_for_x(const LoraDecodeParams& p) {
    wait_for_previous();
    if (p.told && blockIdx.x == 0 && threadIdx.x == 0) say(p.told);
}

// A is on its way before the kernel that makes x has ended.
__device__ inline void shrink(const LoraDecodeParams& p) {
    const u32 each = p.shrink_tiles * p.splits;
    bool waited = false;
    auto look_up = [&](u32 item) {
        const Segment segment = p.segments[item / each];
        const u32 at = item % each / p.splits, split = item % p.splits, warps = p.splits * WARPS;
        const ShrinkTile tile = p.shrink[segment.slot * p.shrink_tiles + at];
        const u32 steps = (tile.inputs + STEP - 1) / STEP, share = (steps + warps - 1) / warps * STEP;
        const bool even = (tile.inputs | tile.input | p.width) % 8 == 0;
        return ShrinkPiece{tile, segment, split, share, even};
    };
    for_each_piece<ShrinkPiece>(p, each, look_up, [&](const ShrinkPiece* pieces, u32 count) {
        Inputs inputs;
        const Part first(p, pieces[0]);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) first.fetch_a(inputs, i);
        if (!waited) wait_for_x(p);
        waited = true;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) first.fetch_x(inputs, i);
        for (u32 i = 0; i < count; i++) {
            Shrink{p}.run(pieces, i, count, inputs);
        }
    });
    if (!waited) wait_for_x(p);
}

extern "C" __global__ void REGISTERS(72, THREADS) lora_decode_shrink(LoraDecodeParams p) { shrink(p); }

// The same beside a product, by a block a multiprocessor: it is launched with as little L1 cache as
// products leave. Several blocks need more of it for what they have on its way.
extern "C" __global__ void REGISTERS(72, THREADS) lora_decode_shrink_beside(LoraDecodeParams p) {
    shrink(p);
}
