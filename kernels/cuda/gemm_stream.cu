// out = x weight^T (+ bias) for few rows of 16 bits, at the speed at which weights come from memory
// (from compute capability 9.0 on); or out = silu(x gate^T) * (x up^T), where the weight is both.
// There is a block a multiprocessor. It takes a tile of outputs and goes through the inputs once.
// Two threads keep a ring of boxes filled by bulk copies, one with the weight and one with x, and
// eight warps multiply what has landed. The weight waits for nobody: it fills the ring while the
// kernels before this one are still at work. Only so much of it is under way at a time, while they
// are even less, that those kernels' own loads do not queue behind it.
// What adapters add is computed beside it, by warps of their own (adapters.cuh); x may be there before
// the kernel ahead, which shrinks it, has ended.
// The outputs are the left operand's rows and the rows of x the right one's columns. A warp has up to
// 64 outputs of the tile: as many warps as have all of them are a team. Teams have stages of the ring
// of their own, so that what one waits for in a stage, to load and to multiply, costs the others no
// time: a full ring is used up several times faster than memory fills it. Sums are added up in a
// fixed order.
#include "adapters.cuh"

constexpr int WARPS = 8, UNITS = 4;  // that multiply; tiles of 16 outputs of each
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
        const u32 multipliers = (p.tile / 16 + UNITS - 1) / UNITS;
        for (u32 stage = 0; stage < p.stages; stage++) {
            init_barrier(weight_landed(stage), 1);
            init_barrier(x_landed(stage), 1);
            init_barrier(used(stage), multipliers);
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

// What a step multiplies: 16 inputs of some tiles of outputs, as the left operand has them, and of
// all rows of x, as the right one does.
template <int COUNT, int COLUMNS>
struct Operands {
    u32 weight[COUNT][4], x[COLUMNS][2];

    // From where the lane's parts of the first tile and of the first rows are.
    __device__ void load(u32 weight_at, u32 x_at) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) load_matrices(weight[i], weight_at + i * 16 * BOX_ROW_BYTES);
        if constexpr (COLUMNS == 1) {
            load_two_matrices(x[0], x_at);
        } else {
#pragma unroll
            for (int column = 0; column < COLUMNS; column += 2) {
                u32 four[4];
                load_matrices(four, x_at + column * 8 * BOX_ROW_BYTES);
                x[column][0] = four[0], x[column][1] = four[1];
                x[column + 1][0] = four[2], x[column + 1][1] = four[3];
            }
        }
    }
};

// The stages that one team takes.
struct Turn {
    u32 stage, round, chunk;
};

// One warp's sums: of `units` tiles of 16 outputs, or none.
template <int COLUMNS, bool ADAPTED>
struct Warp {
    static constexpr u32 ROWS = COLUMNS * 8;
    static constexpr u32 APART = STEP * sizeof(Element);  // steps in a row of a box

    const Block<COLUMNS>& block;
    u32 lane = threadIdx.x % 32, warp = warp_of_block(), team, unit, units;
    u32 weight_place, x_place;  // of what this lane loads first, in the boxes of a stage
    float sums[UNITS][COLUMNS][4];

