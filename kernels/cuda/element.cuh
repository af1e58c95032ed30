// The element type that activations, weights, caches and adapters of one build share, and how it is
// read and written: always as f32, several elements at once where the alignment is known.
//
// The toolkit's own cuda_bf16.h and cuda_fp16.h are not used: NVRTC finds them only where a whole
// toolkit is installed, and a conversion is one instruction.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

struct Bf16 {
    unsigned short bits;
};

struct F16 {
    unsigned short bits;
};

__device__ inline float to_f32(float x) { return x; }

__device__ inline float to_f32(Bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }

__device__ inline float to_f32(F16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

__device__ inline void from_f32(float& out, float x) { out = x; }

__device__ inline void from_f32(Bf16& out, float x) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}

__device__ inline void from_f32(F16& out, float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}

#if defined(ELEMENT_BF16)
typedef Bf16 Element;
#elif defined(ELEMENT_F16)
typedef F16 Element;
#elif defined(ELEMENT_F32)
typedef float Element;
#else
#error "define one of ELEMENT_BF16, ELEMENT_F16 and ELEMENT_F32"
#endif

// Two elements of one register, the first in the lower half.
__device__ inline u32 pair_of(float low, float high) {
    u32 both;
#if defined(ELEMENT_BF16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
}

// x / (1 + e^-x), within a few units in the last place: to divide exactly takes several times longer.
__device__ inline float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// What one instruction moves, or two of them for 32 bytes.
template <int BYTES>
struct Raw;
template <>
struct Raw<2> {
    unsigned short words;
};
template <>
struct Raw<4> {
    u32 words;
};
template <>
struct Raw<8> {
    uint2 words;
};
template <>
struct Raw<16> {
    uint4 words;
};
template <>
struct Raw<32> {
    uint4 words[2];
};

// N elements that are moved by as few instructions as 16 bytes each allow. They are kept as moved:
// the compiler splits the copy of a struct of 16-bit fields into loads of 16 bits.
template <int N, class E>
struct Pack {
    Raw<N * sizeof(E)> raw;
};

// `from` is aligned to N elements or 16 bytes, whichever is less; likewise `to` of store.
template <int N, class E>
__device__ inline Pack<N, E> fetch(const E* from) {
    return {*reinterpret_cast<const Raw<N * sizeof(E)>*>(from)};
}

template <int N, class E>
__device__ inline void widen(float (&to)[N], const Pack<N, E>& from) {
    E elements[N];
    memcpy(elements, &from.raw, sizeof(elements));
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = to_f32(elements[i]);
}

template <int N, class E>
__device__ inline void load(float (&to)[N], const E* from) {
    widen(to, fetch<N>(from));
}

template <int N, class E>
__device__ inline Pack<N, E> narrow(const float (&from)[N]) {
    E elements[N];
    Pack<N, E> pack;
#if !defined(ELEMENT_F32)
    if constexpr (N % 2 == 0 && sizeof(E) == 2) {  // several times faster than one by one
        u32 pairs[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) pairs[i] = pair_of(from[2 * i], from[2 * i + 1]);
        memcpy(&pack, pairs, sizeof(pack));
        return pack;
    }
#endif
#pragma unroll
    for (int i = 0; i < N; i++) from_f32(elements[i], from[i]);
    memcpy(&pack, elements, sizeof(pack));
    return pack;
}

template <int N, class E>
__device__ inline void write(E* to, const Pack<N, E>& from) {
    *reinterpret_cast<Raw<N * sizeof(E)>*>(to) = from.raw;
}

template <int N, class E>
__device__ inline void store(E* to, const float (&from)[N]) {
    write(to, narrow<N, E>(from));
}
