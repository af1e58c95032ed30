// out = x weight^T (+ bias) for few rows of 16 bits, at the speed at which weights come from memory
// (from compute capability 9.0 on); or out = silu(x gate^T) * (x up^T), where the weight is both.
// There is a block a multiprocessor. It takes a tile of outputs and goes through the inputs once.
// Two threads keep a ring of boxes filled by bulk copies, one with the weight and one with x, and
// eight warps multiply what has landed. The weight waits for nobody: it fills the ring while the
// kernels before this one are still at work. Only so much of it is under way at a time, while they
// are even less, that those kernels' own loads do not queue behind it.
// What adapters add is computed beside it, by warps of their own (adapters.cuh); x may be there before
// the kernel ahead, which shrinks it, has ended.
// The outputs are the left operand's rows and the rows of x the right one's columns. The warps share
// a tile: each has 32 of its outputs, and where there are fewer of those than warps, only some of
// the inputs. Sums are added up in a fixed order.
#include "adapters.cuh"

constexpr int WARPS = 8, UNITS = 2;  // that multiply; tiles of 16 outputs of each
constexpr u32 OUTPUTS = UNITS * 16, THREADS = (WARPS + 2) * 32;
constexpr u32 STRIDE = OUTPUTS + 4;  // of a row of a warp's sums: parts the banks
constexpr u32 STEP = 16;             // inputs of one product
constexpr u32 STEPS_OF_BOX = BOX_WIDTH / STEP;
constexpr u32 STAGES_MAX = 16;

// With adapters: a warp that copies their B, and those that multiply it.
constexpr u32 ADAPTED_THREADS = THREADS + (1 + EXPANDERS) * 32;

// Meets the warps that multiply, not those that copy.
__device__ inline void meet_warps() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// Tells the warps that multiply what adapters add, and has those wait for it.
__device__ inline void tell_added() { asm volatile("bar.arrive 2, 384;" ::: "memory"); }
__device__ inline void await_added() { asm volatile("bar.sync 2, 384;" ::: "memory"); }

// Meets the warps of adapters, and those of them that multiply.
__device__ inline void meet_adapters() { asm volatile("bar.sync 3, 160;" ::: "memory"); }
__device__ inline void meet_expanders() { asm volatile("bar.sync 4, 128;" ::: "memory"); }

// A stage of the ring, and the inputs and outputs that it holds.
struct Item {
    u32 stage, round, chunk, tile;
};

template <int COLUMNS>  // tiles of 8 rows of x
struct Block {
    static constexpr u32 ROWS = COLUMNS * 8;

    const GemmStreamParams& p;
    u32 barriers, ring;  // shared addresses
    u32 weight_bytes, x_bytes;
    u32 chunks;          // of the inputs: what a stage holds
    u32 outputs, tiles;  // of a tile, and tiles of this block

    __device__ Block(const GemmStreamParams& p, u32 shared) : p(p), barriers(shared) {
        ring = shared + p.ring;
        weight_bytes = p.boxes * p.tile * BOX_ROW_BYTES;
        x_bytes = p.boxes * ROWS * BOX_ROW_BYTES;
        chunks = (p.inputs / BOX_WIDTH + p.boxes - 1) / p.boxes;
        outputs = p.tile / p.parts;
        tiles = ((p.outputs + outputs - 1) / outputs + gridDim.x - 1 - blockIdx.x) / gridDim.x;
    }

    // Of a stage: whether the weight and x have landed, and whether both were used.
    __device__ u32 weight_landed(u32 stage) const { return barriers + stage * 8; }
    __device__ u32 x_landed(u32 stage) const { return weight_landed(STAGES_MAX + stage); }
    __device__ u32 used(u32 stage) const { return weight_landed(2 * STAGES_MAX + stage); }

    __device__ u32 weight_of(u32 stage) const { return ring + stage * (weight_bytes + x_bytes); }
    __device__ u32 x_of(u32 stage) const { return weight_of(stage) + weight_bytes; }

    __device__ Item first() const { return {0, 0, 0, blockIdx.x}; }

    __device__ void advance(Item& item) const {
        if (++item.stage == p.stages) item.stage = 0, item.round++;
        if (++item.chunk == chunks) item.chunk = 0, item.tile += gridDim.x;
    }

    __device__ void init_barriers() const {
        for (u32 stage = 0; stage < p.stages; stage++) {
            init_barrier(weight_landed(stage), 1);
            init_barrier(x_landed(stage), 1);
            init_barrier(used(stage), WARPS);
        }
    }

    __device__ void wait_until_used(const Item& item) const {
        if (item.round > 0) wait_phase(used(item.stage), (item.round - 1) % 2);
    }

