// Rotary position embedding (arXiv 2104.09864), rotate-half form: the pair (x, y) that lies half a
// head apart becomes (x cos - y sin, y cos + x sin). Queries are turned where they lie, keys on
// their way into the cache, and values go there as they are. A block takes one row; keys follow
// queries in a fused row, so both are one run of heads.
#include "paged.cuh"

template <int N>
struct Row {
    const RopeKvStoreParams& p;
    Element* qkv;
    const float* angles;
    Span span;
    u32 position;

    __device__ u64 place_of(u32 key_head) const {
        u32 slot = place(p.index, span, position, p.block_tokens, p.key_heads, key_head);
        return static_cast<u64>(slot) * p.dim;
    }

    // The N pairs from `pair` on, of query and key heads one behind the other.
    __device__ void turn(u32 pair) const {
        const u32 half = p.dim / 2, head = pair / half, i = pair % half;
        const Element* from = qkv + head * p.dim + i;
        float x[N], y[N], cos[N], sin[N], low[N], high[N];
        load(x, from);
        load(y, from + half);
        load(cos, angles + i);
        load(sin, angles + half + i);
#pragma unroll
        for (int n = 0; n < N; n++) {
            low[n] = x[n] * cos[n] - y[n] * sin[n];
            high[n] = y[n] * cos[n] + x[n] * sin[n];
        }
        Element* to = qkv + head * p.dim + i;
        if (head >= p.query_heads) {
            round_like(low, p.stands_for);
            round_like(high, p.stands_for);
            to = p.keys + place_of(head - p.query_heads) + i;
        }
        store(to, low);
        store(to + half, high);
    }

    // The N values from `i` on.
    __device__ void keep(u32 i) const {
        float value[N];
        load(value, qkv + (p.query_heads + p.key_heads) * p.dim + i);
        round_like(value, p.stands_for);
        store(p.values + place_of(i / p.dim) + i % p.dim, value);
    }
};

template <int N>
__device__ void turn_and_store(const RopeKvStoreParams& p) {
    wait_for_previous();
    const u32 row = blockIdx.x, position = p.index.positions[row];
    if (position == PADDING) return;
    const u64 fused = static_cast<u64>(p.query_heads + 2 * p.key_heads) * p.dim;
    const Row<N> all = {p, p.qkv + row * fused, p.table + static_cast<u64>(position) * p.dim,
                        p.index.spans[p.index.row_span[row]], position};
    const u32 pairs = (p.query_heads + p.key_heads) * p.dim / 2, values = p.key_heads * p.dim;
    for (u32 i = threadIdx.x * N; i < pairs + values; i += blockDim.x * N) {
        i < pairs ? all.turn(i) : all.keep(i - pairs);
    }
}

extern "C" __global__ void rope_kv_store(RopeKvStoreParams p) {
    p.dim % 16 == 0 ? turn_and_store<8>(p) : turn_and_store<1>(p);
}
