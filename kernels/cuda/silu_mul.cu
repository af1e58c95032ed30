// out = silu(gate) * up with silu(x) = x / (1 + exp(-x)) (arXiv 2002.05202); grid y is the row.
#include "params.cuh"

template <int N>
__device__ void gate_row(const SiluMulParams& p) {
    u32 i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i >= p.width) return;
    const Element* from = p.gate_up + static_cast<u64>(blockIdx.y) * 2 * p.width + i;
    float gate[N], up[N];
    load(gate, from);
    load(up, from + p.width);
#pragma unroll
    for (int n = 0; n < N; n++) gate[n] = silu(gate[n]) * up[n];
    store(p.out + static_cast<u64>(blockIdx.y) * p.width + i, gate);
}

extern "C" __global__ void silu_mul(SiluMulParams p) {
    wait_for_previous();
    p.width % 8 == 0 ? gate_row<8>(p) : gate_row<1>(p);
}
