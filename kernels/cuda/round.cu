// f32 rounded to the element type. A thread takes 8; the last one of all may find fewer.
#include "params.cuh"

extern "C" __global__ void round_to_element(RoundParams p) {
    wait_for_previous();
    u64 at = (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= p.elements) {
        float values[8];
        load(values, p.from + at);
        store(p.to + at, values);
        return;
    }
    for (; at < p.elements; at++) from_f32(p.to[at], p.from[at]);
}
