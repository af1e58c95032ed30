// What products of few rows of 16 bits share (gemm_stream.cu, gemm_groups.cu), which take weights at the
// speed at which they come from memory (from compute capability 9.0 on): out = x weight^T (+ bias), or
// out = silu(x gate^T) * (x up^T), where the weight is both.
// There is a block a multiprocessor. It takes a tile of outputs and goes through the inputs once. Of
// small weights, several blocks share a tile, each with a split of the inputs: narrow tiles would fill
// the ring with x, which all of them bring.
// Two threads keep a ring of boxes filled by bulk copies, one with the weight and one with x, and
// eight warps multiply what has landed. The weight waits for nobody: it fills the ring while the
// kernels before this one are still at work. Only so much of it is under way at a time, while they
// are even less, that those kernels' own loads do not queue behind it.
// What adapters add is computed beside it, by warps of their own (adapters.cuh). Where a kernel ahead
// shrinks x for it, x may be there before that has ended.
// The outputs are the left operand's rows and the rows of x the right one's columns. As many warps as
// have all outputs of the tile are a team. Teams have stages of the ring of their own, so that what one
// waits for in a stage, to load and to multiply, costs the others no time: a full ring is used up
// several times faster than memory fills it. Sums are added up in a fixed order. What is between the
// last product of a block and its end is time in which nothing comes from memory to its
// multiprocessor: so each thread adds up and writes four results at once.
#pragma once

#include "adapters.cuh"

constexpr int WARPS = 8;  // that multiply
constexpr u32 OUTPUTS = 64, THREADS = (WARPS + 2) * 32;
constexpr u32 STRIDE = OUTPUTS + 4;  // of a row of sums of so many outputs: parts the banks
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

// Meets the warps of adapters; or tells the one that copies what is to be copied, and does not wait.
__device__ inline void meet_adapters() { asm volatile("bar.sync 3, 160;" ::: "memory"); }
__device__ inline void tell_pieces() { asm volatile("bar.arrive 3, 160;" ::: "memory"); }

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
    u32 first_chunk, chunks;  // of the inputs: a chunk is what a stage holds
    u32 outputs;              // of a tile
    u32 first_tile, tiles;    // of this block

    __device__ Block(const GemmStreamParams& p, u32 shared) : p(p), barriers(shared) {
        ring = shared + p.ring;
        weight_bytes = p.boxes * p.tile * BOX_ROW_BYTES;
        x_bytes = p.boxes * ROWS * BOX_ROW_BYTES;
        chunks = (p.inputs / BOX_WIDTH + p.boxes - 1) / p.boxes;
        first_chunk = chunks * split() / p.splits;
        chunks = chunks * (split() + 1) / p.splits - first_chunk;
        outputs = p.tile / p.parts, first_tile = blockIdx.x / p.splits;
        tiles = ((p.outputs + outputs - 1) / outputs + apart() - 1 - first_tile) / apart();
    }

    // Of the inputs, this block's; and from one of its tiles to the next.
    __device__ u32 split() const { return blockIdx.x % p.splits; }
    __device__ u32 apart() const { return gridDim.x / p.splits; }

    // Of a stage: whether the weight and x have landed, and whether both were used.
    __device__ u32 weight_landed(u32 stage) const { return barriers + stage * 8; }
    __device__ u32 x_landed(u32 stage) const { return weight_landed(STAGES_MAX + stage); }
    __device__ u32 used(u32 stage) const { return weight_landed(2 * STAGES_MAX + stage); }

    __device__ u32 weight_of(u32 stage) const { return ring + stage * (weight_bytes + x_bytes); }
    __device__ u32 x_of(u32 stage) const { return weight_of(stage) + weight_bytes; }

    __device__ Item first() const { return {0, 0, 0, first_tile}; }

    __device__ void advance(Item& item) const {
        if (++item.stage == p.stages) item.stage = 0, item.round++;
        if (++item.chunk == chunks) item.chunk = 0, item.tile += apart();
    }

    // `multipliers` are a team's warps.
    __device__ void init_barriers(u32 multipliers) const {
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
            copy_boxes_once(weight_of(item.stage), p.weight, item.tile * outputs,
                            (first_chunk + item.chunk) * p.boxes, weight_landed(item.stage));
        }
    }

    // Another thread's, once x is there.
    __device__ void copy_x() const {
        Item item = first();
        for (u32 i = 0; i < tiles * chunks; i++, advance(item)) {
            wait_until_used(item);
            announce(x_landed(item.stage), x_bytes);
            copy_boxes(x_of(item.stage), p.x, 0, (first_chunk + item.chunk) * p.boxes,
                       x_landed(item.stage));
        }
    }
};

