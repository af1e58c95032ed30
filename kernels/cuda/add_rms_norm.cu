// residual += hidden, and then hidden = residual / sqrt(mean(residual^2) + eps) * weight, a block a
// row. One round of a block is soonest done where rows are few; where there are many, more of them
// share a multiprocessor if each has fewer threads, and one is read while another adds.
#include "add_norm.cuh"

template <int N, int TURNS>
__device__ void add_normalise(const AddRmsNormParams& p) {
    const u64 start = static_cast<u64>(blockIdx.x) * p.width;
    Element* hidden = p.hidden + start;
    float weight[TURNS][N] = {};
    Walk<N, TURNS>::load_first(weight, p.weight, p.width);
    wait_for_previous();
    const NormRow row = {p.residual + start, p.weight, hidden, p.width, p.eps};
    add_normalise(row, weight, [&](u32 i, float (&to)[N]) { load(to, hidden + i); });
}

extern "C" __global__ void add_rms_norm(AddRmsNormParams p) {
    p.width % 8 == 0 ? add_normalise<8, 1>(p) : add_normalise<1, 1>(p);
}

// For widths that are multiples of 8.
extern "C" __global__ void __launch_bounds__(256, 2) add_rms_norm_many(AddRmsNormParams p) {
    add_normalise<8, 4>(p);
}
