// out = x / sqrt(mean(x^2) + eps) * weight, a block a row (arXiv 1910.07467).
// The row is read twice: the second time it comes from the cache.
#include "params.cuh"
#include "reduce.cuh"

template <int N>
__device__ void normalise(const RmsNormParams& p) {
    const Element* from = p.x + static_cast<u64>(blockIdx.x) * p.width;
    Element* to = p.out + static_cast<u64>(blockIdx.x) * p.width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x * N; i < p.width; i += blockDim.x * N) {
        float x[N];
        load(x, from + i);
#pragma unroll
        for (int n = 0; n < N; n++) squares += x[n] * x[n];
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / p.width + p.eps);
    for (u32 i = threadIdx.x * N; i < p.width; i += blockDim.x * N) {
        float x[N], weight[N];
        load(x, from + i);
        load(weight, p.weight + i);
#pragma unroll
        for (int n = 0; n < N; n++) x[n] *= scale * weight[n];
        store(to + i, x);
    }
}

extern "C" __global__ void rms_norm(RmsNormParams p) {
    wait_for_previous();
    p.width % 8 == 0 ? normalise<8>(p) : normalise<1>(p);
}
