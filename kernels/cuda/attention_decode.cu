// out = sum of softmax(scale * query . key) * value over the positions that one row sees, on tensor
// cores: decode of 16-bit models. Where it is given angles, it first does what rope_kv_store.cu does.
// Up to 8 query heads that share a key/value head are the columns of both products, so that keys
// and values are read once for all of them: S^T = K Q^T, and O^T = V^T P^T. Keys and values go from
// memory to registers, 16 bytes a lane, as they lie: a product does not mind in which order it
// meets the elements of a head, as long as both operands agree, nor an output which of its rows is
// which.
//
// For 16 positions of one warp, lane l = 4 g + t holds
//   of K^T, for every 32 elements of the head: elements 8 t to 8 t + 7 of positions g and g + 8;
//   of S^T and P^T: positions g and g + 8, heads 2 t and 2 t + 1;
//   of V^T, for every 64 elements: elements 8 g to 8 g + 7 of positions 2 t, 2 t + 1, 2 t + 8 and
//     2 t + 9;
//   of O^T, for every 64 elements: elements 8 g to 8 g + 7 of heads 2 t and 2 t + 1.
// Where only 32 elements are left of a head, the last two lines have 4 g to 4 g + 3.
#include "attention_own.cuh"

// Two positions' pairs of elements, turned into two elements' pairs of positions.
__device__ inline void interleave(u32 a, u32 b, u32& low, u32& high) {
    low = __byte_perm(a, b, 0x5410);
    high = __byte_perm(a, b, 0x7632);
}

// Whether both halves of a pair of elements that are rotated together are one lane's.
template <int DIM>
__device__ constexpr bool turns() {
    return DIM % 64 == 0;
}

// What a lane has of 16 positions' keys and values. What is fetched for the row's own may be what lay
// there before. Positions behind it are not seen, but multiplied by zero, so what stands for them must
// be numbers: its own, too.
template <int DIM>
struct Positions {
    uint4 keys[DIM / 32][2], values[DIM / 64][4];
    uint2 rest[DIM % 64 == 0 ? 1 : 4];

    // Which of the 16 a lane's n-th key is, and its n-th value.
    __device__ static u32 key_at(int n) { return threadIdx.x % 32 / 4 + n * 8; }
    __device__ static u32 value_at(int n) { return threadIdx.x % 4 * 2 + n % 2 + n / 2 * 8; }

    // Those that lie in `slot` of the lanes from `lane` on.
    __device__ void fetch_keys(const AttentionParams& p, u32 slot, u32 lane) {
        const u32 t = threadIdx.x % 4;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const u32 from = __shfl_sync(~0u, slot, lane + key_at(n));
#pragma unroll
            for (int i = 0; i < DIM / 32; i++) keys[i][n] = part_of<DIM>(p.keys, from, i * 4 + t);
        }
    }

    __device__ void fetch_values(const AttentionParams& p, u32 slot, u32 lane) {
        const u32 g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const u32 from = __shfl_sync(~0u, slot, lane + value_at(n));
#pragma unroll
            for (int i = 0; i < DIM / 64; i++) values[i][n] = part_of<DIM>(p.values, from, i * 8 + g);
            if constexpr (DIM % 64 != 0) {
                const u64 at = static_cast<u64>(from) * DIM + DIM / 64 * 64 + g * 4;
                rest[n] = fetch<4>(p.values + at).raw.words;
            }
        }
    }

    // Among 16 positions from `first` on.
    __device__ void put_own_key(const OwnParts<DIM>& own, u32 position, u32 first) {
        const u32 t = threadIdx.x % 4;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            if (first + key_at(n) < position) continue;
#pragma unroll
            for (int i = 0; i < DIM / 32; i++) keys[i][n] = own.key[i * 4 + t];
        }
    }

    __device__ void put_own_value(const OwnParts<DIM>& own, u32 position, u32 first) {
        const u32 g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (first + value_at(n) < position) continue;
#pragma unroll
            for (int i = 0; i < DIM / 64; i++) values[i][n] = own.value[i * 8 + g];
        }
    }
};

template <int DIM>
struct Decode {
    static constexpr int STEPS = DIM / 16;  // products that a score takes
    static constexpr int TILES = DIM / 16;  // products that 16 positions' values take

    u32 query[STEPS][2];
    float largest[2], total[2], sum[TILES][4];

