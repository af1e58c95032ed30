// y += h B^T for long segments of prefill: bound by reading and writing y, whose next tile is on its way
// while one is added to.
#include "lora_long.cuh"

constexpr u32 COLUMNS = 64, TILES = 8;  // of as many columns that a block takes, one by one

// Both factors in shared memory.
struct Shared {
    Element h[ROWS][STRIDE];
    Element b[2][COLUMNS][STRIDE];  // two tiles
};

// Grid: groups of TILES tiles of columns, groups of ROWS rows, entries.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    lora_long_expand(const __grid_constant__ LoraLongExpandParams p) {
    extern __shared__ __align__(16) unsigned char bytes[];
    Shared& shared = *reinterpret_cast<Shared*>(bytes);
    const LongExpand& own = p.entries[blockIdx.z];
    const u32 first = blockIdx.y * ROWS, begin = blockIdx.x * TILES;
    const u32 end = min(begin + TILES, own.columns / COLUMNS);
    if (first >= own.rows || begin >= end) return;
    const u32 rows = min(own.rows - first, ROWS);

    // Factors are written by no kernel: the first tile of them need not wait.
    copy_tile(own.pair, begin * COLUMNS, shared.b[0]);
    commit_copies();
    wait_for_previous();
    const Lane lane;
    Element* y = p.y + static_cast<u64>(own.row + first) * p.width + own.column + lane.column;
    Moved<COLUMNS / 32> old, next;
    old.fetch(y + begin * COLUMNS, p.width, lane.row, rows);
    const float* h = p.h + own.h + static_cast<u64>(first) * own.width;
    stage(own.pair, h, own.width, rows, shared.h);
    for (u32 tile = begin, turn = 0; tile < end; tile++, turn ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (tile + 1 < end) {
            next.fetch(y + (tile + 1) * COLUMNS, p.width, lane.row, rows);
            copy_tile(own.pair, (tile + 1) * COLUMNS, shared.b[turn ^ 1]);
        }
        commit_copies();
        float sums[COLUMNS / 8][4] = {};
        const u32 left = shared_address(&shared.h[lane.warp * 16]) + lane.tall;
        multiply(sums, left, shared_address(&shared.b[turn]) + lane.wide, own.pair.rank);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 r = lane.row + i / 2 * 8;
            if (r >= rows) continue;
            float sum[8];
            old.add(sum, sums, i);
            store(y + static_cast<u64>(r) * p.width + tile * COLUMNS + i % 2 * 32, sum);
        }
        old = next;
    }
}
