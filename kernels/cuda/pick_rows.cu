// out[i] = x[picked[i]].
#include "params.cuh"

template <int N>
__device__ void copy_row(const PickRowsParams& p) {
    const Element* from = p.x + static_cast<u64>(p.picked[blockIdx.x]) * p.width;
    Element* to = p.out + static_cast<u64>(blockIdx.x) * p.width;
    for (u32 i = threadIdx.x * N; i < p.width; i += blockDim.x * N) {
        float x[N];
        load(x, from + i);
        store(to + i, x);
    }
}

extern "C" __global__ void pick_rows(PickRowsParams p) {
    wait_for_previous();
    p.width % 8 == 0 ? copy_row<8>(p) : copy_row<1>(p);
}
