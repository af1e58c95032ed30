// Sums over a warp or a block in an order that only the thread numbers decide.
#pragma once

#include "element.cuh"

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// Every thread gets the sum of what TURNS times as many threads have, which this block's play in
// turns. They are whole warps, at most 32.
template <int TURNS>
__device__ inline float block_sum(const float (&x)[TURNS]) {
    __shared__ float sums[32];
    const u32 warps = blockDim.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        float sum = warp_sum(x[turn]);
        if (lane == 0) sums[turn * warps + threadIdx.x / 32] = sum;
    }
    __syncthreads();
    return warp_sum(lane < TURNS * warps ? sums[lane] : 0.0f);
}

// Every thread gets the sum. The block is a whole number of warps, at most 32.
__device__ inline float block_sum(float x) {
    const float one[1] = {x};
    return block_sum(one);
}
