// cache[place of the row] = keys and values of a fused row; a block a row.
#include "paged.cuh"

template <int N>
__device__ void store_row(const KvStoreParams& p) {
    u32 row = blockIdx.x, width = p.key_heads * p.dim;
    const Span span = p.index.spans[p.index.row_span[row]];
    u64 fused = static_cast<u64>(p.query_heads + 2 * p.key_heads) * p.dim;
    const Element* keys = p.qkv + row * fused + p.query_heads * p.dim;
    for (u32 i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        u32 slot = place(p.index, span, p.index.positions[row], p.block_tokens, p.key_heads,
                         i / p.dim);
        u64 at = static_cast<u64>(slot) * p.dim + i % p.dim;
        float key[N], value[N];
        load(key, keys + i);
        load(value, keys + width + i);
        store(p.keys + at, key);
        store(p.values + at, value);
    }
}

extern "C" __global__ void kv_store(KvStoreParams p) {
    p.dim % 8 == 0 ? store_row<8>(p) : store_row<1>(p);
}
