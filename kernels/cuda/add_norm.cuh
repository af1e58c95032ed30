// residual += delta, and then out = residual / sqrt(mean(residual^2) + eps) * weight, a row by a
// block: one arithmetic for all kernels that do this, so that they come to the same bits.
#pragma once

#include "params.cuh"
#include "reduce.cuh"

struct NormRow {
    Element* residual;    // [width], and so is `out`
    const float* weight;  // [width]
    Element* out;
    u32 width;
    float eps;
};

// Adds to `sum`, the residual, and returns the sum of squares; `sum` is then what the model sees:
// rounded to its type.
template <int N>
__device__ inline float add(Element* residual, float (&sum)[N], const float (&delta)[N]) {
    float squares = 0.0f;
#pragma unroll
    for (int n = 0; n < N; n++) sum[n] += delta[n];
    const Pack<N, Element> rounded = narrow<N, Element>(sum);
    write(residual, rounded);
    widen(sum, rounded);
#pragma unroll
    for (int n = 0; n < N; n++) squares += sum[n] * sum[n];
    return squares;
}

template <int N>
__device__ inline void scale_by(float (&x)[N], float scale, const float (&weight)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) x[n] *= scale * weight[n];
}

// How a block goes over a row, N elements at a time. In one round each of its threads plays TURNS
// threads of a larger block, whose sums it so takes in the same order.
template <int N, int TURNS>
struct Walk {
    static __device__ u32 first(int turn) { return (threadIdx.x + turn * blockDim.x) * N; }

    static __device__ u32 stride() { return TURNS * blockDim.x * N; }

    // The weights of the first round, which no kernel writes: loaded before waiting for one.
    static __device__ void load_first(float (&weight)[TURNS][N], const float* from, u32 width) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            if (first(turn) < width) load(weight[turn], from + first(turn));
        }
    }
};

// `delta(i, to)` brings N elements of the row's delta from i on. What a thread adds up in the first
// round stays in its registers; only of very wide rows does it read the rest again.
template <int N, int TURNS, class Delta>
__device__ inline void add_normalise(const NormRow& row, const float (&weight)[TURNS][N],
                                     Delta delta) {
    typedef Walk<N, TURNS> Walk;
    float kept[TURNS][N] = {}, to_add[TURNS][N] = {}, squares[TURNS] = {};
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const u32 i = Walk::first(turn);
        if (i >= row.width) continue;
        load(kept[turn], row.residual + i);
        delta(i, to_add[turn]);
    }
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        u32 i = Walk::first(turn);
        if (i >= row.width) continue;
        squares[turn] = add(row.residual + i, kept[turn], to_add[turn]);
        for (i += Walk::stride(); i < row.width; i += Walk::stride()) {
            float sum[N];
            load(sum, row.residual + i);
            delta(i, to_add[turn]);
            squares[turn] += add(row.residual + i, sum, to_add[turn]);
        }
    }
    const float scale = 1.0f / sqrtf(block_sum(squares) / row.width + row.eps);
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        u32 i = Walk::first(turn);
        if (i >= row.width) continue;
        scale_by(kept[turn], scale, weight[turn]);
        store(row.out + i, kept[turn]);
        for (i += Walk::stride(); i < row.width; i += Walk::stride()) {
            float sum[N], further[N];
            load(sum, row.residual + i);
            load(further, row.weight + i);
            scale_by(sum, scale, further);
            store(row.out + i, sum);
        }
    }
}
