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