    __device__ Decode(const AttentionParams& p, const Task& task, const Own& own,
                      const Heads<DIM>& heads) {
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        uint4 raw[DIM / 32] = {};
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            if (g < task.heads) raw[i] = heads.parts[g][i * 4 + t];
        }
#pragma unroll
        for (int i = 0; i < DIM / 64 && turns<DIM>() && p.table; i++) {
            turn(raw[i], raw[i + DIM / 64], own.angles + i * 32 + t * 8, DIM / 2);
        }
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            const uint4 words = raw[i];
            query[2 * i][0] = words.x, query[2 * i][1] = words.y;
            query[2 * i + 1][0] = words.z, query[2 * i + 1][1] = words.w;
        }
        largest[0] = largest[1] = minus_infinity();
        total[0] = total[1] = 0.0f;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[tile][i] = 0.0f;
        }
    }

    __device__ void score(float (&scores)[4], const Positions<DIM>& positions) const {
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            const uint4 a = positions.keys[i][0], b = positions.keys[i][1];
            const u32 first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
            multiply_add(scores, first, query[2 * i][0], query[2 * i][1]);
            multiply_add(scores, second, query[2 * i + 1][0], query[2 * i + 1][1]);
        }
    }

    // Turns scores of 16 positions, of which `seen` are seen, into weights, and makes room for them in
    // the running softmax.
    __device__ void weigh(float (&scores)[4], float scale, u32 seen, u32 (&weights)[2]) {
        const u32 g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[i] = g + i / 2 * 8 < seen ? scores[i] * scale : minus_infinity();
        }
        float keep[2];
#pragma unroll
        for (int head = 0; head < 2; head++) {
            float most = fmaxf(scores[head], scores[head + 2]);
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 4));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 8));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 16));
            most = fmaxf(most, largest[head]);
            keep[head] = exp2f(largest[head] - most);
            largest[head] = most;
            scores[head] = exp2f(scores[head] - most);
            scores[head + 2] = exp2f(scores[head + 2] - most);
            total[head] = total[head] * keep[head] + scores[head] + scores[head + 2];
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[tile][i] *= keep[i % 2];
        }
        weights[0] = transpose(pair_of(scores[0], scores[1]));
        weights[1] = transpose(pair_of(scores[2], scores[3]));
    }

    __device__ void gather(const Positions<DIM>& positions, const u32 (&weights)[2]) {
#pragma unroll
        for (int i = 0; i < DIM / 64; i++) {
            const uint4(&from)[4] = positions.values[i];
            const uint4 a = from[0], b = from[1], c = from[2], d = from[3];
            add(4 * i, a.x, b.x, c.x, d.x, weights);
            add(4 * i + 1, a.y, b.y, c.y, d.y, weights);
            add(4 * i + 2, a.z, b.z, c.z, d.z, weights);
            add(4 * i + 3, a.w, b.w, c.w, d.w, weights);
        }
        if constexpr (DIM % 64 != 0) {
            const uint2(&from)[4] = positions.rest;
            add(DIM / 64 * 4, from[0].x, from[1].x, from[2].x, from[3].x, weights);
            add(DIM / 64 * 4 + 1, from[0].y, from[1].y, from[2].y, from[3].y, weights);
        }
    }

    // Two elements of four positions each.
    __device__ void add(int tile, u32 a, u32 b, u32 c, u32 d, const u32 (&weights)[2]) {
        u32 value[4];
        interleave(a, b, value[0], value[1]);
        interleave(c, d, value[2], value[3]);
        multiply_add(sum[tile], value, weights[0], weights[1]);
    }

    // Eight lanes write at a time, each 16 bytes: those of odd elements their second half first, so that
    // no two meet in a bank.
    __device__ void share(Share<DIM> (*shares)[HEADS]) {
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int head = 0; head < 2; head++) {
            Share<DIM>& share = shares[threadIdx.x / 32][2 * t + head];
            total[head] += __shfl_xor_sync(~0u, total[head], 4);
            total[head] += __shfl_xor_sync(~0u, total[head], 8);
            total[head] += __shfl_xor_sync(~0u, total[head], 16);
            if (g == 0) share.largest = largest[head], share.total = total[head];
#pragma unroll
            for (int tile = 0; tile < DIM / 64 * 4; tile += 4) {
                float* to = share.sum + tile / 4 * 64 + g * 8;
                const float4 low = four_of(tile, head), high = four_of(tile + 2, head);
                const u32 first = g % 2 * 4;
                *reinterpret_cast<float4*>(to + first) = g % 2 ? high : low;
                *reinterpret_cast<float4*>(to + 4 - first) = g % 2 ? low : high;
            }
            if constexpr (DIM % 64 != 0) {
                float* to = share.sum + DIM / 64 * 64 + g * 4;
                *reinterpret_cast<float4*>(to) = four_of(DIM / 64 * 4, head);
            }
        }
    }

    // Of two tiles, the elements of one head, which follow each other.
    __device__ float4 four_of(int tile, int head) const {
        return {sum[tile][head], sum[tile][head + 2], sum[tile + 1][head], sum[tile + 1][head + 2]};
    }
};

