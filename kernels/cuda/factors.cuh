// The norm between two products of few rows, shared by both instead of being a kernel of its own: the
// first adds its results to the residual stream and writes residual * weight with sums of squares, by
// block; the second, linear in its x, multiplies its sums by each row's factor, 1 / sqrt(mean + eps).
#pragma once

#include "add_norm.cuh"
#include "bulk.cuh"

// Four sums of squares of a row, as far as there are so many.
__device__ inline float sum_of(const float4& some, u32 at, u32 count) {
    return (at < count ? some.x : 0.0f) + (at + 1 < count ? some.y : 0.0f) +
           (at + 2 < count ? some.z : 0.0f) + (at + 3 < count ? some.w : 0.0f);
}

// Of N sums over a warp, a power of two, the n-th in the n-th N-th of its lanes.
template <u32 N>
__device__ inline float sum_of_lanes(float (&x)[N]) {
    u32 lanes = 16;
#pragma unroll
    for (u32 half = N / 2; half > 0; half /= 2, lanes /= 2) {
        const bool upper = threadIdx.x & lanes;
#pragma unroll
        for (u32 n = 0; n < half; n++) {
            const float given = upper ? x[n] : x[n + half];
            x[n] = (upper ? x[n + half] : x[n]) + __shfl_xor_sync(~0u, given, lanes);
        }
    }
#pragma unroll
    for (; lanes > 0; lanes /= 2) x[0] += __shfl_xor_sync(~0u, x[0], lanes);
    return x[0];
}

// By one warp, in shared memory: the factors of so many rows of so many elements. All loads of TOGETHER
// rows are on their way at once.
template <u32 TOGETHER>
__device__ void find_factors(const FactorsParams& p, u32 rows, u32 width, float* factors) {
    const u32 lane = threadIdx.x % 32;
    for (u32 first = 0; first < rows; first += TOGETHER) {
        float sums[TOGETHER] = {};
        for (u32 at = lane * 4; at - lane * 4 < p.count; at += 128) {
            float4 some[TOGETHER];
#pragma unroll
            for (u32 n = 0; n < TOGETHER; n++) {
                const u32 start = min(first + n, rows - 1) * SQUARES_MAX;
                const float* from = p.squares + start + min(at, SQUARES_MAX - 4);
                some[n] = __ldcg(reinterpret_cast<const float4*>(from));
            }
#pragma unroll
            for (u32 n = 0; n < TOGETHER; n++) sums[n] += sum_of(some[n], at, p.count);
        }
        const float sum = sum_of_lanes(sums);
        const u32 row = first + lane / (32 / TOGETHER);
        if (row < rows && lane % (32 / TOGETHER) == 0) factors[row] = rsqrtf(sum / width + p.eps);
    }
}

// Some of the residual stream, which a thread brings while what is added is still being multiplied: four
// elements a round, of one row after the other.
template <int COUNT>
struct Residual {
    static constexpr u32 ROUNDS = COUNT;

    Pack<4, Element> before[ROUNDS];
    float weight[4];

    __device__ void fetch(u32 round, const Element* from) {
        before[round].raw.words = __ldcg(reinterpret_cast<const uint2*>(from));
    }

    // Writes what the stream is with `delta`, which then is that times the norm's weight. Returns the sum
    // of its squares.
    __device__ float take_up(u32 round, float (&delta)[4], Element* to) const {
        float sum[4];
        widen(sum, before[round]);
        const float squares = add(to, sum, delta);
#pragma unroll
        for (int n = 0; n < 4; n++) delta[n] = sum[n] * weight[n];
        return squares;
    }
};