// The stages that one team takes.
struct Turn {
    u32 stage, round, chunk;
};

template <int TILES, int COLUMNS>
__device__ inline void clear_sums(float (&sums)[TILES][COLUMNS][4]) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[tile][column][i] = 0.0f;
        }
    }
}

// What a lane has of 16 outputs and all rows, for `Results`. `to` is where the first of them goes.
template <int COLUMNS>
__device__ inline void keep_sums(float* to, const float (&sums)[COLUMNS][4]) {
    const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[(column * 8 + t * 2 + i % 2) * STRIDE + i / 2 * 8 + g] = sums[column][i];
        }
    }
}

// Turns sums into results. `all` is [teams, 64s of a tile's outputs, ROWS, STRIDE].
template <int COLUMNS, u32 TEAMS_MAX>
struct Results {
    static constexpr u32 ROWS = COLUMNS * 8;

    const Block<COLUMNS>& block;
    const float* all;

    // Adds up what the teams have of four results that follow each other.
    __device__ void add_up(float (&sum)[4], u32 row, u32 output) const {
        const float* first = all + (output / OUTPUTS * ROWS + row) * STRIDE + output % OUTPUTS;
#pragma unroll
        for (u32 i = 0; i < TEAMS_MAX; i++) {
            if (i < block.p.teams) add(sum, first + i * block.p.team * ROWS * STRIDE);
        }
    }

    __device__ static void add(float (&sum)[4], const float* from) {
        float more[4];
        load(more, from);
#pragma unroll
        for (int n = 0; n < 4; n++) sum[n] += more[n];
    }

    // Four results of a row, or what there is of them.
    template <class Out>
    __device__ void write(u32 row, u32 output, float (&sum)[4]) const {
        const GemmStreamParams& p = block.p;
        const u32 count = min(4u, p.outputs - output);
        const u64 out_row = block.split() * p.rows + row;
        Out* to = static_cast<Out*>(p.out) + out_row * p.outputs + output;
        if (p.bias && block.split() == 0) {
            const Out* bias = static_cast<const Out*>(p.bias) + output;
            for (u32 n = 0; n < count; n++) sum[n] += to_f32(bias[n]);
        }
        if (p.outputs % 4 == 0) return store(to, sum);
        for (u32 n = 0; n < count; n++) from_f32(to[n], sum[n]);
    }

    // Writes a tile, of which `result` adds up four results, a thread as many at a time.
    template <class Out, class Result>
    __device__ void write_all(u32 tile, Result result) const {
        const u32 first = tile * block.outputs, outputs = min(block.outputs, block.p.outputs - first);
        const u32 shift = 32 - __clz(block.outputs / 4 - 1);  // of a row, in lanes: a power of two
        for (u32 i = threadIdx.x; i < block.p.rows << shift; i += WARPS * 32) {
            const u32 row = i >> shift, output = (i - (row << shift)) * 4;
            if (output >= outputs) continue;
            float sum[4] = {};
            result(sum, row, output);
            if (block.p.parts == 2) {
                float up[4] = {};
                result(up, row, block.outputs + output);
#pragma unroll
                for (int n = 0; n < 4; n++) sum[n] = silu(sum[n]) * up[n];
            }
            write<Out>(row, first + output, sum);
        }
    }

    template <class Result>
    __device__ void write_all(u32 tile, Result result) const {
        block.p.full ? write_all<float>(tile, result) : write_all<Element>(tile, result);
    }
};