// Where the positions of a tile lie that this warp takes, one a lane; past the end, the last one.
__device__ inline u32 slot_of(const AttentionParams& p, const Task& task, const Span& span,
                              u32 first) {
    const u32 position = min(first + threadIdx.x % 32, task.chunk.end - 1);
    return place(p.index, span, position, p.block_tokens, p.key_heads, task.key_head);
}

// Has a position's keys and values brought to the cache.
template <int DIM>
__device__ inline void bring(const AttentionParams& p, u32 slot) {
    const u64 at = static_cast<u64>(slot) * DIM;
#pragma unroll
    for (int line = 0; line < DIM; line += 64) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.keys + at + line));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.values + at + line));
    }
}

// Whether there are registers for 16 positions' values beside their keys.
template <int DIM>
constexpr bool BOTH = DIM <= 128;

// The positions that one warp takes, 32 of every TILE, 16 at a time.
template <int DIM>
struct Walk {
    const AttentionParams& p;
    const Task& task;
    const Span& span;
    u32 first, slot;      // of the next 16, and where their 32 lie
    bool second = false;  // half of the 32
    Positions<DIM> positions;

    // Has the keys and values of the first tiles brought to the cache.
    __device__ Walk(const AttentionParams& p, const Task& task, const Span& span)
        : p(p), task(task), span(span), first(task.chunk.begin + threadIdx.x / 32 * 32) {
        for (u32 tile = CHUNK_TILES_MIN; tile-- > 0;) {
            if (first + tile * TILE >= task.chunk.end) continue;
            slot = slot_of(p, task, span, first + tile * TILE);
            bring<DIM>(p, slot);
        }
    }

    __device__ bool is_over() const { return first >= task.chunk.end; }

    __device__ void advance() {
        first += second ? TILE - 16 : 16, second = !second;
        if (!second && !is_over()) slot = slot_of(p, task, span, first);
    }

    __device__ void fetch_keys() {
        if (!is_over()) positions.fetch_keys(p, slot, second * 16);
    }

    __device__ void fetch_values() {
        if (!is_over()) positions.fetch_values(p, slot, second * 16);
    }
};

// Where everything lies is known before the row's own keys and values are. Older ones are on their way
// by then, and so are always 16 positions while 16 are multiplied, where there are registers for it.
template <int DIM>
__device__ void attend(const AttentionParams& p) {
    // Heads are read before shares are written, and lie in the same place: both would be more than a
    // product leaves beside it.
    extern __shared__ __align__(16) float shared[];
    auto shares = reinterpret_cast<Share<DIM>(*)[HEADS]>(shared);
    auto& heads = *reinterpret_cast<Heads<DIM>*>(shared);
    static_assert(sizeof(heads) <= sizeof(*shares) * WARPS, "room");
    const Task task = task_of<HEADS>(p);
    if (blockIdx.x >= task.chunk.count) return wait_for_previous();
    const Span span = p.index.spans[p.index.row_span[task.row]];
    const bool rotates = turns<DIM>() && p.table;
    const Own own = rotates ? own_of<DIM>(p, task, span) : Own{};
    Walk<DIM> walk(p, task, span);
    if (BOTH<DIM> && rotates) walk.fetch_keys(), walk.fetch_values();
    wait_for_previous();
    if (BOTH<DIM> && !rotates) walk.fetch_keys(), walk.fetch_values();
    __shared__ OwnParts<DIM> parts;
    heads.bring(p, task);
    __syncthreads();
    Decode<DIM> decode(p, task, own, heads);
    parts.put(p, own, heads);
    __syncthreads();
    while (!walk.is_over()) {
        const u32 first = walk.first;
        float scores[4] = {};
        u32 weights[2];
        if constexpr (!BOTH<DIM>) walk.fetch_keys();
        walk.positions.put_own_key(parts, own.position, first);
        decode.score(scores, walk.positions);
        if constexpr (BOTH<DIM>) {
            walk.advance();
            walk.fetch_keys();
        } else {
            asm volatile("" ::: "memory");  // no load moves up
            walk.fetch_values();
        }
        decode.weigh(scores, p.scale, task.chunk.end - first, weights);
        walk.positions.put_own_value(parts, own.position, first);
        decode.gather(walk.positions, weights);
        if constexpr (BOTH<DIM>) {
            walk.fetch_values();
        } else {
            walk.advance();
        }
    }
    decode.share(shares);
    finish<HEADS>(p, task, shares);
}

// COUNT registers a thread: those of 128 elements leave a product with adapters room beside a block
// (gemm_stream.cu).
#define ATTENTION_DECODE(DIM, COUNT)                     \
    extern "C" __global__ void REGISTERS(COUNT, THREADS) \
        attention_decode_##DIM(AttentionParams p) {      \
        attend<DIM>(p);                                  \
    }

ATTENTION_DECODE(64, 96)
ATTENTION_DECODE(96, 168)
ATTENTION_DECODE(128, 160)
ATTENTION_DECODE(256, 255)
