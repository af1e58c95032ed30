// How ranks meet on the device and read each other's memory: ranks of one process, each with an
// area that all of them can reach, on one GPU or on several.
//
// Block b of a collective talks to block b of every other rank and to nobody else. It posts a piece
// of its input in its own area, meets its twins, and reads what they posted. Epochs count the
// meetings of a block; they live in device memory, so that a captured launch can be replayed. Posts
// alternate between two places by epoch: whoever posts again into a place has met its twins in
// between, and they came to that meeting only after reading.
#pragma once

#include "params.cuh"

// Bytes that a block posts at once.
constexpr u32 CHUNK_BYTES = 128 << 10;

// Looks at the flag before it looks at the clock and at whether to stop.
constexpr u32 POLLS = 1024;

// An area: flags `[BLOCKS_MAX][RANKS_MAX]`, posts `[2][BLOCKS_MAX]` and sums `[BLOCKS_MAX]` of
// CHUNK_BYTES each.
struct Area {
    unsigned char* start;

    __device__ u32* flag(u32 rank) const {
        return reinterpret_cast<u32*>(start) + blockIdx.x * PEER_RANKS_MAX + rank;
    }

    template <class E>
    __device__ E* chunk(u32 place) const {
        u64 chunk = place * PEER_BLOCKS_MAX + blockIdx.x;
        return reinterpret_cast<E*>(start + PEER_FLAGS_BYTES + chunk * CHUNK_BYTES);
    }

    template <class E>
    __device__ E* post(u32 epoch) const {
        return chunk<E>(epoch % 2);
    }

    template <class E>
    __device__ E* sums() const {
        return chunk<E>(2);
    }
};
static_assert(PEER_AREA_BYTES == PEER_FLAGS_BYTES + 3ull * PEER_BLOCKS_MAX * CHUNK_BYTES, "");

__device__ inline Area area_of(const PeerParams& p, u32 rank) { return {p.areas[rank]}; }

__device__ inline void store_release(u32* to, u32 value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ inline u32 load_acquire(const u32* from) {
    u32 value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

__device__ inline u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Whether the flag came to this epoch before the group was given up or the time was over.
__device__ inline bool await(const PeerParams& p, const u32* flag, u32 epoch) {
    u64 start = 0;
    // The difference is right also where epochs wrap around.
    for (u32 polls = 1; static_cast<int>(load_acquire(flag) - epoch) < 0; polls++) {
        if (polls % POLLS != 0) continue;
        if (load_acquire(p.stop) != 0) return false;
        u64 now = nanoseconds();
        if (start == 0) start = now;
        if (now - start > p.timeout) {
            store_release(p.stop, PEER_TIMED_OUT);
            return false;
        }
    }
    return true;
}

// Comes back when this block's twins have met here too; false if one never will. What all threads of
// a block wrote before is then visible to all threads of its twins.
__device__ inline bool meet(const PeerParams& p, u32 epoch) {
    __syncthreads();
    bool met = true;
    if (threadIdx.x < p.ranks) {
        store_release(area_of(p, threadIdx.x).flag(p.rank), epoch);
        met = await(p, area_of(p, p.rank).flag(threadIdx.x), epoch);
    }
    return __syncthreads_and(met);
}

// Elements that 16 bytes hold.
template <class E>
__device__ constexpr u32 pack_of() {
    return 16 / sizeof(E);
}

// The N elements at `at` of everybody's posts, summed in rank order.
template <int N, class E>
__device__ inline void sum_posts(const PeerParams& p, u32 epoch, u32 at, float (&sum)[N]) {
    Pack<N, E> posts[PEER_RANKS_MAX] = {};
#pragma unroll
    for (u32 rank = 0; rank < PEER_RANKS_MAX; rank++) {
        if (rank < p.ranks) posts[rank] = fetch<N>(area_of(p, rank).post<E>(epoch) + at);
    }
    widen(sum, posts[0]);
#pragma unroll
    for (u32 rank = 1; rank < PEER_RANKS_MAX; rank++) {
        if (rank >= p.ranks) continue;
        float addend[N];
        widen(addend, posts[rank]);
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] += addend[n];
    }
}

// The elements of this block: whole packs of N, but for the end.
struct Part {
    u64 first, end;
};

template <int N>
__device__ inline Part part_of(u64 elements, u32 part, u32 parts) {
    u64 packs = (elements + N - 1) / N;
    return {packs * part / parts * N, min(packs * (part + 1) / parts * N, elements)};
}

// Copies up to N elements; `to` and `from` are aligned to N.
template <int N, class E>
__device__ inline void copy(E* to, const E* from, u64 count) {
    if (count >= N) {
        *reinterpret_cast<Raw<N * sizeof(E)>*>(to) = fetch<N>(from).raw;
        return;
    }
    for (u32 i = 0; i < count; i++) to[i] = from[i];
}
