// Blocks of a cluster, which run at once and reach each other's shared memory (from compute capability
// 9.0 on).
#pragma once

#include "bulk.cuh"

__device__ inline u32 rank_in_cluster() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of all blocks: who has waited for the others to arrive may tell their barriers.
__device__ inline void arrive_at_cluster() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void await_cluster() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Writes where block `rank` has what is `to` here. Its `barrier` waits for as many bytes.
__device__ inline void store_at(u32 rank, u32 to, float value, u32 barrier) {
    u32 remote, told;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(to), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(told) : "r"(barrier), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(remote),
                 "f"(value), "r"(told)
                 : "memory");
}
