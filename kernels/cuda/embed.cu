// out[row] = table[tokens[row] - first], and zeros where another rank holds the token. A token that is
// PENDING is one that the step before has drawn.
#include "params.cuh"

template <int N>
__device__ void embed_row(const EmbedParams& p) {
    u32 token = p.tokens[blockIdx.x];
    if (token & PENDING) token = p.drawn[token & ~PENDING];
    u32 row = token - p.first;  // wraps around below `first`
    const Element* from = p.table + static_cast<u64>(row) * p.width;
    Element* to = p.out + static_cast<u64>(blockIdx.x) * p.width;
    for (u32 i = threadIdx.x * N; i < p.width; i += blockDim.x * N) {
        float x[N] = {};
        if (row < p.table_rows) load(x, from + i);
        store(to + i, x);
    }
}

extern "C" __global__ void embed(EmbedParams p) {
    wait_for_previous();
    p.width % 8 == 0 ? embed_row<8>(p) : embed_row<1>(p);
}
