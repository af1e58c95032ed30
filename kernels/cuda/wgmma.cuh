// Products of a warpgroup of four warps (Hopper, wgmma), whose right operand, and the left one too if it
// is said so, tensor cores read from shared memory by themselves. Operands lie in boxes (bulk.cuh) that
// start at multiples of 1024 bytes. A warp's results are laid out as those of mma.cuh: of 64 rows it has
// 16. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
#pragma once

#include "bulk.cuh"

// Says where a matrix starts that has 64 columns a box. `apart` are bytes from one box to the next, where
// rows are what is summed over.
__device__ inline u64 matrix_at(u32 address, u32 apart) {
    constexpr u64 SWAPPED_128 = 1, EIGHT_ROWS = 8 * BOX_ROW_BYTES;
    return SWAPPED_128 << 62 | EIGHT_ROWS / 16 << 32 | static_cast<u64>(apart / 16) << 16 |
           (address & 0x3ffff) / 16;
}

// The same, so many bytes further on.
__device__ inline u64 moved(u64 matrix, u32 bytes) { return matrix + bytes / 16; }

// Registers and shared memory that products use are ready. Each warp of the group calls it.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// What this thread wrote to shared memory, its copies included, may be read by products.
__device__ inline void show_to_products() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Those that were started belong together; and waits until only so many such groups are under way.
__device__ inline void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT>
__device__ inline void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

__device__ inline void end_products() {
    commit_products();
    await_products<0>();
}

#if defined(ELEMENT_BF16)
#define WGMMA_TYPES "f32.bf16.bf16"
#else
#define WGMMA_TYPES "f32.f16.f16"
#endif

// Results of 8 columns each, as the instruction takes them.
#define EIGHT(SUMS, N) "+f"(SUMS[N][0]), "+f"(SUMS[N][1]), "+f"(SUMS[N][2]), "+f"(SUMS[N][3])
#define EIGHTS_4(SUMS, N) EIGHT(SUMS, N), EIGHT(SUMS, N + 1), EIGHT(SUMS, N + 2), EIGHT(SUMS, N + 3)
#define EIGHTS_8(SUMS, N) EIGHTS_4(SUMS, N), EIGHTS_4(SUMS, N + 4)

// sums[64, N] = a[64, 16] b[N, 16]^T, or added to what `sums` holds.
__device__ inline void multiply_boxes(float (&sums)[1][4], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.u32 adds, %6, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n8k16." WGMMA_TYPES " "
                 "{%0, %1, %2, %3}, %4, %5, adds, 1, 1, 0, 0;\n}"
                 : EIGHT(sums, 0)
                 : "l"(a), "l"(b), "r"(static_cast<u32>(adds)));
}
__device__ inline void multiply_boxes(float (&sums)[2][4], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.u32 adds, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16." WGMMA_TYPES " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, adds, 1, 1, 0, 0;\n}"
                 : EIGHT(sums, 0), EIGHT(sums, 1)
                 : "l"(a), "l"(b), "r"(static_cast<u32>(adds)));
}
__device__ inline void multiply_boxes(float (&sums)[4][4], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.u32 adds, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16." WGMMA_TYPES " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "%16, %17, adds, 1, 1, 0, 0;\n}"
                 : EIGHTS_4(sums, 0)
                 : "l"(a), "l"(b), "r"(static_cast<u32>(adds)));
}
__device__ inline void multiply_boxes(float (&sums)[6][4], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.u32 adds, %26, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n48k16." WGMMA_TYPES " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23}, "
                 "%24, %25, adds, 1, 1, 0, 0;\n}"
                 : EIGHTS_4(sums, 0), EIGHT(sums, 4), EIGHT(sums, 5)
                 : "l"(a), "l"(b), "r"(static_cast<u32>(adds)));
}
__device__ inline void multiply_boxes(float (&sums)[8][4], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.u32 adds, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16." WGMMA_TYPES " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, adds, 1, 1, 0, 0;\n}"
                 : EIGHTS_8(sums, 0)
                 : "l"(a), "l"(b), "r"(static_cast<u32>(adds)));
}

// sums[64, 64] += a[64, 16] b[16, 64], where each warp has its 16 rows of `a` in registers.
__device__ inline void multiply_rows(float (&sums)[8][4], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." WGMMA_TYPES " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : EIGHTS_8(sums, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The same of 128 columns, two boxes.
__device__ inline void multiply_rows(float (&sums)[16][4], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16." WGMMA_TYPES " "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : EIGHTS_8(sums, 0), EIGHTS_8(sums, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
