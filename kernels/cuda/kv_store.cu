// cache[place of the row] = keys and values of a fused row; a block a row.
// In an f32 build the cache may stand for one of 16 bits, and then holds what that one would.
#include "paged.cuh"

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
        round_like(key, p.stands_for);
        round_like(value, p.stands_for);
        store(p.keys + at, key);
        store(p.values + at, value);
    }
}

extern "C" __global__ void kv_store(KvStoreParams p) {
    p.dim % 8 == 0 ? store_row<8>(p) : store_row<1>(p);
}
