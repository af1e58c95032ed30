// Shrink and expand where every sequence has one row (arXiv 2310.18547), for 16 bits. Blocks take
// pieces of work in turn: how many there are is in device memory, not in the launch, so one recorded
// launch serves every mix of adapters.
//
// h is [splits, rows, h_stride]: to fill the card with few adapters, the inputs of shrink are cut
// into `splits`, and expand adds the parts up, in order.
#include "mma.cuh"
#include "params.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr u32 ROWS = 16;  // of one segment that shrink takes at once
constexpr int AHEAD = 4;  // steps of 32 inputs on their way

// 8 elements from `at` on, zeros from `end` on.
template <bool ALIGNED>
__device__ inline uint4 eight(const Element* row, u32 at, u32 end) {
    if (at >= end) return uint4{};
    if (ALIGNED) return fetch<8>(row + at).raw.words;
    Element elements[8] = {};
#pragma unroll
    for (int n = 0; n < 8; n++) {
        if (at + n < end) elements[n] = row[at + n];
    }
    uint4 words;
    memcpy(&words, elements, sizeof(words));
    return words;
}

// One warp's part of a piece: steps of 32 inputs from `begin` to `end`.
struct Part {
    ShrinkTile tile;
    Segment segment;
    u32 split, begin, end;

    __device__ Part(const LoraDecodeParams& p, u32 item) {
        const u32 each = p.shrink_tiles * p.splits, rest = item % each;
        segment = p.segments[item / each];
        tile = p.shrink[segment.slot * p.shrink_tiles + rest / p.splits];
        split = rest % p.splits;
        const u32 steps = (tile.inputs + 31) / 32, shares = p.splits * WARPS;
        const u32 share = (steps + shares - 1) / shares;
        begin = min((split * WARPS + threadIdx.x / 32) * share, steps);
        end = min(begin + share, steps);
    }

    // Row g of A, in the layout of gemm_few.cu.
    template <bool ALIGNED>
    __device__ void fetch_a(uint4 (&a)[AHEAD], u32 step) const {
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            a[i] = uint4{};
            if (g >= tile.rows || step + i >= end) continue;
            const Element* row = tile.a + static_cast<u64>(g) * tile.inputs;
            a[i] = eight<ALIGNED>(row, (step + i) * 32 + t * 8, tile.inputs);
        }
    }

    // sums of rows g and g + 8 from `row` on, ranks 2 t and the next.
    template <bool ALIGNED>
    __device__ void multiply(const LoraDecodeParams& p, const uint4 (&a)[AHEAD], u32 step, u32 row,
                             float (&sums)[4]) const {
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        uint4 x[AHEAD][2];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 r = row + half * 8 + g;
                x[i][half] = uint4{};
                if (r >= segment.rows || step + i >= end) continue;
                const Element* from = p.x + static_cast<u64>(segment.row + r) * p.width + tile.input;
                x[i][half] = eight<ALIGNED>(from, (step + i) * 32 + t * 8, tile.inputs);
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const uint4 low = x[i][0], high = x[i][1];
            const u32 first[4] = {low.x, high.x, low.y, high.y};
            const u32 second[4] = {low.z, high.z, low.w, high.w};
            multiply_add(sums, first, a[i].x, a[i].y);
            multiply_add(sums, second, a[i].z, a[i].w);
        }
    }

    __device__ void write(const LoraDecodeParams& p, u32 row, const float (&sums)[4]) const {
        __shared__ float shares[WARPS][ROWS][8];
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        float(*own)[8] = shares[threadIdx.x / 32];
        __syncthreads();
        own[g][2 * t] = sums[0], own[g][2 * t + 1] = sums[1];
        own[g + 8][2 * t] = sums[2], own[g + 8][2 * t + 1] = sums[3];
        __syncthreads();
        const u32 r = threadIdx.x / 8, j = threadIdx.x % 8;
        if (r >= ROWS || row + r >= segment.rows || j >= tile.rows) return;
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += shares[warp][r][j];
        p.h[static_cast<u64>(split * p.rows + segment.row + row + r) * p.h_stride + tile.h + j] =
            sum;
    }
};

// A is on its way before the kernel that makes x has ended.
template <bool ALIGNED>
__device__ inline void shrink(const LoraDecodeParams& p, const Part& part, bool& waited) {
    uint4 a[AHEAD];
    part.fetch_a<ALIGNED>(a, part.begin);
    if (!waited) wait_for_previous();
    waited = true;
    for (u32 row = 0; row < part.segment.rows; row += ROWS) {
        float sums[4] = {};
        for (u32 step = part.begin; step < part.end; step += AHEAD) {
            if (row > 0 || step > part.begin) part.fetch_a<ALIGNED>(a, step);
            part.multiply<ALIGNED>(p, a, step, row, sums);
        }
        part.write(p, row, sums);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) lora_decode_shrink(LoraDecodeParams p) {
    const u32 items = *p.segment_count * p.shrink_tiles * p.splits;
    bool waited = false;
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        const Part part(p, item);
        if (part.tile.rows == 0) continue;
        const bool aligned = (part.tile.inputs | part.tile.input | p.width) % 8 == 0;
        aligned ? shrink<true>(p, part, waited) : shrink<false>(p, part, waited);
    }
    if (!waited) wait_for_previous();
}

