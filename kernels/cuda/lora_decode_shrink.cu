// h = x A^T where every sequence has one row.
#include "lora_decode.cuh"

// A tile of one A, one part of its inputs, and the rows of x that it multiplies.
struct ShrinkPiece {
    ShrinkTile tile;
    Segment segment;
    u32 split;
};

constexpr int AHEAD = 4;  // steps of 32 inputs on their way

// What a warp has on its way at once, of both operands.
struct Inputs {
    uint4 a[AHEAD], x[AHEAD];
};

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

    // AHEAD steps of this lane's row.
    __device__ void fetch(uint4 (&to)[AHEAD], const Element* row, bool exists, u32 step) const {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const u32 last = exists && step + i < end ? piece.tile.inputs : 0;
            to[i] = eight(row, (step + i) * 32 + t * 8, last, aligned);
        }
    }

    __device__ void fetch_a(Inputs& to, u32 step) const {
        const ShrinkTile& tile = piece.tile;
        fetch(to.a, tile.a + static_cast<u64>(g) * tile.inputs, g < tile.rows, step);
    }

    __device__ void fetch_x(Inputs& to, u32 step) const {
        const Element* row = p.x + static_cast<u64>(piece.segment.row + g) * p.width;
        fetch(to.x, row + piece.tile.input, g < piece.segment.rows, step);
    }

    // sums of row g, lora ranks 2 t and the next; the other two rows of a product are empty.
    static __device__ void multiply(const Inputs& inputs, float (&sums)[4]) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const uint4 a = inputs.a[i], x = inputs.x[i];
            const u32 first[4] = {x.x, 0, x.y, 0}, second[4] = {x.z, 0, x.w, 0};
            multiply_add(sums, first, a.x, a.y);
            multiply_add(sums, second, a.z, a.w);
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

    // `inputs` has the first ones; meanwhile it comes to hold those of `next`.
    __device__ void run(Inputs& inputs, const ShrinkPiece* next) const {
        float sums[4] = {};
        for (u32 step = begin; step < end; step += AHEAD) {
            if (step > begin) fetch_a(inputs, step), fetch_x(inputs, step);
            multiply(inputs, sums);
        }
        if (next) {
            const Part part(p, *next);
            part.fetch_a(inputs, part.begin), part.fetch_x(inputs, part.begin);
        }
        if (piece.tile.rows > 0) write(sums);
    }
};

// Waits for x, and tells whoever waits for no more than that.
__device__ inline void wait_for_x(const LoraDecodeParams& p) {
    wait_for_previous();
    if (p.told && blockIdx.x == 0 && threadIdx.x == 0) say(p.told);
}

// A is on its way before the kernel that makes x has ended.
extern "C" __global__ void REGISTERS(72, THREADS) lora_decode_shrink(LoraDecodeParams p) {
    const u32 each = p.shrink_tiles * p.splits;
    bool waited = false;
    auto look_up = [&](u32 item) {
        const Segment segment = p.segments[item / each];
        const u32 tile = item % each / p.splits;
        return ShrinkPiece{p.shrink[segment.slot * p.shrink_tiles + tile], segment,
                           item % p.splits};
    };
    for_each_piece<ShrinkPiece>(p, each, look_up, [&](const ShrinkPiece* pieces, u32 count) {
        Inputs inputs;
        const Part first(p, pieces[0]);
        first.fetch_a(inputs, first.begin);
        if (!waited) wait_for_x(p);
        waited = true;
        first.fetch_x(inputs, first.begin);
        for (u32 i = 0; i < count; i++) {
            Part(p, pieces[i]).run(inputs, i + 1 < count ? pieces + i + 1 : nullptr);
        }
    });
    if (!waited) wait_for_x(p);
}
