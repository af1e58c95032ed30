// residual += delta. A thread adds 8 elements; the last one of all may find fewer.
#include "params.cuh"

extern "C" __global__ void add(AddParams p) {
    wait_for_previous();
    u64 at = (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= p.elements) {
        float delta[8], sum[8];
        load(delta, p.delta + at);
        load(sum, p.residual + at);
#pragma unroll
        for (int n = 0; n < 8; n++) sum[n] += delta[n];
        store(p.residual + at, sum);
        return;
    }
    for (; at < p.elements; at++) {
        from_f32(p.residual[at], to_f32(p.residual[at]) + to_f32(p.delta[at]));
    }
}
