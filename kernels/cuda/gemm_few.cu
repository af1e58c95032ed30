// out = x weight^T (+ bias) for up to 8 rows of 16 bits: weights stream from memory to tensor cores.
// A block takes 16 TILES outputs; its warps cut the inputs, and their sums are added up in order.
// The outputs are the left operand's rows and the rows of x the right one's columns. Both operands
// go from memory to registers as they lie, 16 bytes a lane: a product does not mind in which order
// it meets the inputs, as long as both agree. Lane l = 4 g + t holds, of every 32 inputs, those
// from 8 t on: of outputs g and g + 8, and of row g.
#include "mma.cuh"
#include "params.cuh"

constexpr u32 ROWS = 8;

// 16 bytes that are read once.
__device__ inline uint4 stream(const Element* from) {
    uint4 words;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(from));
    return words;
}

// What a warp has on its way of 32 inputs.
template <int TILES>
struct Ahead {
    uint4 weight[TILES][2], x;
};

template <int TILES>
struct Warp {
    // As much as there are registers for.
    static constexpr int AHEAD = TILES == 1 ? 6 : 4;

    const GemmFewParams& p;
    u32 output, g, t, begin, end;  // of the steps of 32 inputs
    Ahead<TILES> ahead[AHEAD];
    float sums[TILES][4];

    __device__ Warp(const GemmFewParams& p) : p(p), output(blockIdx.x * TILES * 16), sums() {
        const u32 warp = threadIdx.x / 32, warps = blockDim.x / 32, steps = (p.inputs + 31) / 32;
        const u32 share = (steps + warps - 1) / warps;
        g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        begin = min(warp * share, steps), end = min(begin + share, steps);
    }

    __device__ bool within(u32 step) const { return step < end && step * 32 + t * 8 < p.inputs; }

    __device__ void fetch_weights(Ahead<TILES>& to, u32 step) const {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u64 row = min(output + tile * 16 + half * 8 + g, p.outputs - 1);
                to.weight[tile][half] = uint4{};
                const Element* from = p.weight + row * p.inputs + step * 32 + t * 8;
                if (within(step)) to.weight[tile][half] = stream(from);
            }
        }
    }

    __device__ void fetch_x(Ahead<TILES>& to, u32 step) const {
        to.x = uint4{};
        if (g >= p.rows || !within(step)) return;
        to.x = fetch<8>(p.x + static_cast<u64>(g) * p.inputs + step * 32 + t * 8).raw.words;
    }

    __device__ void multiply(const Ahead<TILES>& from) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const uint4 a = from.weight[tile][0], b = from.weight[tile][1];
            const u32 first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
            multiply_add(sums[tile], first, from.x.x, from.x.y);
            multiply_add(sums[tile], second, from.x.z, from.x.w);
        }
    }

    // The weights of this warp behind those that registers hold, a lane a row.
    __device__ void bring_rest() const {
        const u32 lane = threadIdx.x % 32, first = (begin + AHEAD) * 32;
        const u32 last = min(end * 32, p.inputs);
        if (lane >= TILES * 16 || first >= last || output + lane >= p.outputs) return;
        const Element* row = p.weight + static_cast<u64>(output + lane) * p.inputs;
        bring_to_cache(row + first, (last - first) * sizeof(Element));
    }

    // Weights are on their way before the kernel that makes x has ended.
    __device__ void run() {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) fetch_weights(ahead[i], begin + i);
        bring_rest();
        wait_for_previous();
#pragma unroll
        for (int i = 0; i < AHEAD; i++) fetch_x(ahead[i], begin + i);
        for (u32 step = begin; step < end; step += AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                multiply(ahead[i]);
                fetch_weights(ahead[i], step + AHEAD + i);
                fetch_x(ahead[i], step + AHEAD + i);
            }
        }
    }
};

template <class Out, int TILES, int WARPS>
__device__ void gemm(const GemmFewParams& p) {
    constexpr int OUTPUTS = TILES * 16, STRIDE = OUTPUTS + 4;  // the padding parts the banks
    __shared__ float shares[WARPS][ROWS][STRIDE];
    Warp<TILES> warp(p);
    warp.run();
    float(*own)[STRIDE] = shares[threadIdx.x / 32];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            own[warp.t * 2 + i % 2][tile * 16 + i / 2 * 8 + warp.g] = warp.sums[tile][i];
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < p.rows * OUTPUTS; i += WARPS * 32) {
        const u32 row = i / OUTPUTS, column = i % OUTPUTS, output = warp.output + column;
        if (output >= p.outputs) continue;
        float sum = 0.0f;
#pragma unroll
        for (int from = 0; from < WARPS; from++) sum += shares[from][row][column];
        if (p.bias) sum += to_f32(static_cast<const Out*>(p.bias)[output]);
        from_f32(static_cast<Out*>(p.out)[static_cast<u64>(row) * p.outputs + output], sum);
    }
}

// By outputs of a block. One block of 16 warps, or two of 8, fill the registers of a multiprocessor.
#define GEMM_FEW(OUT, SUFFIX)                                                                   \
    extern "C" __global__ void __launch_bounds__(512, 1) gemm_few_16##SUFFIX(GemmFewParams p) { \
        gemm<OUT, 1, 16>(p);                                                                    \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256, 2) gemm_few_32##SUFFIX(GemmFewParams p) { \
        gemm<OUT, 2, 8>(p);                                                                     \
    }

GEMM_FEW(Element, )
GEMM_FEW(float, _full)
