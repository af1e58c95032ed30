// What shrink and expand of decode share (arXiv 2310.18547), for 16 bits. Every sequence has one row.
// Blocks take pieces of work in turn: how many there are is in device memory, not in the launch, so
// one recorded launch serves every mix of adapters. While a block works on one piece, the factors of
// its next one are on their way. Segments have no more than 8 rows (kernels/src/cuda/step.rs cuts
// them).
//
// h is [splits, rows, h_stride]: to fill the card with few adapters, the inputs of shrink are cut
// into `splits`, and expand adds the parts up, in order.
#pragma once

#include "mma.cuh"
#include "params.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr u32 ROWS = 8;
constexpr u32 PIECES = 16;  // that a block looks up at once

// 8 elements from `at` on, zeros from `end` on.
__device__ inline uint4 eight(const Element* row, u32 at, u32 end, bool aligned) {
    if (at >= end) return uint4{};
    if (aligned) return fetch<8>(row + at).raw.words;
    Element elements[8] = {};
#pragma unroll
    for (int n = 0; n < 8; n++) {
        if (at + n < end) elements[n] = row[at + n];
    }
    uint4 words;
    memcpy(&words, elements, sizeof(words));
    return words;
}

// Tells `work` of every piece of this block, as `look_up` finds them. How many segments there are is
// looked up at the same time as the pieces, so pieces may be of none: there is room for `rows`.
template <class Piece, class LookUp, class Work>
__device__ inline void for_each_piece(const LoraDecodeParams& p, u32 each, LookUp look_up,
                                      Work work) {
    __shared__ Piece pieces[PIECES];
    const u32 items = *p.segment_count * each;
    for (u32 first = blockIdx.x; first < p.rows * each; first += gridDim.x * PIECES) {
        const u32 own = first + threadIdx.x * gridDim.x;
        __syncthreads();
        if (threadIdx.x < PIECES && own < p.rows * each) pieces[threadIdx.x] = look_up(own);
        __syncthreads();
        if (first >= items) return;
        work(pieces, min((items - first + gridDim.x - 1) / gridDim.x, PIECES));
    }
}