constexpr u32 EXPAND_ROWS = 8;  // of one segment that expand takes at once
constexpr u32 CHUNK = 32;       // lora ranks on their way

// One output column of a piece: its row of B.
struct Column {
    Segment segment;
    LoraPair pair;
    const Element* b;
    u32 output, ranks, h;  // column of the site's output row; lora ranks, from `h` on
    bool any, found;  // whether the target has a pair, and whether that adds to this column

    __device__ Column(const LoraDecodeParams& p, u32 item, u32 tiles) {
        const u32 tile = item % tiles;
        segment = p.segments[item / tiles];
        u32 target = 0;
        while (tile >= p.tile_end[target]) target++;
        const u32 first = target == 0 ? 0 : p.tile_end[target - 1];
        pair = p.pairs[segment.slot * p.targets + target];
        output = p.target_column[target] + (tile - first) * THREADS + threadIdx.x;
        const u32 within = output - pair.output;
        any = pair.shrink_rank > 0 && pair.exchange == 0;
        found = any && output >= pair.output && within < pair.outputs;
        if (!found) return;
        ranks = pair.expand_rank / pair.b_blocks;
        h = within / (pair.outputs / pair.b_blocks) * ranks;
        b = pair.b + static_cast<u64>(within) * ranks;
    }

    __device__ void fetch_b(uint4 (&to)[CHUNK / 8], u32 rank) const {
#pragma unroll
        for (u32 i = 0; i < CHUNK / 8; i++) {
            to[i] = found && ranks % 8 == 0 && rank + i * 8 < ranks
                        ? fetch<8>(b + rank + i * 8).raw.words
                        : uint4{};
        }
    }

    __device__ void stage(const LoraDecodeParams& p, u32 row, float* staged) const {
        const u32 ranks = pair.expand_rank, rows = min(segment.rows - row, EXPAND_ROWS);
        const u64 part = static_cast<u64>(p.rows) * p.h_stride;
        for (u32 i = threadIdx.x; i < rows * ranks; i += THREADS) {
            const u32 r = i / ranks, rank = i % ranks;
            const float* from =
                p.h + static_cast<u64>(segment.row + row + r) * p.h_stride + pair.h + rank;
            float sum = 0.0f;
            for (u32 split = 0; split < p.splits; split++) sum += from[split * part];
            staged[r * p.h_stride + rank] = sum;
        }
    }

    // sums[r] += B times the shrunk activations of row r.
    __device__ void multiply(const LoraDecodeParams& p, uint4 (&ahead)[CHUNK / 8], u32 rows,
                             const float* staged, float (&sums)[EXPAND_ROWS]) const {
        if (ranks % 8 != 0) {
            for (u32 i = 0; i < ranks; i++) {
                const float weight = to_f32(b[i]);
#pragma unroll
                for (u32 r = 0; r < EXPAND_ROWS; r++) {
                    if (r < rows) sums[r] += weight * staged[r * p.h_stride + h + i];
                }
            }
            return;
        }
        for (u32 rank = 0; rank < ranks; rank += CHUNK) {
            uint4 now[CHUNK / 8];
#pragma unroll
            for (u32 i = 0; i < CHUNK / 8; i++) now[i] = ahead[i];
            fetch_b(ahead, rank + CHUNK);
#pragma unroll
            for (u32 i = 0; i < CHUNK / 8; i++) {
                if (rank + i * 8 >= ranks) break;
                float weights[8];
                widen(weights, Pack<8, Element>{{now[i]}});
                const float* from = staged + h + rank + i * 8;
#pragma unroll
                for (u32 r = 0; r < EXPAND_ROWS; r++) {
                    if (r >= rows) break;
                    float shrunk[8];
                    load(shrunk, from + r * p.h_stride);
#pragma unroll
                    for (int n = 0; n < 8; n++) sums[r] += weights[n] * shrunk[n];
                }
            }
        }
    }
};

// B is on its way before the kernels that make h and y have ended.
__device__ inline void expand(const LoraDecodeParams& p, const Column& column, float* staged,
                              bool& waited) {
    uint4 ahead[CHUNK / 8];
    column.fetch_b(ahead, 0);
    if (!waited) wait_for_previous();
    waited = true;
    for (u32 row = 0; row < column.segment.rows; row += EXPAND_ROWS) {
        const u32 rows = min(column.segment.rows - row, EXPAND_ROWS);
        __syncthreads();
        column.stage(p, row, staged);
        __syncthreads();
        if (row > 0) column.fetch_b(ahead, 0);
        if (!column.found) continue;
        float sums[EXPAND_ROWS] = {};
        column.multiply(p, ahead, rows, staged, sums);
        Element* y =
            p.y + static_cast<u64>(column.segment.row + row) * p.width + column.output;
#pragma unroll
        for (u32 r = 0; r < EXPAND_ROWS; r++, y += p.width) {
            if (r < rows) from_f32(*y, to_f32(*y) + sums[r]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) lora_decode_expand(LoraDecodeParams p) {
    extern __shared__ __align__(16) float staged[];  // [EXPAND_ROWS, h_stride]
    const u32 tiles = p.tile_end[p.targets - 1], items = *p.segment_count * tiles;
    bool waited = false;
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        const Column column(p, item, tiles);
        if (column.any) expand(p, column, staged, waited);
    }
    if (!waited) wait_for_previous();
}
