// Rotary position embedding (arXiv 2104.09864), rotate-half form: the pair (x, y) that lies half a
// head apart becomes (x cos - y sin, y cos + x sin). A block turns the heads of one row; keys
// follow queries in a fused row, so both are one run of heads.
#include "params.cuh"

template <int N>
__device__ void turn(const RopeParams& p) {
    u32 half = p.dim / 2, heads = p.query_heads + p.key_heads;
    u64 width = static_cast<u64>(heads + p.key_heads) * p.dim;
    Element* row = p.qkv + blockIdx.x * width;
    const float* angles = p.table + static_cast<u64>(p.positions[blockIdx.x]) * p.dim;
    for (u32 pair = threadIdx.x * N; pair < heads * half; pair += blockDim.x * N) {
        u32 i = pair % half;
        Element* at = row + pair / half * p.dim + i;
        float x[N], y[N], cos[N], sin[N], low[N], high[N];
        load(x, at);
        load(y, at + half);
        load(cos, angles + i);
        load(sin, angles + half + i);
#pragma unroll
        for (int n = 0; n < N; n++) {
            low[n] = x[n] * cos[n] - y[n] * sin[n];
            high[n] = y[n] * cos[n] + x[n] * sin[n];
        }
        store(at, low);
        store(at + half, high);
    }
}

extern "C" __global__ void rope(RopeParams p) {
    p.dim % 16 == 0 ? turn<8>(p) : turn<1>(p);
}
