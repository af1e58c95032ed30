// h = x A^T where every sequence has one row.
#include "lora_decode.cuh"

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

// Waits for x, and tells whoever waits for no more than that.
__device__ inline void wait_for_x(const LoraDecodeParams& p) {
    wait_for_previous();
    if (p.told && blockIdx.x == 0 && threadIdx.x == 0) say(p.told);
}

// A is on its way before the kernel that makes x has ended.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    lora_decode_shrink(LoraDecodeParams p) {
    const u32 each = p.shrink_tiles * p.splits;
    bool waited = false;
    auto look_up = [&](u32 item) {
        const Segment segment = p.segments[item / each];
        const u32 tile = item % each / p.splits;
        return ShrinkPiece{p.shrink[segment.slot * p.shrink_tiles + tile], segment,
                           item % p.splits};
    };
    for_each_piece<ShrinkPiece>(p, each, look_up, [&](const ShrinkPiece* pieces, u32 count) {
        uint4 a[AHEAD];
        const Part first(p, pieces[0]);
        first.fetch_a(a, first.begin);
        if (!waited) wait_for_x(p);
        waited = true;
        for (u32 i = 0; i < count; i++) {
            Part(p, pieces[i]).run(a, i + 1 < count ? pieces + i + 1 : nullptr);
        }
    });
    if (!waited) wait_for_x(p);
}
