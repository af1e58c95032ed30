// out = silu(gate + h_gate B_gate^T) * (up + h_up B_up^T) for long segments of prefill whose two
// pairs are whole: expand and activation in one, so that gate and up are read once instead of twice and
// written not at all.
#include "lora_long.cuh"

constexpr u32 COLUMNS = 32, TILES = 16;  // of as many columns that a block takes, one by one

// Both factors of both pairs in shared memory.
struct Shared {
    Element h[2][ROWS][STRIDE];
    Element b[2][2][COLUMNS][STRIDE];  // two tiles
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

    const Lane lane;
    const u64 start = static_cast<u64>(segment.row + first) * p.width;
    const Element* gate_up = p.gate_up + 2 * start + lane.column;
    Element* out = p.out + start + lane.column;
    auto fetch = [&](Moved<1>& gate, Moved<1>& up, u32 tile) {
        gate.fetch(gate_up + tile * COLUMNS, 2 * p.width, lane.row, rows);
        up.fetch(gate_up + p.width + tile * COLUMNS, 2 * p.width, lane.row, rows);
    };
    Moved<1> gate, up, next_gate, next_up;
    fetch(gate, up, begin);
    for (u32 tile = begin, stage = 0; tile < end; tile++, stage ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (tile + 1 < end) {
            fetch(next_gate, next_up, tile + 1);
            for (u32 i = 0; i < 2; i++) {
                copy_tile(segment.pairs[i], (tile + 1) * COLUMNS, shared.b[stage ^ 1][i]);
            }
        }
        commit_copies();
        float sums[2][COLUMNS / 8][4] = {};
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 left = shared_address(&shared.h[i][lane.warp * 16]) + lane.tall;
            const u32 right = shared_address(&shared.b[stage][i]) + lane.wide;
            multiply(sums[i], left, right, segment.pairs[i].rank);
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 r = lane.row + i * 8;
            if (r >= rows) continue;
            float x[8], y[8];
            gate.add(x, sums[0], i);
            up.add(y, sums[1], i);
#pragma unroll
            for (u32 n = 0; n < 8; n++) x[n] = silu(x[n]) * y[n];
            store(out + static_cast<u64>(r) * p.width + tile * COLUMNS, x);
        }
        gate = next_gate, up = next_up;
    }
}
