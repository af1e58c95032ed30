// Where a position of a sequence lies in the paged KV cache [blocks, heads, block_tokens, dim].
// A block keeps each head's tokens together, so that one head's run of keys is contiguous.
#pragma once

#include "params.cuh"

// In units of `dim` elements.
__device__ inline u32 place(const Index& index, const Span& span, u32 position, u32 block_tokens,
                            u32 heads, u32 head) {
    u32 block = index.blocks[span.blocks + position / block_tokens];
    return (block * heads + head) * block_tokens + position % block_tokens;
}

// In an f32 build the cache may stand for one of 16 bits, and then holds what that one would.
template <class Narrow, int N>
__device__ inline void round_to(float (&x)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        Narrow narrow;
        from_f32(narrow, x[n]);
        x[n] = to_f32(narrow);
    }
}

template <int N>
__device__ inline void round_like(float (&x)[N], u32 stands_for) {
    if (stands_for == STANDS_FOR_F16) round_to<F16>(x);
    if (stands_for == STANDS_FOR_BF16) round_to<Bf16>(x);
}
