// As lora_gated.cu, where both pairs have up to 16 lora ranks: a warp keeps B of 64 columns and goes
// through rows, those of the next turn under way, and no warp waits for others.
#include "lora_few.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / 32, TURNS = 8;

// Rows of one turn.
struct Turn {
    FewSum sums[2];
    FewShrunk h[2];

    __device__ void fetch(const LoraGatedParams& p, const GatedSegment& segment, u32 column, u32 row) {
        if (row >= segment.rows) return;
        const u32 rows = segment.rows - row;
        const Element* from = p.gate_up + 2 * static_cast<u64>(segment.row + row) * p.width + column;
        const float* shrunk = p.h + segment.h + static_cast<u64>(row) * segment.width;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            sums[i].fetch(from + i * p.width, 2 * p.width, rows);
            h[i].fetch(shrunk + segment.pairs[i].h, segment.width, segment.pairs[i].rank, rows);
        }
    }

    __device__ void write(const FewFactor (&b)[2], Element* to, u64 stride, u32 rows) {
        const FewLane lane;
        float gate[2][8], out[2][8];
        u32 rounded[2];
        h[0].round(rounded);
        sums[0].add(b[0], rounded, [&](u32 i, u32 n, float one, float two) {
            gate[i][n * 2] = one, gate[i][n * 2 + 1] = two;
        });
        h[1].round(rounded);
        sums[1].add(b[1], rounded, [&](u32 i, u32 n, float one, float two) {
            out[i][n * 2] = silu(gate[i][n * 2]) * one;
            out[i][n * 2 + 1] = silu(gate[i][n * 2 + 1]) * two;
        });
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 row = lane.t * 2 + i;
            if (row < rows) store(to + row * stride + lane.g * 8, out[i]);
        }
    }
};

// Grid: WARPS tiles of columns, TURNS times 8 rows, segments.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    lora_gated_few(const __grid_constant__ LoraGatedParams p) {
    const GatedSegment& segment = p.segments[blockIdx.z];
    const u32 column = (blockIdx.x * WARPS + threadIdx.x / 32) * FEW_COLUMNS;
    const u32 first = blockIdx.y * TURNS * FEW_ROWS, end = min(first + TURNS * FEW_ROWS, segment.rows);
    if (column >= p.width || first >= end) return;
    FewFactor b[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const LongPair& pair = segment.pairs[i];
        b[i].fetch(pair.b + static_cast<u64>(column) * pair.rank, pair.rank);
    }
    wait_for_previous();
    Turn turn, next;
    turn.fetch(p, segment, column, first);
    for (u32 row = first; row < end; row += FEW_ROWS) {
        if (row + FEW_ROWS < end) next.fetch(p, segment, column, row + FEW_ROWS);
        Element* to = p.out + static_cast<u64>(segment.row + row) * p.width + column;
        turn.write(b, to, p.width, end - row);
        turn = next;
    }
}
