// The host's twin of kernels/cuda/wgmma.cuh: products of a warpgroup, in bf16.
#pragma once

#include <bulk.cuh>

inline u64 matrix_at(u32 address, u32 apart) { return u64{apart} << 32 | address; }
inline u64 moved(u64 matrix, u32 bytes) { return matrix + bytes; }
inline void begin_products() {}
inline void show_to_products() {}
inline void commit_products() {}
template <int LEFT>
inline void await_products() {}
inline void end_products() {}

// An element of a matrix in boxes: of its row, and of a box's rows.
inline float element_at(u64 matrix, u32 row, u32 column) {
    const u32 bytes = column % BOX_WIDTH * 2 + column / BOX_WIDTH * static_cast<u32>(matrix >> 32);
    const u32 at = static_cast<u32>(matrix) + row * BOX_ROW_BYTES + bytes;
    Element element;
    memcpy(&element, shared_bytes(at ^ (at / BOX_ROW_BYTES % 8) * 16), sizeof(element));
    return to_f32(element);
}

struct GroupProduct {
    float* sums;
    const u32* rows;  // of the left operand, as in mma.cuh, or it is in boxes
    u64 a, b;
    u32 columns;
    bool adds;
};

// Each lane l = 4 g + t of each warp has rows g and g + 8 of its warp's 16.
inline void multiply_group(GroupProduct own) {
    meet(device.own().groups[device.thread / 128], device.thread % 128, &own, [](void** all) {
        float a[64][16];
        for (u32 thread = 0; thread < 128; thread++) {
            const GroupProduct& own = *static_cast<GroupProduct*>(all[thread]);
            const u32 g = thread % 32 / 4, t = thread % 4;
            for (u32 half = 0; half < 2; half++) {
                for (u32 k : {2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9}) {
                    const u32 row = thread / 32 * 16 + g + half * 8;
                    const u32 pair = own.rows ? own.rows[half + k / 8 * 2] : 0;
                    const float held = k % 2 == 0 ? low_half(pair) : high_half(pair);
                    a[row][k] = own.rows ? held : element_at(own.a, row, k);
                }
            }
        }
        const GroupProduct& first = *static_cast<GroupProduct*>(all[0]);
        std::vector<float> b(16 * first.columns);
        for (u32 k = 0; k < 16; k++) {
            for (u32 n = 0; n < first.columns; n++) {
                b[k * first.columns + n] = first.rows ? element_at(first.b, k, n) : element_at(first.b, n, k);
            }
        }
        for (u32 thread = 0; thread < 128; thread++) {
            const GroupProduct& own = *static_cast<GroupProduct*>(all[thread]);
            for (u32 i = 0; i < own.columns / 2; i++) {
                const u32 row = thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8;
                const u32 column = i / 4 * 8 + thread % 4 * 2 + i % 2;
                float sum = own.adds ? own.sums[i] : 0.0f;
                for (u32 k = 0; k < 16; k++) sum += a[row][k] * b[k * own.columns + column];
                own.sums[i] = sum;
            }
        }
    });
}

template <int N>
inline void multiply_boxes(float (&sums)[N][4], u64 a, u64 b, bool adds) {
    multiply_group({sums[0], nullptr, a, b, N * 8, adds});
}
template <int N>
inline void multiply_rows(float (&sums)[N][4], const u32 (&a)[4], u64 b) {
    multiply_group({sums[0], a, 0, b, N * 8, true});
}
