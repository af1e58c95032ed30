// out = silu(gate + h_gate B_gate^T) * (up + h_up B_up^T) for long segments of prefill whose two
// pairs are whole, on tensor cores of 16 bits: expand and activation in one, so that gate and up
// are read once instead of twice and written not at all.
// A block takes 128 rows, 16 a warp, and 64 columns at a time of both, whose rows of B are on their
// way one tile ahead. They lie in shared memory in the order that gives a lane 8 neighbouring
// columns of a result: it moves 16 bytes of gate, up and out without asking other lanes.
#include "mma.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr u32 ROWS = 16 * THREADS / 32;
constexpr u32 COLUMNS = 64, TILES = 8;  // of as many columns that a block takes, one by one
constexpr u32 STRIDE = GATED_RANK_MAX + 8;  // in shared memory; the padding parts the banks

// Both factors of both pairs in shared memory.
struct Shared {
    Element h[2][ROWS][STRIDE];
    Element b[2][2][COLUMNS][STRIDE];  // two tiles
};

// The column of a tile whose row of B lies `at` rows into it.
__device__ inline u32 column_of(u32 at) {
    return at / 32 * 32 + at % 8 / 2 * 8 + at / 8 % 4 * 2 + at % 2;
}

__device__ inline u32 chunks_of(u32 rank) { return (rank + 15) / 16 * 2; }

__device__ inline void copy_tile(const GatedPair& pair, u32 first, Element (*to)[STRIDE]) {
    const u32 chunks = chunks_of(pair.rank);
    for (u32 i = threadIdx.x; i < COLUMNS * chunks; i += THREADS) {
        const u32 at = i / chunks, rank = i % chunks * 8;
        const bool exists = rank < pair.rank;
        const Element* row = pair.b + static_cast<u64>(first + column_of(at)) * pair.rank;
        copy_16(&to[at][rank], row + (exists ? rank : 0), exists);
    }
}

// The shrunk activations of the block's rows, rounded; zeros where there are none.
__device__ inline void stage(const GatedPair& pair, const float* h, u32 width, u32 rows,
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
__device__ inline void multiply(float (&sums)[COLUMNS / 8][4], u32 h, u32 b, u32 rank) {
    constexpr u32 bytes = STRIDE * sizeof(Element);
    for (u32 k = 0; k < (rank + 15) / 16; k++) {
        u32 left[4];
        load_matrices(left, h + k * 32);
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 8; n += 2) {
            u32 right[4];
            load_matrices(right, b + n * 8 * bytes + k * 32);
            multiply_add(sums[n], left, right[0], right[1]);
            multiply_add(sums[n + 1], left, right[2], right[3]);
        }
    }
}

// What a lane moves of two rows of a tile: in each, 8 columns of either half.
struct Moved {
    Pack<8, Element> of[2][2];

    __device__ void fetch(const Element* from, u64 stride, u32 row, u32 rows) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 r = row + i / 2 * 8;
            if (r < rows) of[i / 2][i % 2] = ::fetch<8>(from + r * stride + i % 2 * 32);
        }
    }

    __device__ void add(float (&to)[8], const float (&sums)[COLUMNS / 8][4], u32 i) const {
        widen(to, of[i / 2][i % 2]);
#pragma unroll
        for (u32 n = 0; n < 8; n++) to[n] += sums[i % 2 * 4 + n / 2][i / 2 * 2 + n % 2];
    }
};

// Grid: groups of TILES tiles of columns, groups of ROWS rows, segments.
extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_gated(LoraGatedParams p) {
    extern __shared__ __align__(16) unsigned char bytes[];
    Shared& shared = *reinterpret_cast<Shared*>(bytes);
    const GatedSegment& segment = p.segments[blockIdx.z];
    const u32 first = blockIdx.y * ROWS, tiles = p.width / COLUMNS;
    if (first >= segment.rows) return;
    const u32 rows = min(segment.rows - first, ROWS);
    const u32 begin = blockIdx.x * TILES, end = min(begin + TILES, tiles);

    // Factors are written by no kernel: the first tile of them need not wait.
    for (u32 i = 0; i < 2; i++) copy_tile(segment.pairs[i], begin * COLUMNS, shared.b[0][i]);
    commit_copies();
    wait_for_previous();
    const float* h = p.h + segment.h + static_cast<u64>(first) * segment.width;
    for (u32 i = 0; i < 2; i++) stage(segment.pairs[i], h, segment.width, rows, shared.h[i]);

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 tall = (lane % 16 * STRIDE + lane / 16 * 8) * sizeof(Element);
    const u32 wide = ((lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8) * sizeof(Element);
    const u32 row = warp * 16 + lane / 4, column = lane % 4 * 8;
    const u64 start = static_cast<u64>(segment.row + first) * p.width;
    const Element* gate_up = p.gate_up + 2 * start + column;
    Element* out = p.out + start + column;
    for (u32 tile = begin, stage = 0; tile < end; tile++, stage ^= 1) {
        Moved gate, up;
        gate.fetch(gate_up + tile * COLUMNS, 2 * p.width, row, rows);
        up.fetch(gate_up + p.width + tile * COLUMNS, 2 * p.width, row, rows);
        wait_copies<0>();
        __syncthreads();
        if (tile + 1 < end) {
            for (u32 i = 0; i < 2; i++) {
                copy_tile(segment.pairs[i], (tile + 1) * COLUMNS, shared.b[stage ^ 1][i]);
            }
        }
        commit_copies();
        float sums[2][COLUMNS / 8][4] = {};
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 left = shared_address(&shared.h[i][warp * 16]) + tall;
            const u32 right = shared_address(&shared.b[stage][i]) + wide;
            multiply(sums[i], left, right, segment.pairs[i].rank);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 r = row + i / 2 * 8;
            if (r >= rows) continue;
            float x[8], y[8];
            gate.add(x, sums[0], i);
            up.add(y, sums[1], i);
#pragma unroll
            for (u32 n = 0; n < 8; n++) x[n] = x[n] / (1.0f + __expf(-x[n])) * y[n];
            store(out + static_cast<u64>(r) * p.width + tile * COLUMNS + i % 2 * 32, x);
        }
    }
}
