// The tensor core instruction that 16-bit attention is built from, and how its operands reach it.
// A lane `l` of a 16 x 8 result holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
#pragma once

#include "element.cuh"

// sum[16, 8] += a[16, 16] b[16, 8], in f32.
__device__ inline void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(ELEMENT_BF16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline u32 shared_address(const void* at) {
    return static_cast<u32>(__cvta_generic_to_shared(at));
}

// An 8 x 8 matrix across the warp, turned: lane l held row l / 4, columns 2 (l % 4) and the next.
__device__ inline u32 transpose(u32 pair) {
    u32 turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}

// Four 8 x 8 matrices; lane l names row l % 8 of matrix l / 8.
__device__ inline void load_matrices(u32 (&to)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row));
}

// Two of them; lanes from 16 on name none.
__device__ inline void load_two_matrices(u32 (&to)[2], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(row));
}

__device__ inline void load_matrices(u32 (&to)[4], const Element* row) {
    load_matrices(to, shared_address(row));
}

__device__ inline void load_transposed(u32 (&to)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row));
}

// How the L2 cache is to keep what is read once a step, such as weights and adapters: it leaves before
// what is read again.
__device__ inline u64 once() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// 16 bytes of that, which no kernel at work writes.
__device__ inline uint4 fetch_once(const void* from) {
    uint4 words;
    asm("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
        : "l"(from), "l"(once()));
    return words;
}

// 16 bytes from device to shared memory without waiting; zeros where there is nothing to copy.
__device__ inline void copy_16(u32 to, const Element* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(exists ? 16 : 0));
}

// The same of 8 bytes.
__device__ inline void copy_8(u32 to, const Element* from, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from),
                 "r"(exists ? 8 : 0));
}

__device__ inline void copy_16(Element* to, const Element* from, bool exists) {
    copy_16(shared_address(to), from, exists);
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }

// Waits until at most `GROUPS` committed groups are under way.
template <int GROUPS>
__device__ inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
