// residual += hidden, and then hidden = residual / sqrt(mean(residual^2) + eps) * weight, a block a
// row. What a thread adds up first stays in its registers, EACH pieces of it; only of very wide
// rows does it read the rest again. One piece is soonest done where rows are few; where there are
// many, more of them share a multiprocessor if each has fewer threads, and one is read while
// another adds.
#include "params.cuh"
#include "reduce.cuh"

// Adds, and returns the sum of squares; `sum` is what the model sees: rounded to its type.
template <int N>
__device__ inline float add(float (&sum)[N], const Pack<N, Element>& residual,
                            const Pack<N, Element>& hidden) {
    float delta[N], squares = 0.0f;
    widen(sum, residual);
    widen(delta, hidden);
#pragma unroll
    for (int n = 0; n < N; n++) {
        Element rounded;
        from_f32(rounded, sum[n] + delta[n]);
        sum[n] = to_f32(rounded);
        squares += sum[n] * sum[n];
    }
    return squares;
}

// One row of the batch, and what a thread does of it.
template <int N, int EACH>
struct Row {
    Element *residual, *hidden;
    const float* weight;
    u32 width, first, stride;

    __device__ float add_kept(float (&kept)[EACH][N]) const {
        Pack<N, Element> old[EACH], delta[EACH];
#pragma unroll
        for (int each = 0; each < EACH; each++) {
            const u32 i = first + each * stride;
            if (i < width) old[each] = fetch<N>(residual + i), delta[each] = fetch<N>(hidden + i);
        }
        float squares = 0.0f;
#pragma unroll
        for (int each = 0; each < EACH; each++) {
            const u32 i = first + each * stride;
            if (i >= width) continue;
            squares += add(kept[each], old[each], delta[each]);
            store(residual + i, kept[each]);
        }
        return squares;
    }

    __device__ float add_rest() const {
        float squares = 0.0f;
        for (u32 i = first + EACH * stride; i < width; i += stride) {
            float sum[N];
            squares += add(sum, fetch<N>(residual + i), fetch<N>(hidden + i));
            store(residual + i, sum);
        }
        return squares;
    }

    __device__ void put(float (&sum)[N], float scale, const float (&weight)[N], u32 i) const {
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] *= scale * weight[n];
        store(hidden + i, sum);
    }

    __device__ void scale_rest(float scale) const {
        for (u32 i = first + EACH * stride; i < width; i += stride) {
            float sum[N], own[N];
            load(sum, residual + i);
            load(own, weight + i);
            put(sum, scale, own, i);
        }
    }
};

template <int N, int EACH>
__device__ void add_normalise(const AddRmsNormParams& p) {
    const u64 start = static_cast<u64>(blockIdx.x) * p.width;
    const Row<N, EACH> row = {p.residual + start, p.hidden + start, p.weight,
                              p.width, threadIdx.x * N, blockDim.x * N};
    // With one piece there are registers to ask for its weights before it is its turn.
    constexpr bool early = EACH == 1;
    float kept[EACH][N], weight[N];
    if (early && row.first < p.width) load(weight, p.weight + row.first);
    wait_for_previous();
    const float squares = row.add_kept(kept) + row.add_rest();
    const float scale = 1.0f / sqrtf(block_sum(squares) / p.width + p.eps);
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const u32 i = row.first + each * row.stride;
        if (i >= p.width) continue;
        if (!early) load(weight, p.weight + i);
        row.put(kept[each], scale, weight, i);
    }
    row.scale_rest(scale);
}

extern "C" __global__ void add_rms_norm(AddRmsNormParams p) {
    p.width % 8 == 0 ? add_normalise<8, 1>(p) : add_normalise<1, 1>(p);
}

// Blocks of a multiprocessor leave each thread the registers that it needs.
constexpr int THREADS_MAX = 256, BLOCKS = sizeof(Element) == 2 ? 4 : 2;

// For many rows of a width that is a multiple of 8.
extern "C" __global__ void __launch_bounds__(THREADS_MAX, BLOCKS)
    add_rms_norm_many(AddRmsNormParams p) {
    add_normalise<8, 4>(p);
}
