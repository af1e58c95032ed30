// tokens[row] = the first of the largest logits of a row, whose columns lie in one part a rank.
// NaN is never larger, and columns from `vocab` on are padding.
#include "params.cuh"

struct Best {
    float logit;
    u32 token;
};

__device__ inline Best better(Best a, Best b) {
    bool second = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
    return second ? b : a;
}

__device__ inline Best warp_best(Best best) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        Best other = {__shfl_xor_sync(~0u, best.logit, lanes),
                      __shfl_xor_sync(~0u, best.token, lanes)};
        best = better(best, other);
    }
    return best;
}

// 1024 threads.
extern "C" __global__ void argmax(ArgmaxParams p) {
    wait_for_previous();
    const float none = __int_as_float(0xff800000);  // minus infinity
    Best best = {none, 0};
    for (u32 part = 0; part < p.parts; part++) {
        const float* row = p.logits + (static_cast<u64>(part) * p.rows + blockIdx.x) * p.part_width;
        u32 first = part * p.part_width;
        u32 width = first < p.vocab ? min(p.part_width, p.vocab - first) : 0;
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            if (row[i] > best.logit) best = {row[i], first + i};
        }
    }
    __shared__ Best bests[32];
    best = warp_best(best);
    if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = warp_best(bests[threadIdx.x]);
    if (threadIdx.x == 0) p.tokens[blockIdx.x] = best.token;
}
