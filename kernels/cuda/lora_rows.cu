// Shrink and expand where segments have many rows, prefill, on tensor cores of 16 bits, for pairs
// without an exchange and with no diagonal blocks narrower than a tile.
//
// shrink is bound by reading x, so a block takes 32 rows and as many lora ranks as there are registers
// for; its warps cut the inputs. expand is bound by reading and writing y: a warp adds to 16 rows, 64
// columns at a time, 16 bytes a lane.
#include "lora.cuh"
#include "mma.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int GROUPS = 6;        // tiles of 8 lora ranks that shrink takes at once
constexpr u32 SHRINK_ROWS = 32;  // of a segment
constexpr int AHEAD = 2;         // steps of 32 inputs on their way

// The part of one warp: rows g, g + 8, g + 16, g + 24 of 32, and lora rank g of every tile, in the
// layout of lora_decode_shrink.cu.
struct Warp {
    const LoraRowsParams& p;
    const Segment segment;
    const ShrinkTile* tiles;  // GROUPS of them, those that there are not with 0 rows
    u32 row, g, t;
    float sums[2][GROUPS][4];

    struct Step {
        uint4 x[2][2], a[GROUPS];
    };

    __device__ void fetch(Step& to, u32 step) const {
        const u32 input = step * 32 + t * 8, inputs = p.width;
        const bool exists = input < inputs;
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 r = row + tile * 16 + half * 8 + g;
                const bool inside = exists && r < segment.rows;
                const Element* from = p.x + static_cast<u64>(segment.row + r) * inputs + input;
                to.x[tile][half] = inside ? ::fetch<8>(from).raw.words : uint4{};
            }
        }
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const bool inside = exists && g < tiles[group].rows;
            const Element* from =
                in_device_memory(tiles[group].a) + static_cast<u64>(g) * inputs + input;
            to.a[group] = inside ? ::fetch<8>(from).raw.words : uint4{};
        }
    }

    __device__ void multiply(const Step& from) {
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const uint4 low = from.x[tile][0], high = from.x[tile][1];
            const u32 first[4] = {low.x, high.x, low.y, high.y};
            const u32 second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                const uint4 a = from.a[group];
                multiply_add(sums[tile][group], first, a.x, a.y);
                multiply_add(sums[tile][group], second, a.z, a.w);
            }
        }
    }

    __device__ void run() {
        const u32 steps = (p.width + 31) / 32, share = (steps + WARPS - 1) / WARPS;
        const u32 begin = min(threadIdx.x / 32 * share, steps), end = min(begin + share, steps);
        Step ahead[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (begin + i < end) fetch(ahead[i], begin + i);
        }
        for (u32 step = begin; step < end; step += AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (step + i >= end) break;
                multiply(ahead[i]);
                if (step + AHEAD + i < end) fetch(ahead[i], step + AHEAD + i);
            }
        }
    }

    // Adds up what the warps have, 16 rows at a time.
    __device__ void write(const Job& job) const {
        __shared__ float shares[WARPS][16][GROUPS * 8];
        float(*own)[GROUPS * 8] = shares[threadIdx.x / 32];
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            __syncthreads();
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    own[g + i / 2 * 8][group * 8 + t * 2 + i % 2] = sums[tile][group][i];
                }
            }
            __syncthreads();
            for (u32 i = threadIdx.x; i < 16 * GROUPS * 8; i += THREADS) {
                const u32 r = i / (GROUPS * 8), column = i % (GROUPS * 8);
                const ShrinkTile& of = tiles[column / 8];
                const u32 at = row + tile * 16 + r;
                if (at >= segment.rows || column % 8 >= of.rows) continue;
                float sum = 0.0f;
#pragma unroll
                for (int warp = 0; warp < WARPS; warp++) sum += shares[warp][r][column];
                p.lora.h[job.start + at * job.width + of.h + column % 8] = sum;
            }
        }
    }
};

// Grid: groups of rows, segments, groups of tiles.
extern "C" __global__ void __launch_bounds__(THREADS, 1) lora_rows_shrink(LoraRowsParams p) {
    __shared__ ShrinkTile tiles[GROUPS];
    wait_for_previous();
    const Job& job = own_job(p.lora);
    const u32 row = blockIdx.x * SHRINK_ROWS, first = blockIdx.z * GROUPS;
    if (row >= job.segment.rows || job.width == 0) return;
    if (threadIdx.x < GROUPS) {
        const u32 tile = first + threadIdx.x;
        tiles[threadIdx.x] = ShrinkTile{};
        if (tile < p.shrink_tiles) {
            tiles[threadIdx.x] = p.shrink[job.segment.slot * p.shrink_tiles + tile];
        }
    }
    __syncthreads();
    if (tiles[0].rows == 0) return;
    Warp warp = {p, job.segment, tiles, row, threadIdx.x % 32 / 4, threadIdx.x % 4, {}};
    warp.run();
    warp.write(job);
}

constexpr u32 COLUMNS = 64;                // that a warp adds to at once
constexpr u32 TILES = 4;                   // of as many columns that a block takes
constexpr u32 EXPAND_ROWS = 16 * WARPS;    // of a segment, likewise
constexpr u32 STRIDE = COLUMNS + 4;        // in shared memory; the padding parts the banks

// A pair of 16-bit numbers whose sum with another such pair is nearly that of f32.
__device__ inline u32 rest_of(float low, float high, u32 rounded) {
    Element a, b;
    a.bits = static_cast<unsigned short>(rounded), b.bits = static_cast<unsigned short>(rounded >> 16);
    return pair_of(low - to_f32(a), high - to_f32(b));
}

