// The host's twin of kernels/cuda/chain.cuh, for one kernel: what others make is there in a while.
#pragma once

#define REGISTERS(COUNT, THREADS)

struct Word {
    unsigned said, heard;
};

// What the kernels before write, any number of times.
inline std::function<void()> previous = [] {};

inline void wait_for_previous() {
    for (unsigned i = device.chance() % 60; i > 0; i--) give_way();
    previous();
}
inline void wait_for_previous_alone() { wait_for_previous(); }
inline void let_next_in() {}

struct Pool {
    unsigned taken, done, left;
};
inline unsigned take(Pool* pool) { return atomicAdd(&pool->taken, 1); }
inline bool are_left(const Pool* pool, unsigned shares) {
    for (unsigned i = device.chance() % 60; i > 0 && pool->taken < shares; i--) give_way();
    return pool->taken < shares;
}
inline void give(Pool* pool, unsigned count) { pool->done += count; }
inline void await_all(Pool* pool, unsigned count) {
    wait_until("pieces of others", [&] { return pool->done == count; });
}
inline void leave(Pool* pool) {
    if (++pool->left == gridDim.x) *pool = {};
}
inline void say(Word*) {}
inline void hear(Word*) { wait_for_previous(); }
inline void have_heard(Word*) {}
