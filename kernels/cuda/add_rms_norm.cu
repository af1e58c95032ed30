// residual += hidden, and then hidden = residual / sqrt(mean(residual^2) + eps) * weight, a block a
// row.
#include "add_norm.cuh"

template <int N>
__device__ void add_normalise(const AddRmsNormParams& p) {
    const u64 start = static_cast<u64>(blockIdx.x) * p.width;
    Element* hidden = p.hidden + start;
    float weight[1][N] = {};
    Walk<N, 1>::load_first(weight, p.weight, p.width);
    wait_for_previous();
    const NormRow row = {p.residual + start, p.weight, hidden, p.width, p.eps};
    add_normalise(row, weight, [&](u32 i, float (&to)[N]) { load(to, hidden + i); });
}

extern "C" __global__ void add_rms_norm(AddRmsNormParams p) {
    p.width % 8 == 0 ? add_normalise<8>(p) : add_normalise<1>(p);
}
