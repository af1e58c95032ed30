// Copies that run by themselves (Hopper's tensor copy engine), and the barriers that tell of them:
// a barrier's phase ends when all who must have arrived and all bytes that were announced are there.
#pragma once

#include "mma.cuh"
#include "params.cuh"

// Boxes are 64 elements of 16 bits wide, and lie in shared memory in rows of 128 bytes whose eight
// parts of 16 are swapped: part c of row r is at c ^ (r % 8).
constexpr u32 BOX_WIDTH = 64, BOX_ROW_BYTES = 128;

// Where 16 bytes of a row of a box are: part `part` of row `row`.
__device__ inline u32 place_in_box(u32 row, u32 part) {
    return row * BOX_ROW_BYTES + (part ^ row % 8) * 16;
}

// Which warp of the block this is, known to be the same for all of its lanes.
__device__ inline u32 warp_of_block() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }

// Whether this lane is the one that the warp chose. What it does then is known to be one lane's.
__device__ inline bool elect_lane() {
    u32 elected;
    asm volatile("{\n"
                 ".reg .pred elected;\n"
                 "elect.sync _|elected, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, elected;\n"
                 "}"
                 : "=r"(elected));
    return elected != 0;
}

__device__ inline void init_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Whoever copies sees the barriers as they were made.
__device__ inline void show_barriers() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces bytes that copies will bring.
__device__ inline void announce(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Whether the phase with this parity has ended.
__device__ inline bool is_over(u32 barrier, u32 parity) {
    u32 over;
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, over;\n"
                 "}"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return over != 0;
}

// Waits for the end of the phase with this parity.
__device__ inline void wait_phase(u32 barrier, u32 parity) {
    u32 over;
    do {
        asm volatile("{\n"
                     ".reg .pred over;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, over;\n"
                     "}"
                     : "=r"(over)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (over == 0);
}

// 16 bytes of shared memory, or zeros.
__device__ inline uint4 load_16(u32 at, bool exists) {
    uint4 words = {};
    if (exists) {
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                     : "r"(at)
                     : "memory");
    }
    return words;
}

// One element of shared memory.
__device__ inline float load_one(u32 at) {
    Element element;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(element.bits) : "r"(at) : "memory");
    return to_f32(element);
}

// Asks for what describes a matrix, before it is first used.
__device__ inline void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Starts copying boxes from a row of all parts on and from the 64 columns `box` on; what lies outside
// of the matrix is zeros.
__device__ inline void copy_boxes(u32 to, const TensorMap& from, u32 row, u32 box, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %2, %4}], [%5];" ::"r"(to),
                 "l"(&from), "r"(0), "r"(row), "r"(box), "r"(barrier)
                 : "memory");
}

// The same of what is read once a step.
__device__ inline void copy_boxes_once(u32 to, const TensorMap& from, u32 row, u32 box, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %2, %4}], [%5], %6;" ::"r"(to),
                 "l"(&from), "r"(0), "r"(row), "r"(box), "r"(barrier), "l"(once())
                 : "memory");
}

// Starts copying bytes that follow each other and are read once a step, a multiple of 16 as both
// addresses are.
__device__ inline void copy_bytes_once(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "l"(once())
                 : "memory");
}
