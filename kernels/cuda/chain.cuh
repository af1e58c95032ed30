// How a kernel starts before the one ahead of it has ended (programmatic dependent launch): its
// blocks are placed while the other's finish, and it may bring what no kernel writes, such as
// weights.
#pragma once

// A kernel of blocks of so many threads and no more registers each: kernels beside it need the rest.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204
#define REGISTERS(COUNT, THREADS) __maxnreg__(COUNT)
#else
#define REGISTERS(COUNT, THREADS) __launch_bounds__(THREADS, 1)
#endif

// Lets the next kernel in: a block of it is placed once all blocks of this one have said so.
__device__ inline void let_next_in() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// What the kernels before this one wrote may be read, and written, from here on. Every kernel calls
// it, in every block that writes: so whoever has waited knows that all before are done. What those
// that are let in meanwhile, perhaps several, read before their own wait is written by no kernel at
// all, such as weights and a step's index data, or by one of an earlier step, such as older keys and
// values: a step starts with a copy, which waits for all before it.
__device__ inline void wait_for_previous_alone() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The same, and the next kernel is let in first. Not for a kernel that waits for other ranks: the
// next one's blocks would take the places that those ranks' kernels need to get here, where they
// share a device.
__device__ inline void wait_for_previous() {
    let_next_in();
    wait_for_previous_alone();
}

// Said once and heard by every block of the kernel that follows: that all before the one who says it
// are done, while that one is still at work. Zeros between launches. Nobody waits for a block that
// has no place: whoever follows is let in once all blocks of the one before have theirs.
struct Word {
    unsigned int said, heard;
};

// For one thread that has waited for the kernels before its own.
__device__ inline void say(Word* word) {
    asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(&word->said) : "memory");
}

// For one thread of every block. It must be these two kernels' own: others may start to listen before
// this one has heard. Copies that run by themselves may then read what the kernels before wrote.
__device__ inline void hear(Word* word) {
    unsigned int said;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(said) : "l"(&word->said) : "memory");
    } while (said == 0);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

// For the same threads, once they have done what is urgent: the last one takes the word back.
__device__ inline void have_heard(Word* word) {
    if (atomicAdd(&word->heard, 1) + 1 == gridDim.x) word->heard = word->said = 0;
}

// Pieces of work that the blocks of one kernel divide among them while it runs: shares that are taken,
// pieces that are done, and blocks that know it. Zeros between launches.
struct Pool {
    unsigned int taken, done, left;
};

// Takes the next share, and returns which it is.
__device__ inline unsigned int take(Pool* pool) { return atomicAdd(&pool->taken, 1); }

// Whether some of so many shares are still to be taken after a while, in which all blocks should have
// come and taken theirs. If they have not, they may wait for places that those have who wait for them.
__device__ inline bool are_left(const Pool* pool, unsigned int shares) {
    constexpr unsigned int NANOSECONDS = 50000;
    unsigned int taken, start, now;
    asm volatile("mov.u32 %0, %globaltimer_lo;" : "=r"(start));
    do {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(taken) : "l"(&pool->taken) : "memory");
        if (taken >= shares) return false;
        asm volatile("mov.u32 %0, %globaltimer_lo;" : "=r"(now));
    } while (now - start < NANOSECONDS);
    return true;
}

// For one thread, which has met all that wrote results: so many pieces are done.
__device__ inline void give(Pool* pool, unsigned int count) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(&pool->done), "r"(count) : "memory");
}

// For one thread of every block, which takes no more: waits until all pieces are done.
__device__ inline void await_all(Pool* pool, unsigned int count) {
    unsigned int done;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(&pool->done) : "memory");
    } while (done < count);
}

// For the same threads, once they have done what is urgent.
__device__ inline void leave(Pool* pool) {
    if (atomicAdd(&pool->left, 1) + 1 == gridDim.x) pool->taken = pool->done = pool->left = 0;
}