// Goes through a block's tiles.
template <class Products, bool ADAPTED>
__device__ void multiply_tiles(const typename Products::Block& block, unsigned char* shared) {
    Products products(block);
    Turn turn = {products.team, 0, products.team};
    float* all = reinterpret_cast<float*>(shared + block.p.sums);
    const Results<Products::COLUMNS, Products::TEAMS_MAX> results = {block, all};
    for (u32 tile = block.first_tile, i = 0; i < block.tiles; i++, tile += block.apart()) {
        products.clear();
        products.multiply_tile(turn);
        meet_warps();
        products.keep(all);
        meet_warps();
        if constexpr (ADAPTED) {
            await_added();
            const Adapters adapters(block.p, shared);
            results.write_all(tile, [&](float(&sum)[4], u32 row, u32 output) {
                results.add_up(sum, row, output);
                const u32 column = output - adapters.first;
                if (column >= adapters.columns) return;
                results.add(sum, adapters.sums + row * adapters.stride + column);
            });
        } else {
            results.write_all(tile, [&](float(&sum)[4], u32 row, u32 output) {
                results.add_up(sum, row, output);
            });
        }
    }
}

// What the warps of adapters do where another kernel shrinks.
template <int COLUMNS>
__device__ void add(const Block<COLUMNS>& block, const Adapters& adapters) {
    const u32 thread = threadIdx.x - THREADS, threads = ADAPTED_THREADS - THREADS;
    adapters.begin(block.p, thread, threads, block.first_tile * block.outputs, block.outputs);
    meet_adapters();
    const u32 warp = warp_of_block() - THREADS / 32;
    if (warp == 0 && elect_lane()) adapters.copy_b();
    if (warp == 0) return;
    adapters.look_up(warp - 1);
    wait_for_previous();
    adapters.stage_h(block.p.rows, thread - 32, threads - 32);
    meet_expanders();
    adapters.expand(warp - 1);
    tell_added();
}

// And where they shrink: A is on its way before B is looked for, and what is known of B is looked up
// while other blocks shrink.
template <int COLUMNS>
__device__ void shrink_and_add(const Block<COLUMNS>& block, const Adapters& adapters,
                               const OwnShrink& shrink) {
    const u32 warp = warp_of_block() - THREADS / 32;
    if (warp == 0) {
        if (elect_lane()) shrink.copy_a();
        __syncwarp();
        meet_adapters();
        if (elect_lane()) adapters.copy_b();
        return;
    }
    const u32 thread = threadIdx.x - THREADS - 32, threads = EXPANDERS * 32;
    adapters.begin(block.p, thread, threads, block.first_tile * block.outputs, block.outputs);
    tell_pieces();
    meet_expanders();
    wait_for_previous();
    shrink.multiply_own(warp - 1);
    adapters.look_up(warp - 1);
    shrink.await(warp - 1);
    adapters.stage_h(block.p.rows, thread, threads);
    meet_expanders();
    adapters.expand(warp - 1);
    tell_added();
}

// `SHRINKS` if the product may shrink for its adapters.
template <class Products, bool ADAPTED, bool SHRINKS = false>
__device__ void gemm(const GemmStreamParams& p) {
    extern __shared__ unsigned char unaligned[];
    unsigned char* shared = unaligned + (0u - shared_address(unaligned)) % 1024;
    const typename Products::Block block(p, shared_address(shared));
    const u32 warp = warp_of_block();
    if (warp == 0 && elect_lane()) {
        block.init_barriers(Products::multipliers(p));
        if (ADAPTED) Adapters(p, shared).init_barriers();
        if (SHRINKS && p.adapters.pool) OwnShrink(p, shared).init_barriers();
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
    if (ADAPTED && warp >= THREADS / 32) {
        const Adapters adapters(p, shared);
        if (SHRINKS && p.adapters.pool) {
            shrink_and_add(block, adapters, OwnShrink(p, shared));
        } else {
            add(block, adapters);
        }
    }
    if (warp < WARPS) multiply_tiles<Products, ADAPTED>(block, shared);
}
