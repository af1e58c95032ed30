// How expand multiplies long segments of up to 16 lora ranks where both factors stay in registers: columns
// are the left operand's rows, and rows of the batch the right one's columns. Of 64 columns and 8 rows,
// lane l = 4 g + t has columns 8 g to 8 g + 7 of rows 2 t and 2 t + 1, 16 bytes of each, and of the
// factors lora ranks 4 t to 4 t + 3: a product does not mind in which order it meets these, as long as
// both operands agree.
#pragma once

#include "mma.cuh"
#include "params.cuh"

constexpr u32 FEW_COLUMNS = 64, FEW_ROWS = 8;

struct FewLane {
    u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
};

// B of 64 columns, of which products[n] is for columns 8 g + 2 n and the next.
struct FewFactor {
    u32 products[4][4];

    __device__ void set(u32 n, uint2 even, uint2 odd) {
        products[n][0] = even.x, products[n][1] = odd.x;
        products[n][2] = even.y, products[n][3] = odd.y;
    }

    // From the row of its first column on.
    __device__ void fetch(const Element* b, u32 rank) {
        const FewLane lane;
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            uint2 even = {}, odd = {};
            if (lane.t * 4 < rank) {
                const Element* row = b + (lane.g * 8 + n * 2) * rank + lane.t * 4;
                even = ::fetch<4>(row).raw.words, odd = ::fetch<4>(row + rank).raw.words;
            }
            set(n, even, odd);
        }
    }
};

// The same on its way through shared memory: each thread copies and takes only its own.
template <u32 THREADS>
struct FewCopy {
    uint2 rows[8][THREADS];

    __device__ void copy(const Element* b, u32 rank) {
        const FewLane lane;
        const bool exists = lane.t * 4 < rank;
#pragma unroll
        for (u32 n = 0; n < 8; n++) {
            const Element* row = b + (exists ? (lane.g * 8 + n) * rank + lane.t * 4 : 0);
            copy_8(shared_address(&rows[n][threadIdx.x]), row, exists);
        }
    }

    // Once the copies have landed.
    __device__ FewFactor take() const {
        FewFactor to;
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            to.set(n, rows[n * 2][threadIdx.x], rows[n * 2 + 1][threadIdx.x]);
        }
        return to;
    }
};

// The shrunk activations of 8 rows.
struct FewShrunk {
    Pack<4, float> of;

    // From those of the first row on, a row every `width`.
    __device__ void fetch(const float* h, u32 width, u32 rank, u32 rows) {
        const FewLane lane;
        of = {};
        if (lane.g < rows && lane.t * 4 < rank) of = ::fetch<4>(h + lane.g * width + lane.t * 4);
    }

    // The same to shared memory, which the thread itself waits for.
    __device__ void copy(const float* h, u32 width, u32 rank, u32 rows) {
        const FewLane lane;
        const bool exists = lane.g < rows && lane.t * 4 < rank;
        const float* from = h + (exists ? lane.g * width + lane.t * 4 : 0);
        copy_16(shared_address(this), reinterpret_cast<const Element*>(from), exists);
    }

    __device__ void round(u32 (&to)[2]) const {
        float values[4];
        widen(values, of);
        to[0] = pair_of(values[0], values[1]), to[1] = pair_of(values[2], values[3]);
    }
};

// What is added to: the lane's columns of its two rows.
struct FewSum {
    Pack<2, Element> of[2][4];

    __device__ void set(u32 i, uint4 words) {
        of[i][0].raw.words = words.x, of[i][1].raw.words = words.y;
        of[i][2].raw.words = words.z, of[i][3].raw.words = words.w;
    }

    __device__ void widen_row(float (&to)[8], u32 i) const {
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            float two[2];
            widen(two, of[i][n]);
            to[n * 2] = two[0], to[n * 2 + 1] = two[1];
        }
    }

    __device__ void fetch(const Element* from, u64 stride, u32 rows) {
        const FewLane lane;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 row = lane.t * 2 + i;
            uint4 words = {};
            if (row < rows) words = ::fetch<8>(from + row * stride + lane.g * 8).raw.words;
            set(i, words);
        }
    }

    // Tells `work` of what it is once h B^T is added: two neighbours of a row, the n-th of four.
    template <class Work>
    __device__ void add(const FewFactor& b, const u32 (&h)[2], Work work) {
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            float sums[4] = {};
            multiply_add(sums, b.products[n], h[0], h[1]);
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                float two[2];
                widen(two, of[i][n]);
                work(i, n, two[0] + sums[i], two[1] + sums[2 + i]);
            }
        }
    }
};
