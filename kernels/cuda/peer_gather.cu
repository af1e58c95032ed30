// out = all ranks' in, one after the other in rank order.
#include "peer.cuh"

// N elements at a time; every rank's place in `out` is aligned to N.
template <class E, int N>
__device__ void gather(const PeerParams& p) {
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
        for (u32 rank = 0; rank < p.ranks; rank++) {
            const E* post = area_of(p, rank).post<E>(epoch);
            E* to = out + rank * p.elements + first;
            for (u32 i = threadIdx.x * N; i < count; i += blockDim.x * N) {
                copy<N>(to + i, post + i, count - i);
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) p.epochs[blockIdx.x] = epoch;
}

template <class E>
__device__ void gather_either(const PeerParams& p) {
    p.elements % pack_of<E>() == 0 ? gather<E, pack_of<E>()>(p) : gather<E, 1>(p);
}

extern "C" __global__ void __launch_bounds__(PEER_THREADS, 1) peer_gather(const __grid_constant__ PeerParams p) {
    wait_for_previous_alone();
    gather_either<Element>(p);
}

extern "C" __global__ void __launch_bounds__(PEER_THREADS, 1) peer_gather_f32(const __grid_constant__ PeerParams p) {
    wait_for_previous_alone();
    gather_either<float>(p);
}
