// How expand multiplies long segments of prefill on tensor cores of 16 bits: a block takes 128 rows, 16
// a warp, and a tile of 32 or 64 columns at a time, whose rows of B are on their way one tile ahead. They
// lie in shared memory in the order that gives a lane 8 neighbouring columns of a result: it moves 16
// bytes of what is added to without asking other lanes.
#pragma once

#include "mma.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr u32 ROWS = 16 * THREADS / 32;
constexpr u32 STRIDE = LONG_RANKS_MAX + 8;  // in shared memory; the padding parts the banks

// The column of a tile whose row of B lies `at` rows into it.
__device__ inline u32 column_of(u32 at) {
    return at / 32 * 32 + at % 8 / 2 * 8 + at / 8 % 4 * 2 + at % 2;
}

__device__ inline u32 chunks_of(u32 rank) { return (rank + 15) / 16 * 2; }

template <u32 COLUMNS>
__device__ inline void copy_tile(const LongPair& pair, u32 first, Element (&to)[COLUMNS][STRIDE]) {
    const u32 chunks = chunks_of(pair.rank);
    for (u32 i = threadIdx.x; i < COLUMNS * chunks; i += THREADS) {
        const u32 at = i / chunks, rank = i % chunks * 8;
        const bool exists = rank < pair.rank;
        const Element* row = pair.b + static_cast<u64>(first + column_of(at)) * pair.rank;
        copy_16(&to[at][rank], row + (exists ? rank : 0), exists);
    }
}

// The shrunk activations of the block's rows, rounded; zeros where there are none.
__device__ inline void stage(const LongPair& pair, const float* h, u32 width, u32 rows,
                             Element (*to)[STRIDE]) {
    const u32 chunks = chunks_of(pair.rank);
    for (u32 i = threadIdx.x; i < ROWS * chunks; i += THREADS) {
        const u32 row = i / chunks, rank = i % chunks * 8;
        float values[8] = {};
        if (row < rows && rank < pair.rank) {
            load(values, h + static_cast<u64>(row) * width + pair.h + rank);
        }
        store(&to[row][rank], values);
    }
}

// sums[n] = h B^T of 16 rows and the columns of rows 8 n to 8 n + 7 of a tile; both addresses are
// of what a lane loads first.
template <int TILES>
__device__ inline void multiply(float (&sums)[TILES][4], u32 h, u32 b, u32 rank) {
    constexpr u32 bytes = STRIDE * sizeof(Element);
    for (u32 k = 0; k < (rank + 15) / 16; k++) {
        u32 left[4];
        load_matrices(left, h + k * 32);
#pragma unroll
        for (u32 n = 0; n < TILES; n += 2) {
            u32 right[4];
            load_matrices(right, b + n * 8 * bytes + k * 32);
            multiply_add(sums[n], left, right[0], right[1]);
            multiply_add(sums[n + 1], left, right[2], right[3]);
        }
    }
}

// What a lane moves of two rows of a tile: in each, 8 of every 32 columns.
template <int GROUPS>
struct Moved {
    Pack<8, Element> of[2][GROUPS];

    __device__ void fetch(const Element* from, u64 stride, u32 row, u32 rows) {
#pragma unroll
        for (u32 i = 0; i < 2 * GROUPS; i++) {
            const u32 r = row + i / GROUPS * 8;
            if (r < rows) of[i / GROUPS][i % GROUPS] = ::fetch<8>(from + r * stride + i % GROUPS * 32);
        }
    }

    __device__ void add(float (&to)[8], const float (&sums)[4 * GROUPS][4], u32 i) const {
        widen(to, of[i / GROUPS][i % GROUPS]);
#pragma unroll
        for (u32 n = 0; n < 8; n++) to[n] += sums[i % GROUPS * 4 + n / 2][i / GROUPS * 2 + n % 2];
    }
};

// Where a lane's parts of rows and of columns are, among h and B in shared memory and in the result.
struct Lane {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 tall = (lane % 16 * STRIDE + lane / 16 * 8) * sizeof(Element);
    u32 wide = ((lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8) * sizeof(Element);
    u32 row = warp * 16 + lane / 4, column = lane % 4 * 8;
};
