// Every query and key head of a fused row normalised by itself, as rms_norm does a whole row.
// A warp takes a head; grid y is the row.
#include "params.cuh"
#include "reduce.cuh"

template <int N>
__device__ void normalise(Element* head, const float* weight, const HeadNormParams& p) {
    u32 lane = threadIdx.x % 32;
    float squares = 0.0f;
    for (u32 i = lane * N; i < p.dim; i += 32 * N) {
        float x[N];
        load(x, head + i);
#pragma unroll
        for (int n = 0; n < N; n++) squares += x[n] * x[n];
    }
    float scale = 1.0f / sqrtf(warp_sum(squares) / p.dim + p.eps);
    for (u32 i = lane * N; i < p.dim; i += 32 * N) {
        float x[N], w[N];
        load(x, head + i);
        load(w, weight + i);
#pragma unroll
        for (int n = 0; n < N; n++) x[n] *= scale * w[n];
        store(head + i, x);
    }
}

extern "C" __global__ void head_norm(HeadNormParams p) {
    wait_for_previous();
    u32 head = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (head >= p.query_heads + p.key_heads) return;
    u64 width = static_cast<u64>(p.query_heads + 2 * p.key_heads) * p.dim;
    Element* x = p.qkv + blockIdx.y * width + head * p.dim;
    const float* weight = head < p.query_heads ? p.queries : p.keys;
    p.dim % 4 == 0 ? normalise<4>(x, weight, p) : normalise<1>(x, weight, p);
}
