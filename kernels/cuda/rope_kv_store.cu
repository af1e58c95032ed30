// Rotary position embedding (arXiv 2104.09864), rotate-half form: the pair (x, y) that lies half a
// head apart becomes (x cos - y sin, y cos + x sin). Queries are turned where they lie, keys on
// their way into the cache, and values go there as they are. A block takes one row, whose queries,
// keys and values are one run of heads. A thread takes EACH pieces of it and asks for all of them
// first: where the row's keys go is found behind a chain of four loads.
#include "paged.cuh"

constexpr int THREADS_MAX = 128;

// N pairs of one head, as they were moved.
template <int N>
struct Piece {
    u32 head, i;
    Pack<N, Element> x, y;

    __device__ void fetch(const Element* row, u32 pair, u32 dim) {
        head = pair / (dim / 2), i = pair % (dim / 2);
        x = ::fetch<N>(row + head * dim + i);
        y = ::fetch<N>(row + head * dim + i + dim / 2);
    }
};

// Where a row's heads go.
struct Row {
    const RopeKvStoreParams& p;
    Element* qkv;
    const float* angles;
    u32 slot;  // of the first key head; that of the next is behind its block

    // In the cache, the place of a head that is none of the queries'.
    __device__ Element* kept(u32 head) const {
        const bool value = head >= p.key_heads;
        const u32 own = slot + (value ? head - p.key_heads : head) * p.block_tokens;
        return (value ? p.values : p.keys) + static_cast<u64>(own) * p.dim;
    }

    template <int N>
    __device__ void put(const Piece<N>& piece) const {
        const u32 half = p.dim / 2;
        float x[N], y[N];
        widen(x, piece.x);
        widen(y, piece.y);
        if (piece.head < p.query_heads + p.key_heads) turn(x, y, piece.i);
        Element* to = qkv + piece.head * p.dim;
        if (piece.head >= p.query_heads) {
            round_like(x, p.stands_for);
            round_like(y, p.stands_for);
            to = kept(piece.head - p.query_heads);
        }
        store(to + piece.i, x);
        store(to + piece.i + half, y);
    }

    template <int N>
    __device__ void turn(float (&x)[N], float (&y)[N], u32 i) const {
        float cos[N], sin[N];
        load(cos, angles + i);
        load(sin, angles + p.dim / 2 + i);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float low = x[n] * cos[n] - y[n] * sin[n];
            y[n] = y[n] * cos[n] + x[n] * sin[n];
            x[n] = low;
        }
    }
};

template <int N, int EACH>
__device__ void turn_and_store(const RopeKvStoreParams& p) {
    wait_for_previous();
    const u32 heads = p.query_heads + 2 * p.key_heads, pairs = heads * p.dim / 2;
    const u32 stride = blockDim.x * N;
    Element* qkv = p.qkv + static_cast<u64>(blockIdx.x) * heads * p.dim;
    const u32 position = p.index.positions[blockIdx.x], span = p.index.row_span[blockIdx.x];
    for (u32 first = threadIdx.x * N; first < pairs; first += EACH * stride) {
        Piece<N> pieces[EACH];
#pragma unroll
        for (int each = 0; each < EACH; each++) {
            const u32 pair = first + each * stride;
            if (pair < pairs) pieces[each].fetch(qkv, pair, p.dim);
        }
        if (position == PADDING) return;
        const Row row = {
            p, qkv, p.table + static_cast<u64>(position) * p.dim,
            place(p.index, p.index.spans[span], position, p.block_tokens, p.key_heads, 0)};
#pragma unroll
        for (int each = 0; each < EACH; each++) {
            if (first + each * stride < pairs) row.put(pieces[each]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS_MAX) rope_kv_store(RopeKvStoreParams p) {
    p.dim % 16 == 0 ? turn_and_store<8, 3>(p) : turn_and_store<1, 1>(p);
}
