// out = the sum of all ranks' in, in rank order and in f32, rounded once: the same bits on every
// rank. A small sum is taken in one shot: everybody reads everything. For a large one everybody sums
// a share and reads the others' (2 / ranks of the traffic).
#include "peer.cuh"

template <class E>
__device__ inline void one_shot(const PeerParams& p, u32 epoch, E* out, u32 count) {
    constexpr int N = pack_of<E>();
    for (u32 i = threadIdx.x * N; i < count; i += blockDim.x * N) {
        float sum[N];
        sum_posts<N, E>(p, epoch, i, sum);
        if (i + N <= count) {
            store(out + i, sum);
            continue;
        }
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            if (i + n < count) from_f32(out[i + n], sum[n]);
        }
    }
}

// Everybody's share of the sums goes through its area; false if a twin was lost.
template <class E>
__device__ inline bool two_shots(const PeerParams& p, u32 epoch, E* out, u32 count) {
    constexpr int N = pack_of<E>();
    const Part own = part_of<N>(count, p.rank, p.ranks);
    E* sums = area_of(p, p.rank).sums<E>();
    for (u32 i = own.first + threadIdx.x * N; i < own.end; i += blockDim.x * N) {
        float sum[N];
        sum_posts<N, E>(p, epoch, i, sum);
        store(sums + i, sum);
    }
    if (!meet(p, epoch + 1)) return false;
    for (u32 ahead = 0; ahead < p.ranks; ahead++) {
        // Everybody starts at itself, so that no rank is asked by all at once.
        u32 rank = (p.rank + ahead) % p.ranks;
        const Part part = part_of<N>(count, rank, p.ranks);
        const E* sums = area_of(p, rank).sums<E>();
        for (u32 i = part.first + threadIdx.x * N; i < part.end; i += blockDim.x * N) {
            copy<N>(out + i, sums + i, part.end - i);
        }
    }
    return true;
}

template <class E>
__device__ void reduce(const PeerParams& p) {
    constexpr int N = pack_of<E>();
    const E* in = static_cast<const E*>(p.in);
    E* out = static_cast<E*>(p.out);
    const Part part = part_of<N>(p.elements, blockIdx.x, gridDim.x);
    u32 epoch = p.epochs[blockIdx.x];
    for (u64 first = part.first; first < part.end; first += CHUNK_BYTES / sizeof(E)) {
        u32 count = min(part.end - first, static_cast<u64>(CHUNK_BYTES / sizeof(E)));
        E* post = area_of(p, p.rank).post<E>(++epoch);
        for (u32 i = threadIdx.x * N; i < count; i += blockDim.x * N) {
            copy<N>(post + i, in + first + i, count - i);
        }
        if (!meet(p, epoch)) return;
        if (!p.two_shots) {
            one_shot(p, epoch, out + first, count);
        } else if (!two_shots(p, epoch++, out + first, count)) {
            return;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) p.epochs[blockIdx.x] = epoch;
}

extern "C" __global__ void __launch_bounds__(PEER_THREADS, 1) peer_reduce(const __grid_constant__ PeerParams p) {
    wait_for_previous_alone();
    reduce<Element>(p);
}

extern "C" __global__ void __launch_bounds__(PEER_THREADS, 1) peer_reduce_f32(const __grid_constant__ PeerParams p) {
    wait_for_previous_alone();
    reduce<float>(p);
}
