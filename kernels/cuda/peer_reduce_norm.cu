// residual += the sum of all ranks' hidden, and then hidden = residual / rms(residual) * weight, the
// same bits on every rank: peer_reduce.cu in one shot and add_rms_norm.cu in one kernel, and the bits
// of both. A block takes whole rows, as many at once as it can post.
#include "add_norm.cuh"
#include "peer.cuh"

template <int N>
__device__ inline void post_rows(const PeerParams& p, u32 epoch, const Element* from, u32 count) {
    Element* post = area_of(p, p.rank).post<Element>(epoch);
    for (u32 i = threadIdx.x * N; i < count; i += blockDim.x * N) copy<N>(post + i, from + i, N);
}

// What add_rms_norm.cu would find in memory: the sum, rounded. Everybody's posts are in registers at
// once, 16 bytes of each.
template <int N>
__device__ inline void sum_rounded(const PeerParams& p, u32 epoch, u32 at, float (&to)[N]) {
    constexpr int PACK = N < pack_of<Element>() ? N : pack_of<Element>();
#pragma unroll
    for (int part = 0; part < N; part += PACK) {
        float sum[PACK];
        sum_posts<PACK, Element>(p, epoch, at + part, sum);
#pragma unroll
        for (int n = 0; n < PACK; n++) {
            Element rounded;
            from_f32(rounded, sum[n]);
            to[part + n] = to_f32(rounded);
        }
    }
}

template <int N, int TURNS>
__device__ void reduce_normalise(const PeerReduceNormParams& p) {
    const PeerParams& peer = p.peer;
    float weight[TURNS][N] = {};
    Walk<N, TURNS>::load_first(weight, p.weight, p.width);
    wait_for_previous_alone();
    Element* hidden = static_cast<Element*>(peer.out);
    const u32 at_once = CHUNK_BYTES / sizeof(Element) / p.width;
    const Part part = part_of<1>(peer.elements / p.width, blockIdx.x, gridDim.x);
    u32 epoch = peer.epochs[blockIdx.x];
    for (u64 first = part.first; first < part.end; first += at_once) {
        const u32 rows = min(part.end - first, static_cast<u64>(at_once));
        post_rows<N>(peer, ++epoch, hidden + first * p.width, rows * p.width);
        if (!meet(peer, epoch)) return;
        // All twins of this block are placed and wait for nothing more.
        if (first + rows == part.end) let_next_in();
        for (u32 row = 0; row < rows; row++) {
            const u64 start = (first + row) * p.width;
            const NormRow to = {p.residual + start, p.weight, hidden + start, p.width, p.eps};
            add_normalise(to, weight, [&](u32 i, float (&sum)[N]) {
                sum_rounded(peer, epoch, row * p.width + i, sum);
            });
            // The warps' sums of the next row take the places of this one's.
            __syncthreads();
        }
    }
    if (threadIdx.x == 0) peer.epochs[blockIdx.x] = epoch;
}

extern "C" __global__ void __launch_bounds__(PEER_THREADS, 1) peer_reduce_norm(const __grid_constant__ PeerReduceNormParams p) {
    if (p.width % 8 != 0) {
        reduce_normalise<1, 1>(p);
    } else {
        p.width > blockDim.x * 8 ? reduce_normalise<8, 2>(p) : reduce_normalise<8, 1>(p);
    }
}
