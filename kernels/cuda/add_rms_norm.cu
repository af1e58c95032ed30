// residual += hidden, and then hidden = residual / sqrt(mean(residual^2) + eps) * weight, a block a
// row. What a thread adds up first stays in its registers; only of very wide rows does it read the
// rest again.
#include "params.cuh"
#include "reduce.cuh"

template <int N>
__device__ inline void scale_by(float (&x)[N], float scale, const float (&weight)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) x[n] *= scale * weight[n];
}

// Adds, and returns the sum of squares; `sum` is what the model sees: rounded to its type.
template <int N>
__device__ inline float add(Element* residual, const Element* hidden, float (&sum)[N]) {
    float delta[N], squares = 0.0f;
    load(sum, residual);
    load(delta, hidden);
#pragma unroll
    for (int n = 0; n < N; n++) {
        Element rounded;
        from_f32(rounded, sum[n] + delta[n]);
        sum[n] = to_f32(rounded);
        squares += sum[n] * sum[n];
    }
    store(residual, sum);
    return squares;
}

template <int N>
__device__ void add_normalise(const AddRmsNormParams& p) {
    const u32 first = threadIdx.x * N, stride = blockDim.x * N;
    const bool some = first < p.width;
    Element* residual = p.residual + static_cast<u64>(blockIdx.x) * p.width;
    Element* hidden = p.hidden + static_cast<u64>(blockIdx.x) * p.width;
    float kept[N] = {}, weight[N] = {}, squares = 0.0f;
    if (some) load(weight, p.weight + first);
    wait_for_previous();
    if (some) squares = add(residual + first, hidden + first, kept);
    for (u32 i = first + stride; i < p.width; i += stride) {
        float sum[N];
        squares += add(residual + i, hidden + i, sum);
    }
    const float scale = 1.0f / sqrtf(block_sum(squares) / p.width + p.eps);
    if (!some) return;
    scale_by(kept, scale, weight);
    store(hidden + first, kept);
    for (u32 i = first + stride; i < p.width; i += stride) {
        float sum[N];
        load(sum, residual + i);
        load(weight, p.weight + i);
        scale_by(sum, scale, weight);
        store(hidden + i, sum);
    }
}

extern "C" __global__ void add_rms_norm(AddRmsNormParams p) {
    p.width % 8 == 0 ? add_normalise<8>(p) : add_normalise<1>(p);
}
