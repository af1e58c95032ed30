// The host's twin of kernels/cuda/cluster.cuh.
#pragma once

#include <bulk.cuh>

inline u32 rank_in_cluster() { return device.block % device.of_cluster; }

inline NamedBarrier& barrier_of_cluster() {
    return device.blocks[device.block - rank_in_cluster()].cluster;
}

// Once each: a thread that waits for a second time would not wait.
inline void arrive_at_cluster() {
    NamedBarrier& barrier = barrier_of_cluster();
    if (++barrier.arrived == device.of_cluster * device.of_block) barrier.generation++;
}
inline void await_cluster() {
    const NamedBarrier& barrier = barrier_of_cluster();
    wait_until("its cluster", [&] { return barrier.generation > 0; });
}

inline void store_at(u32 rank, u32 to, float value, u32 barrier) {
    OneBlock& block = device.blocks[device.block - rank_in_cluster() + rank];
    const unsigned long due = device.tick + device.chance() % device.slowest_copy;
    block.copies.push_back({due, sizeof(value), barrier, [&block, to, value] {
                                memcpy(block.shared + to, &value, sizeof(value));
                            }});
}