// Four shrunk activations from `rank` on, zeros from `end` on.
__device__ inline void shrunk(float (&to)[4], const float* row, u32 rank, u32 end, bool exists) {
#pragma unroll
    for (u32 n = 0; n < 4; n++) to[n] = exists && rank + n < end ? row[rank + n] : 0.0f;
}

// Four elements of a row of B, likewise.
__device__ inline uint2 weights(const Element* row, u32 rank, u32 end) {
    if (end % 4 == 0) return rank < end ? fetch<4>(row + rank).raw.words : uint2{};
    Element elements[4] = {};
#pragma unroll
    for (u32 n = 0; n < 4; n++) {
        if (rank + n < end) elements[n] = row[rank + n];
    }
    uint2 words;
    memcpy(&words, elements, sizeof(words));
    return words;
}

// sums[n] = 16 rows of h times columns 8 n to 8 n + 7 of B^T. Lane l = 4 g + t holds of every 16
// lora ranks those from 4 t on: of rows g and g + 8, and of column g.
__device__ inline void multiply(float (&sums)[COLUMNS / 8][4], const float* h, u32 stride, u32 rows,
                                const Element* b, u32 ranks) {
    const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (u32 rank = t * 4; rank < (ranks + 15) / 16 * 16; rank += 16) {
        float low[4], high[4];
        shrunk(low, h + static_cast<u64>(g) * stride, rank, ranks, g < rows);
        shrunk(high, h + static_cast<u64>(g + 8) * stride, rank, ranks, g + 8 < rows);
        const u32 near[4] = {pair_of(low[0], low[1]), pair_of(high[0], high[1]),
                             pair_of(low[2], low[3]), pair_of(high[2], high[3])};
        const u32 rest[4] = {rest_of(low[0], low[1], near[0]), rest_of(high[0], high[1], near[1]),
                             rest_of(low[2], low[3], near[2]), rest_of(high[2], high[3], near[3])};
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++) {
            const uint2 weight = weights(b + static_cast<u64>(n * 8 + g) * ranks, rank, ranks);
            multiply_add(sums[n], near, weight.x, weight.y);
            multiply_add(sums[n], rest, weight.x, weight.y);
        }
    }
}

// What a lane adds to: 8 neighbouring columns of some rows.
struct Old {
    static constexpr int EACH = 16 * COLUMNS / 8 / 32;

    u32 row = threadIdx.x % 32 / (COLUMNS / 8), column = threadIdx.x % (COLUMNS / 8) * 8;
    Pack<8, Element> of[EACH];

    __device__ void fetch(const Element* y, u32 width, u32 rows) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const u32 r = row + i * (16 / EACH);
            if (r < rows) of[i] = ::fetch<8>(y + static_cast<u64>(r) * width + column);
        }
    }
};

// y = old + sums, by way of shared memory.
__device__ inline void add(const float (&sums)[COLUMNS / 8][4], float (*staged)[STRIDE], Element* y,
                           const Old& old, u32 width, u32 rows) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) staged[g + i / 2 * 8][n * 8 + t * 2 + i % 2] = sums[n][i];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Old::EACH; i++) {
        const u32 r = old.row + i * (16 / Old::EACH);
        if (r >= rows) continue;
        float sum[8], delta[8];
        widen(sum, old.of[i]);
        load(delta, &staged[r][old.column]);
#pragma unroll
        for (int n = 0; n < 8; n++) sum[n] += delta[n];
        store(y + static_cast<u64>(r) * width + old.column, sum);
    }
}

// Adds a pair's part to the columns from `output` on, if it has one there.
__device__ inline void add_pair(const LoraRowsParams& p, const Job& job, const LoraPair& pair,
                                u32 row, u32 output, float (*staged)[STRIDE]) {
    const u32 within = output - pair.output, rows = min(job.segment.rows - row, 16u);
    if (output < pair.output || within >= pair.outputs) return;
    const u32 ranks = pair.expand_rank / pair.b_blocks;
    const u32 block = within / (pair.outputs / pair.b_blocks);
    const float* h = p.lora.h + job.start + row * job.width + pair.h + block * ranks;
    Element* y = p.lora.y + static_cast<u64>(job.segment.row + row) * p.width + output;
    Old old;
    old.fetch(y, p.width, rows);
    float sums[COLUMNS / 8][4] = {};
    multiply(sums, h, job.width, rows,
             in_device_memory(pair.b) + static_cast<u64>(within) * ranks, ranks);
    add(sums, staged, y, old, p.width, rows);
}

// Grid: tiles of columns, segments, groups of rows. Every pair starts and ends at a tile.
extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_rows_expand(LoraRowsParams p) {
    __shared__ __align__(16) float staged[WARPS][16][STRIDE];
    wait_for_previous();
    const Job& job = own_job(p.lora);
    const u32 warp = threadIdx.x / 32, row = blockIdx.z * EXPAND_ROWS + warp * 16;
    if (row >= job.segment.rows) return;
    for (u32 tile = blockIdx.x * TILES; tile < (blockIdx.x + 1) * TILES; tile++) {
        for (u32 target = 0; target < p.lora.targets; target++) {
            if (!job.has(p.lora, target)) continue;
            add_pair(p, job, job.pairs[target], row, tile * COLUMNS, staged[warp]);
        }
    }
}
