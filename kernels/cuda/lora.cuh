// What a block knows about its segment: rows, the pairs of its slot, and where the shrunk
// activations lie: row after row, target after target, each as wide as its pair's true lora rank
// (kernels/src/lora.rs). Ranks differ from slot to slot, so the start of a segment is a sum over
// the segments before it.
#pragma once

#include "params.cuh"

struct Job {
    Segment segment;
    u32 start;  // of the segment's shrunk activations
    u32 width;  // of one of its rows
    u32 total;  // of all segments: what one rank hands to an all-gather
    LoraPair pairs[TARGETS_MAX];

    // Whether a target has a pair with this exchange.
    __device__ bool has(const LoraParams& p, u32 target) const {
        return pairs[target].shrink_rank > 0 && pairs[target].exchange == p.exchange;
    }
};

// An address that came from memory: the compiler cannot know that it is no shared one, and would
// keep its loads in order with stores to shared memory.
template <class E>
__device__ inline const E* in_device_memory(const E* address) {
    __builtin_assume(__isGlobal(address));
    return address;
}

__device__ inline u32 warp_sum(u32 x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// The job of this block, whose segment is its place in y. The first warp adds up, the others bring
// the pairs meanwhile. The whole block asks, and ends up past a barrier.
__device__ inline const Job& own_job(const LoraParams& p) {
    __shared__ Job job;
    const u32 segment = p.first + blockIdx.y;
    const Segment own = p.segments[segment];
    if (threadIdx.x < 32) {
        u32 start = 0, total = 0;
        for (u32 s = threadIdx.x; s < p.segment_count; s += 32) {
            u32 len = p.segments[s].rows * p.widths[p.segments[s].slot].of[p.exchange];
            total += len;
            if (s < segment) start += len;
        }
        start = warp_sum(start);
        total = warp_sum(total);
        if (threadIdx.x == 0) {
            job.segment = own;
            job.start = start;
            job.width = p.widths[own.slot].of[p.exchange];
            job.total = total;
        }
    } else {
        const uint4* from = reinterpret_cast<const uint4*>(p.pairs + own.slot * p.targets);
        u32 pieces = p.targets * sizeof(LoraPair) / sizeof(uint4);
        for (u32 i = threadIdx.x - 32; i < pieces; i += blockDim.x - 32) {
            reinterpret_cast<uint4*>(job.pairs)[i] = from[i];
        }
    }
    __syncthreads();
    return job;
}
