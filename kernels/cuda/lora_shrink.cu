// h = x A^T for every row of a segment and every pair of its slot (arXiv 2310.18547). With diagonal
// blocks, row j of A reads the inputs of block j / (rank / blocks) only.
// A block of threads takes TILE rows of one A, which never straddle two diagonal blocks, and ROWS
// rows of the batch at a time. The sum over the input is cut across its threads in one fixed way,
// so a row comes out the same whatever else is in its segment.
#include "lora.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32, TILE = 4;

struct Tile {
    const Element* a;  // its first row of A
    u32 rows;          // of A, at most TILE
    u32 inputs;        // read by each
    u32 input;         // the first of them
    u32 h;             // where it writes, in a row's shrunk activations
};

// The n-th tile of the slot's pairs that have this exchange, or one of no rows.
__device__ inline Tile find_tile(const LoraParams& p, const Job& job, u32 n) {
    for (u32 target = 0; target < p.targets; target++) {
        const LoraPair& pair = job.pairs[target];
        if (!job.has(p, target)) continue;
        u32 block_rank = pair.shrink_rank / pair.a_blocks;
        u32 block_tiles = (block_rank + TILE - 1) / TILE;
        if (n < block_tiles * pair.a_blocks) {
            u32 block = n / block_tiles, first = n % block_tiles * TILE;
            u32 row = block * block_rank + first, inputs = p.width / pair.a_blocks;
            const Element* a = pair.a + static_cast<u64>(row) * inputs;
            return {a, min(block_rank - first, TILE), inputs, block * inputs, pair.h + row};
        }
        n -= block_tiles * pair.a_blocks;
    }
    return {};
}

// sums[j][r] += the thread's share of A row j times batch row r. Rows past the end repeat the last
// one, and inputs past the end are zeros, so that the loops have no branches. With one row of the
// batch there are registers to read the inputs of two rounds before the first is multiplied.
template <int ROWS, int N>
__device__ inline void multiply(const LoraParams& p, const Tile& tile, u32 first, u32 end,
                                float (&sums)[TILE][ROWS]) {
    constexpr int ROUNDS = ROWS == 1 ? 2 : 1;
    for (u32 start = threadIdx.x * N; start < tile.inputs; start += ROUNDS * THREADS * N) {
        Pack<N, Element> a[ROUNDS][TILE] = {}, x[ROUNDS][ROWS] = {};
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            u32 i = start + round * THREADS * N;
            if (i >= tile.inputs) continue;
#pragma unroll
            for (u32 j = 0; j < TILE; j++) {
                u64 row = min(j, tile.rows - 1);
                a[round][j] = fetch<N>(in_device_memory(tile.a) + row * tile.inputs + i);
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                u64 row = min(first + r, end - 1);
                x[round][r] = fetch<N>(p.x + row * p.width + tile.input + i);
            }
        }
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            float weights[TILE][N];
#pragma unroll
            for (int j = 0; j < TILE; j++) widen(weights[j], a[round][j]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float inputs[N];
                widen(inputs, x[round][r]);
#pragma unroll
                for (int j = 0; j < TILE; j++) {
#pragma unroll
                    for (int n = 0; n < N; n++) sums[j][r] += weights[j][n] * inputs[n];
                }
            }
        }
    }
}

template <int ROWS>
__device__ inline void write(const LoraParams& p, const Job& job, const Tile& tile, u32 row,
                             const float (&sums)[TILE][ROWS]) {
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
    if (r >= min(job.segment.rows - row, ROWS) || j >= tile.rows) return;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += shares[warp][j][r];
    p.h[job.start + (row + r) * job.width + tile.h + j] = sum;
}

template <int ROWS>
__device__ void shrink(const LoraParams& p) {
    wait_for_previous();
    const Job& job = own_job(p);
    const Tile tile = find_tile(p, job, blockIdx.x);
    if (tile.rows == 0) return;
    for (u32 row = blockIdx.z * ROWS; row < job.segment.rows; row += gridDim.z * ROWS) {
        float sums[TILE][ROWS] = {};
        u32 first = job.segment.row + row, end = job.segment.row + job.segment.rows;
        if (p.width % 8 == 0 && tile.inputs % 8 == 0) {
            multiply<ROWS, 8>(p, tile, first, end, sums);
        } else {
            multiply<ROWS, 1>(p, tile, first, end, sums);
        }
        write<ROWS>(p, job, tile, row, sums);
    }
}

// Grid: tiles, segments, groups of rows.
extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_shrink_1(LoraParams p) {
    shrink<1>(p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) lora_shrink_8(LoraParams p) {
    shrink<8>(p);
}
