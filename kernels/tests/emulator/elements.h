// Random elements, and the arithmetic of sizes, for the emulator's tests.
#pragma once

#include "element.cuh"

typedef std::vector<Element> Elements;

inline Elements some(size_t count, float scale) {
    Elements elements(count);
    for (Element& element : elements) from_f32(element, any() * scale);
    return elements;
}

inline u32 divide_up(u32 a, u32 b) { return (a + b - 1) / b; }
inline u32 align(u32 at, u32 to) { return divide_up(at, to) * to; }
