// Where the shrunk activations of a segment lie: row after row, target after target, each as wide
// as its pair's true lora rank (kernels/src/lora.rs). Ranks differ from slot to slot, so the start of
// a segment is a sum over the segments before it.
#pragma once

#include "params.cuh"

struct Shrunk {
    u32 start;  // of the segment
    u32 width;  // of one of its rows
    u32 total;  // of all segments: what one rank hands to an all-gather
};

__device__ inline u32 warp_sum(u32 x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// The whole block asks, and ends up past a barrier.
__device__ inline Shrunk shrunk(const LoraParams& p, u32 segment) {
    __shared__ Shrunk found;
    if (threadIdx.x < 32) {
        u32 start = 0, total = 0;
        for (u32 s = threadIdx.x; s < p.segment_count; s += 32) {
            u32 len = p.segments[s].rows * p.widths[p.segments[s].slot].of[p.exchange];
            total += len;
            if (s < segment) start += len;
        }
        start = warp_sum(start);
        total = warp_sum(total);
        u32 width = p.widths[p.segments[segment].slot].of[p.exchange];
        if (threadIdx.x == 0) found = {start, width, total};
    }
    __syncthreads();
    return found;
}
