// h = x A^T for every row of a segment and every pair of its slot (arXiv 2310.18547). With diagonal
// blocks, row j of A reads the inputs of block j / (rank / blocks) only.
// A block of threads takes TILE rows of one A, which never straddle two diagonal blocks, and ROWS
// rows of the batch at a time. The sum over the input is cut across its threads in one fixed way, so
// a row comes out the same whatever else is in its segment.
#include "lora.cuh"
#include "reduce.cuh"

constexpr int THREADS = 128, WARPS = THREADS / 32, TILE = 4;

struct Tile {
    const Element* a;  // its first row of A
    u32 rows;          // of A, at most TILE
    u32 inputs;        // read by each
    u32 input;         // the first of them
    u32 h;             // where it writes, in a row's shrunk activations
};

// The n-th tile of the slot's pairs that have this exchange, or one of no rows.
__device__ inline Tile find_tile(const LoraParams& p, u32 slot, u32 n) {
    for (u32 target = 0; target < p.targets; target++) {
        const LoraPair pair = p.pairs[slot * p.targets + target];
        if (pair.shrink_rank == 0 || pair.exchange != p.exchange) continue;
        u32 block_rank = pair.shrink_rank / pair.a_blocks;
        u32 block_tiles = (block_rank + TILE - 1) / TILE;
        if (n < block_tiles * pair.a_blocks) {
            u32 block = n / block_tiles, first = n % block_tiles * TILE;
            u32 row = block * block_rank + first, inputs = p.width / pair.a_blocks;
            return {pair.a + static_cast<u64>(row) * inputs, min(block_rank - first, TILE), inputs,
                    block * inputs, pair.h + row};
        }
        n -= block_tiles * pair.a_blocks;
    }
    return {};
}

// sums[j][r] += the thread's share of A row j times batch row r. Rows past the end repeat the last
// one, so that the loops have no branches; their sums are dropped.
template <int ROWS, int N>
__device__ inline void multiply(const LoraParams& p, const Tile& tile, u32 first, u32 end,
                                float (&sums)[TILE][ROWS]) {
#pragma unroll 2
    for (u32 i = threadIdx.x * N; i < tile.inputs; i += THREADS * N) {
        Pack<N, Element> a[TILE];
        Pack<N, Element> x[ROWS];
#pragma unroll
        for (u32 j = 0; j < TILE; j++) {
            u64 row = min(j, tile.rows - 1);
            a[j] = *reinterpret_cast<const Pack<N, Element>*>(tile.a + row * tile.inputs + i);
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            u64 row = min(first + r, end - 1);
            const Element* from = p.x + row * p.width + tile.input + i;
            x[r] = *reinterpret_cast<const Pack<N, Element>*>(from);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int j = 0; j < TILE; j++) {
#pragma unroll
                for (int n = 0; n < N; n++) {
                    sums[j][r] += to_f32(a[j].at[n]) * to_f32(x[r].at[n]);
                }
            }
        }
    }
}

template <int ROWS>
__device__ inline void write(const LoraParams& p, const Tile& tile, u32 rows, const Shrunk& at,
                             u32 row, float (&sums)[TILE][ROWS]) {
    __shared__ float shares[WARPS][TILE][ROWS];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < TILE; j++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float share = warp_sum(sums[j][r]);
            if (threadIdx.x % 32 == 0) shares[threadIdx.x / 32][j][r] = share;
        }
    }
    __syncthreads();
    u32 r = threadIdx.x / TILE, j = threadIdx.x % TILE;
    if (r >= rows || j >= tile.rows) return;
    float sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) sum += shares[warp][j][r];
    p.h[at.start + (row + r) * at.width + tile.h + j] = sum;
}

template <int ROWS>
__device__ void shrink(const LoraParams& p) {
    const Segment segment = p.segments[blockIdx.y];
    const Tile tile = find_tile(p, segment.slot, blockIdx.x);
    if (tile.rows == 0) return;
    const Shrunk at = shrunk(p, blockIdx.y);
    for (u32 row = blockIdx.z * ROWS; row < segment.rows; row += gridDim.z * ROWS) {
        float sums[TILE][ROWS] = {};
        u32 first = segment.row + row, end = segment.row + segment.rows;
        if (p.width % 8 == 0 && tile.inputs % 8 == 0) {
            multiply<ROWS, 8>(p, tile, first, end, sums);
        } else {
            multiply<ROWS, 1>(p, tile, first, end, sums);
        }
        write<ROWS>(p, tile, min(segment.rows - row, ROWS), at, row, sums);
    }
}

// Grid: tiles, segments, groups of rows.
extern "C" __global__ void __launch_bounds__(THREADS) lora_shrink_1(LoraParams p) { shrink<1>(p); }

extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_shrink_8(LoraParams p) { shrink<8>(p); }
