// The host's twin of kernels/cuda/mma.cuh: products of matrices that a warp holds, in bf16.
#pragma once

#include "element.cuh"

// In memory that caches nothing.
inline uint4 fetch_once(const void* from) { return *static_cast<const uint4*>(from); }

inline u32 shared_address(const void* at) {
    return static_cast<const unsigned char*>(at) - device.own().shared;
}
inline unsigned char* shared_bytes(u32 at) { return device.own().shared + at; }

inline float low_half(u32 pair) { return __uint_as_float(pair << 16); }
inline float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

inline u32 multiply_pairs(u32 a, u32 b) {
    return pair_of(low_half(a) * low_half(b), high_half(a) * high_half(b));
}

struct Product {
    float* sums;
    const u32* a;
    u32 b[2];
};

// m16n8k16, where lane l = 4 g + t: PTX ISA, "Matrix Fragments for mma.m16n8k16".
inline void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    Product own = {sums, a, {b0, b1}};
    with_warp(&own, [](void** all) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const Product& own = *static_cast<Product*>(all[lane]);
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) {
                float* at = &a[g + i % 2 * 8][2 * t + i / 2 * 8];
                at[0] = low_half(own.a[i]), at[1] = high_half(own.a[i]);
            }
            for (int i = 0; i < 2; i++) {
                b[2 * t + i * 8][g] = low_half(own.b[i]);
                b[2 * t + i * 8 + 1][g] = high_half(own.b[i]);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            const Product& own = *static_cast<Product*>(all[lane]);
            for (int i = 0; i < 4; i++) {
                const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = 0.0f;
                for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
                own.sums[i] += sum;
            }
        }
    });
}

struct Turned {
    u32 pair, turned;
};

// Lane l = 4 g + t held row g, columns 2 t and the next.
inline u32 transpose(u32 pair) {
    Turned own = {pair, 0};
    with_warp(&own, [](void** all) {
        unsigned short elements[8][8];
        for (int lane = 0; lane < 32; lane++) {
            memcpy(&elements[lane / 4][lane % 4 * 2], &static_cast<Turned*>(all[lane])->pair, 4);
        }
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4 * 2;
            static_cast<Turned*>(all[lane])->turned = elements[t][g] | u32{elements[t + 1][g]} << 16;
        }
    });
    return own.turned;
}

struct Loaded {
    u32* to;
    u32 row;
    int matrices;
    bool turned;
};

// Lane l names row l % 8 of matrix l / 8.
inline void load_some_matrices(u32* to, u32 row, int matrices, bool turned = false) {
    Loaded own = {to, row, matrices, turned};
    with_warp(&own, [](void** all) {
        unsigned short elements[4][8][8];
        const int matrices = static_cast<Loaded*>(all[0])->matrices;
        for (int lane = 0; lane < matrices * 8; lane++) {
            const u32 row = static_cast<Loaded*>(all[lane])->row;
            if (row % 16 != 0) fail("a row of a matrix at", row);
            memcpy(elements[lane / 8][lane % 8], shared_bytes(row), 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            const auto [to, row, count, turned] = *static_cast<Loaded*>(all[lane]);
            for (int i = 0; i < matrices; i++) {
                const int g = lane / 4, t = lane % 4 * 2;
                const auto& own = elements[i];
                to[i] = turned ? own[t][g] | u32{own[t + 1][g]} << 16 : own[g][t] | u32{own[g][t + 1]} << 16;
            }
        }
    });
}

inline void load_matrices(u32 (&to)[4], u32 row) { load_some_matrices(to, row, 4); }
inline void load_transposed(u32 (&to)[4], u32 row) { load_some_matrices(to, row, 4, true); }
inline void load_two_matrices(u32 (&to)[2], u32 row) { load_some_matrices(to, row, 2); }

// Copies of one thread, which land when it waits for them.
template <u32 BYTES>
inline void copy_some(u32 to, const Element* from, bool exists) {
    if (to % BYTES != 0) fail("bytes copied to", to);
    device.running().groups.back().push_back([=, at = shared_bytes(to)] {
        exists ? memcpy(at, from, BYTES) : memset(at, 0, BYTES);
    });
}
inline void copy_8(u32 to, const Element* from, bool exists) { copy_some<8>(to, from, exists); }
inline void copy_16(u32 to, const Element* from, bool exists) { copy_some<16>(to, from, exists); }
inline void copy_16(Element* to, const Element* from, bool exists) {
    copy_16(shared_address(to), from, exists);
}
inline void commit_copies() { device.running().groups.emplace_back(); }

template <int GROUPS>
inline void wait_copies() {
    auto& groups = device.running().groups;
    while (groups.size() > GROUPS + 1) {
        for (const auto& land : groups.front()) land();
        groups.erase(groups.begin());
    }
}