    __device__ explicit Warp(const Block<COLUMNS>& block) : block(block) {
        const u32 most = block.p.tile / 16;
        team = warp / block.p.team, unit = warp % block.p.team * UNITS;
        units = team < block.p.teams && unit < most ? min(most - unit, static_cast<u32>(UNITS)) : 0;
        weight_place = place_in_box(unit * 16 + lane % 16, lane / 16);
        x_place = place_in_box(COLUMNS == 1 ? lane % 8 : lane / 16 * 8 + lane % 8, lane / 8 % 2);
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

    // The team's stages of a tile; `turn` is then at the first one of the next tile.
    template <int COUNT>
    __device__ void multiply_tile(Turn& turn) {
        const u32 teams = block.p.teams, stages = block.p.stages;
        for (; turn.chunk < block.chunks; turn.chunk += teams) {
            wait_phase(block.weight_landed(turn.stage), turn.round % 2);
            wait_phase(block.x_landed(turn.stage), turn.round % 2);
            const u32 weight = block.weight_of(turn.stage) + weight_place;
            const u32 x = block.x_of(turn.stage) + x_place;
            multiply<COUNT>(weight, x);
            __syncwarp();
            if (lane == 0) arrive(block.used(turn.stage));
            turn.stage += teams;
            if (turn.stage >= stages) turn.stage -= stages, turn.round++;
        }
        turn.chunk -= block.chunks;
    }

    // One warp's part of a stage: while a step is multiplied, the next one is loaded. Steps of a box
    // lie where its parts are swapped to.
    template <int COUNT>
    __device__ void multiply(u32 weight, u32 x) {
        const u32 boxes = block.p.boxes, weight_box = block.p.tile * BOX_ROW_BYTES;
        Operands<COUNT, COLUMNS> even, odd;
        even.load(weight, x);
        for (u32 box = 0; box < boxes; box++) {
#pragma unroll
            for (u32 step = 0; step < STEPS_OF_BOX; step += 2) {
                odd.load(weight ^ (step + 1) * APART, x ^ (step + 1) * APART);
                multiply_add_all(even);
                if (step + 2 < STEPS_OF_BOX) {
                    even.load(weight ^ (step + 2) * APART, x ^ (step + 2) * APART);
                } else if (box + 1 < boxes) {
                    weight += weight_box, x += ROWS * BOX_ROW_BYTES;
                    even.load(weight, x);
                }
                multiply_add_all(odd);
            }
        }
    }

    template <int COUNT>
    __device__ void multiply_add_all(const Operands<COUNT, COLUMNS>& operands) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                const u32(&x)[2] = operands.x[column];
                multiply_add(sums[i][column], operands.weight[i], x[0], x[1]);
            }
        }
    }

    __device__ void multiply_tile(Turn& turn) {
        switch (units) {
            case 1: return multiply_tile<1>(turn);
            case 2: return multiply_tile<2>(turn);
            case 3: return multiply_tile<3>(turn);
            case 4: return multiply_tile<4>(turn);
        }
    }

    // `all` is [WARPS, ROWS, STRIDE]: sums of all warps.
    __device__ void keep(float* all) const {
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
    __device__ float sum_of(const float* all, u32 row, u32 output) const {
        const float* first = all + (output / OUTPUTS * ROWS + row) * STRIDE + output % OUTPUTS;
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) {
            if (i < block.p.teams) sum += first[i * block.p.team * ROWS * STRIDE];
        }
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

    // Writes a tile of which `result` tells every sum, a warp a row; several are on their way at once.
    template <class Result>
    __device__ void write_all(u32 tile, Result result) const {
        constexpr u32 AT_ONCE = 4;
        const u32 first = tile * block.outputs, outputs = min(block.outputs, block.p.outputs - first);
        for (u32 row = warp; row < block.p.rows; row += WARPS) {
            for (u32 start = lane; start < outputs; start += AT_ONCE * 32) {
                float sums[AT_ONCE];
#pragma unroll
                for (u32 n = 0; n < AT_ONCE; n++) {
                    const u32 output = start + n * 32;
                    if (output >= outputs) continue;
                    sums[n] = result(row, output);
                    if (block.p.parts != 2) continue;
                    sums[n] = sums[n] / (1.0f + __expf(-sums[n])) * result(row, block.outputs + output);
                }
#pragma unroll
                for (u32 n = 0; n < AT_ONCE; n++) {
                    const u32 output = start + n * 32;
                    if (output < outputs) write(row, first + output, sums[n]);
                }
            }
        }
    }

    __device__ void run(unsigned char* shared) {
        Turn turn = {team, 0, team};
        for (u32 tile = blockIdx.x, i = 0; i < block.tiles; i++, tile += gridDim.x) {
            clear();
            multiply_tile(turn);
            float* all = reinterpret_cast<float*>(shared + block.p.sums);
            meet_warps();
            keep(all);
            meet_warps();
            if constexpr (ADAPTED) {
                await_added();
                const Adapters adapters(block.p, shared);
                write_all(tile, [&](u32 row, u32 output) {
                    return sum_of(all, row, output) + adapters.sums[row * adapters.stride + output];
                });
            } else {
                write_all(tile, [&](u32 row, u32 output) { return sum_of(all, row, output); });
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
    const u32 warp = warp_of_block() - THREADS / 32;
    if (warp == 0 && elect_lane()) adapters.copy_b();
    if (warp == 0) return;
    wait_for_previous();
    adapters.stage_h(block.p.rows, thread - 32, threads - 32);
    meet_expanders();
    adapters.expand(warp - 1);
    tell_added();
}

template <int COLUMNS, bool ADAPTED>
__device__ void gemm(const GemmStreamParams& p) {
    extern __shared__ unsigned char unaligned[];
    unsigned char* shared = unaligned + (0u - shared_address(unaligned)) % 1024;
    const Block<COLUMNS> block(p, shared_address(shared));
    const u32 warp = warp_of_block();
    if (warp == 0 && elect_lane()) {
        block.init_barriers();
        if (ADAPTED) Adapters(p, shared).init_barriers();
        show_barriers();
    }
    if (warp == WARPS && elect_lane()) prefetch_map(p.weight);
    if (warp == WARPS + 1 && elect_lane()) prefetch_map(p.x);
    __syncthreads();
    if (warp == WARPS && elect_lane()) block.copy_weight();
    if (warp == WARPS + 1 && elect_lane()) {
        if (ADAPTED && p.adapters.told) {
            hear(p.adapters.told);
        } else {
            wait_for_previous();
        }
        block.copy_x();
    }
    if (ADAPTED && warp >= THREADS / 32) add(block, Adapters(p, shared));
    if (warp < WARPS) Warp<COLUMNS, ADAPTED>(block).run(shared);
}

// By rows of x.
#define GEMM_STREAM(NAME, COLUMNS)                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)       \
        NAME(const __grid_constant__ GemmStreamParams p) {         \
        gemm<COLUMNS, false>(p);                                   \
    }

GEMM_STREAM(gemm_stream_8, 1)
GEMM_STREAM(gemm_stream_16, 2)
GEMM_STREAM(gemm_stream_32, 4)

// With adapters a block has one tile, and no more registers than leave room for the kernels that are
// to be ready beside it: attention, and where there are more rows, the next shrink.
#define GEMM_ADAPTED(NAME, COLUMNS, COUNT)                         \
    extern "C" __global__ void REGISTERS(COUNT, ADAPTED_THREADS)   \
        NAME(const __grid_constant__ GemmStreamParams p) {         \
        gemm<COLUMNS, true>(p);                                    \
    }

GEMM_ADAPTED(gemm_adapted_8, 1, 72)
GEMM_ADAPTED(gemm_adapted_16, 2, 88)
GEMM_ADAPTED(gemm_adapted_32, 4, 128)