    // One thread's work.
    __device__ void copy_weight() const {
        Item item = first(), landing = first();
        bool alone = false;  // whether the kernels before this one are done
        for (u32 i = 0, landed = 0; i < tiles * chunks; i++, advance(item)) {
            alone = alone || is_over(x_landed(0), 0);
            for (; i - landed >= (alone ? p.flight : p.flight_beside); landed++, advance(landing)) {
                wait_phase(weight_landed(landing.stage), landing.round % 2);
            }
            wait_until_used(item);
            announce(weight_landed(item.stage), weight_bytes);
            copy_boxes(weight_of(item.stage), p.weight, item.tile * outputs, item.chunk * p.boxes,
                       weight_landed(item.stage));
        }
    }

    // Another thread's, once x is there.
    __device__ void copy_x() const {
        Item item = first();
        for (u32 i = 0; i < tiles * chunks; i++, advance(item)) {
            wait_until_used(item);
            announce(x_landed(item.stage), x_bytes);
            copy_boxes(x_of(item.stage), p.x, 0, item.chunk * p.boxes, x_landed(item.stage));
        }
    }
};

// One warp's sums: of `units` tiles of 16 outputs, or none.
template <int COLUMNS>
struct Warp {
    static constexpr u32 ROWS = COLUMNS * 8;

    const Block<COLUMNS>& block;
    float* all;  // [WARPS, ROWS, STRIDE]: sums of all warps
    u32 lane = threadIdx.x % 32, part, parts, unit, units;
    float sums[UNITS][COLUMNS][4];

    __device__ Warp(const Block<COLUMNS>& block, float* all) : block(block), all(all) {
        const u32 warp = threadIdx.x / 32, across = block.p.across, most = block.p.tile / 16;
        part = warp / across, parts = WARPS / across, unit = warp % across * UNITS;
        units = unit < most ? min(most - unit, static_cast<u32>(UNITS)) : 0;
    }

    __device__ void clear() {
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) {
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
                for (int i = 0; i < 4; i++) sums[unit][column][i] = 0.0f;
            }
        }
    }

    // 16 inputs of all rows of x, as the right operand has them.
    __device__ void load_x(u32 (&to)[COLUMNS][2], u32 box, u32 step) const {
        if constexpr (COLUMNS == 1) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                         : "=r"(to[0][0]), "=r"(to[0][1])
                         : "r"(box + place_in_box(lane % 8, step * 2 + lane / 8 % 2)));
        } else {
#pragma unroll
            for (int column = 0; column < COLUMNS; column += 2) {
                const u32 row = column * 8 + lane / 16 * 8 + lane % 8;
                u32 four[4];
                load_matrices(four, box + place_in_box(row, step * 2 + lane / 8 % 2));
                to[column][0] = four[0], to[column][1] = four[1];
                to[column + 1][0] = four[2], to[column + 1][1] = four[3];
            }
        }
    }

    // 16 inputs of this warp's outputs, as the left operand has them.
    __device__ void load_weight(u32 (&to)[UNITS][4], u32 box, u32 step) const {
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            const u32 row = (unit + i) * 16 + lane % 16;
            if (i < units) load_matrices(to[i], box + place_in_box(row, step * 2 + lane / 16));
        }
    }

    // One warp's part of a stage, two steps at a time so that one is loaded while the other is
    // multiplied.
    __device__ void multiply(const Item& item) {
        constexpr int AT_ONCE = 2;
        const GemmStreamParams& p = block.p;
        const u32 weight_box = p.tile * BOX_ROW_BYTES, x_box = ROWS * BOX_ROW_BYTES;
        const u32 steps = units > 0 ? p.boxes * STEPS_OF_BOX : 0;
        wait_phase(block.weight_landed(item.stage), item.round % 2);
        wait_phase(block.x_landed(item.stage), item.round % 2);
        for (u32 first = part; first < steps; first += parts * AT_ONCE) {
            u32 x[AT_ONCE][COLUMNS][2], weight[AT_ONCE][UNITS][4];
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                const u32 at = min(first + n * parts, steps - 1);
                const u32 box = at / STEPS_OF_BOX, step = at % STEPS_OF_BOX;
                load_x(x[n], block.x_of(item.stage) + box * x_box, step);
                load_weight(weight[n], block.weight_of(item.stage) + box * weight_box, step);
            }
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                if (first + n * parts < steps) multiply_add_all(weight[n], x[n]);
            }
        }
        __syncwarp();
        if (lane == 0) arrive(block.used(item.stage));
    }

    __device__ void multiply_add_all(const u32 (&weight)[UNITS][4], const u32 (&x)[COLUMNS][2]) {
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            if (i >= units) break;
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                multiply_add(sums[i][column], weight[i], x[column][0], x[column][1]);
            }
        }
    }

    __device__ void keep() const {
        const u32 g = lane / 4, t = lane % 4;
        float* own = all + threadIdx.x / 32 * ROWS * STRIDE;
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) {
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 row = column * 8 + t * 2 + i % 2;
                    own[row * STRIDE + unit * 16 + i / 2 * 8 + g] = sums[unit][column][i];
                }
            }
        }
    }

    // Adds up what the warps have of one result.
    __device__ float sum_of(u32 row, u32 output) const {
        const float* first = all + (output / OUTPUTS * ROWS + row) * STRIDE + output % OUTPUTS;
        float sum = 0.0f;
        for (u32 i = 0; i < parts; i++) sum += first[i * (WARPS / parts) * ROWS * STRIDE];
        return sum;
    }

    __device__ void write(u32 row, u32 output, float sum) const {
        const GemmStreamParams& p = block.p;
        const u64 to = static_cast<u64>(row) * p.outputs + output;
        if (p.full) {
            if (p.bias) sum += static_cast<const float*>(p.bias)[output];
            static_cast<float*>(p.out)[to] = sum;
        } else {
            if (p.bias) sum += to_f32(static_cast<const Element*>(p.bias)[output]);
            from_f32(static_cast<Element*>(p.out)[to], sum);
        }
    }

    // Writes a tile of which `result` tells every sum.
    template <class Result>
    __device__ void write_all(u32 tile, Result result) const {
        const u32 first = tile * block.outputs, outputs = min(block.outputs, block.p.outputs - first);
        for (u32 i = threadIdx.x; i < block.p.rows * outputs; i += WARPS * 32) {
            const u32 row = i / outputs, output = i % outputs;
            float sum = result(row, output);
            if (block.p.parts == 2) {
                sum = sum / (1.0f + __expf(-sum)) * result(row, block.outputs + output);
            }
            write(row, first + output, sum);
        }
    }

    __device__ void run(const Adapters* adapters) {
        Item item = block.first();
        for (u32 i = 0; i < block.tiles; i++) {
            const u32 tile = item.tile;
            clear();
            for (u32 chunk = 0; chunk < block.chunks; chunk++, block.advance(item)) multiply(item);
            meet_warps();
            keep();
            meet_warps();
            if (adapters) {
                await_added();
                write_all(tile, [&](u32 row, u32 output) {
                    return sum_of(row, output) + adapters->sums[row * adapters->stride + output];
                });
            } else {
                write_all(tile, [&](u32 row, u32 output) { return sum_of(row, output); });
            }
        }
    }
};

