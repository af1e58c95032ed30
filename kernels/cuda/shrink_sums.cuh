// What shrink of decode multiplies at once on tensor cores: 8 lora ranks, 8 rows and 32 inputs.
#pragma once

#include "mma.cuh"

// Sums of lora rank g and of rows 2 t and the next, in lane 4 g + t, which brings, of the inputs, those
// from 8 t on: of lora rank g, and of row g. As the left operand, what a lane has of A are two rows, each
// with half of its inputs; the row that meets the other half of x is left out.
struct ShrinkSums {
    float low[4] = {}, high[4] = {};

    __device__ void add(const uint4& a, const uint4& x) {
        const u32 left[4] = {a.x, a.y, a.z, a.w};
        multiply_add(low, left, x.x, x.z);
        multiply_add(high, left, x.y, x.w);
    }

    // Of one of the two rows.
    __device__ float sum(u32 row) const { return low[row] + high[row + 2]; }
};