// What the warps of adapters do.
template <int COLUMNS>
__device__ void add(const Block<COLUMNS>& block, Adapters adapters) {
    const u32 thread = threadIdx.x - THREADS, threads = ADAPTED_THREADS - THREADS;
    adapters.begin(block.p, thread, threads, blockIdx.x * block.outputs, block.outputs);
    meet_adapters();
    if (thread == 0) adapters.copy_b();
    if (thread < 32) return;
    wait_for_previous();
    adapters.stage_h(block.p.rows, thread - 32, threads - 32);
    meet_expanders();
    adapters.expand(thread / 32 - 1);
    tell_added();
}

template <int COLUMNS, bool ADAPTED>
__device__ void gemm(const GemmStreamParams& p) {
    extern __shared__ unsigned char unaligned[];
    unsigned char* shared = unaligned + (0u - shared_address(unaligned)) % 1024;
    const Block<COLUMNS> block(p, shared_address(shared));
    const Adapters adapters(p, shared);
    if (threadIdx.x == 0) {
        block.init_barriers();
        if (ADAPTED) adapters.init_barriers();
        show_barriers();
    }
    __syncthreads();
    if (threadIdx.x == WARPS * 32) block.copy_weight();
    if (threadIdx.x == (WARPS + 1) * 32) {
        if (ADAPTED) {
            hear(p.adapters.told);
        } else {
            wait_for_previous();
        }
        block.copy_x();
    }
    if (ADAPTED && threadIdx.x >= THREADS) add(block, adapters);
    if (threadIdx.x >= WARPS * 32) return;
    Warp<COLUMNS>(block, reinterpret_cast<float*>(shared + p.sums)).run(ADAPTED ? &adapters : nullptr);
}

// By rows of x; with adapters a block has one tile.
#define GEMM_STREAM(NAME, COLUMNS, ADAPTED)                                             \
    extern "C" __global__ void __launch_bounds__(ADAPTED ? ADAPTED_THREADS : THREADS, 1) \
        NAME(const __grid_constant__ GemmStreamParams p) {                              \
        gemm<COLUMNS, ADAPTED>(p);                                                      \
    }

GEMM_STREAM(gemm_stream_8, 1, false)
GEMM_STREAM(gemm_stream_16, 2, false)
GEMM_STREAM(gemm_adapted_8, 1, true)
GEMM_STREAM(gemm_adapted_16, 2, true)
