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
// shrinks x for it, x may be there before that has ended. Norms before and behind are shared by products
// (factors.cuh): one warp finds the factors of x meanwhile.
// The outputs are the left operand's rows and the rows of x the right one's columns. As many warps as
// have all outputs of the tile are a team. Teams have stages of the ring of their own, so that what one
// waits for in a stage, to load and to multiply, costs the others no time: a full ring is used up
// several times faster than memory fills it. Sums are added up in a fixed order. What is between the
// last product of a block and its end is time in which nothing comes from memory to its
// multiprocessor: so each thread adds up and writes four results at once.
#pragma once

#include "adapters.cuh"
#include "factors.cuh"

constexpr int WARPS = 8;  // that multiply
constexpr u32 OUTPUTS = 64, THREADS = (WARPS + 3) * 32;
constexpr u32 STRIDE = OUTPUTS + 4;  // of a row of sums of so many outputs: parts the banks
constexpr u32 STEP = 16;             // inputs of one product
constexpr u32 STEPS_OF_BOX = BOX_WIDTH / STEP;
constexpr u32 STAGES_MAX = 16;
constexpr u32 FACTORS = 384;  // where they are in shared memory, behind barriers
constexpr u32 SHRUNK = 936;   // where a barrier is, behind those of adapters

// With adapters: a warp that copies their B, and those that multiply it.
constexpr u32 ADAPTED_THREADS = THREADS + (1 + EXPANDERS) * 32;

// Meets the warps that multiply, not those that copy.
__device__ inline void meet_warps() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// Tells the warps that multiply what adapters add, and has those wait for it.
__device__ inline void tell_added() { asm volatile("bar.arrive 2, 384;" ::: "memory"); }
__device__ inline void await_added() { asm volatile("bar.sync 2, 384;" ::: "memory"); }

// Tells one warp, or those that multiply, that x is there, and has it wait for that.
template <u32 COUNT>
__device__ inline void tell_x() { asm volatile("bar.arrive 6, %0;" ::"n"(COUNT + 32) : "memory"); }
template <u32 COUNT>
__device__ inline void await_x() { asm volatile("bar.sync 6, %0;" ::"n"(COUNT + 32) : "memory"); }

// Tells the warps that multiply the factors of x, and has those wait for them.
__device__ inline void tell_factors() { asm volatile("bar.arrive 5, 288;" ::: "memory"); }
__device__ inline void await_factors() { asm volatile("bar.sync 5, 288;" ::: "memory"); }

// Tells the warp that copies B what is to be copied, and has it wait for that.
__device__ inline void tell_pieces() { asm volatile("bar.arrive 3, 160;" ::: "memory"); }
__device__ inline void await_pieces() { asm volatile("bar.sync 3, 160;" ::: "memory"); }

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
    u32 first_chunk = 0, chunks;  // of the inputs: a chunk is what a stage holds
    u32 first_tile, tiles = 1;    // of this block

    __device__ Block(const GemmStreamParams& p, u32 shared) : p(p), barriers(shared) {
        ring = shared + p.ring;
        weight_bytes = p.boxes * p.tile * BOX_ROW_BYTES;
        x_bytes = p.boxes * ROWS * BOX_ROW_BYTES;
        chunks = p.chunks, first_tile = blockIdx.x;
        if (p.splits > 1) {
            first_tile = blockIdx.x / p.splits, first_chunk = chunks * split() / p.splits;
            chunks = chunks * (split() + 1) / p.splits - first_chunk;
        }
        if (p.tiles > apart()) tiles = (p.tiles - first_tile + apart() - 1) / apart();
    }

    // Of the inputs, this block's; and from one of its tiles to the next. To divide takes long, and
    // weights are not asked for meanwhile.
    __device__ u32 split() const { return p.splits > 1 ? blockIdx.x % p.splits : 0; }
    __device__ u32 apart() const { return p.splits > 1 ? gridDim.x / p.splits : gridDim.x; }

    // Of a tile, of one part.
    __device__ u32 outputs() const { return p.tile >> (p.parts == 2); }

    // Of a stage: whether the weight and x have landed, and whether both were used.
    __device__ u32 weight_landed(u32 stage) const { return barriers + stage * 8; }
    __device__ u32 x_landed(u32 stage) const { return weight_landed(STAGES_MAX + stage); }
    __device__ u32 used(u32 stage) const { return weight_landed(2 * STAGES_MAX + stage); }

    // Whether what adapters shrink is.
    __device__ u32 shrunk() const { return barriers + SHRUNK; }

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
    template <bool ADAPTED>
    __device__ void copy_weight() const {
        Item item = first(), landing = first();
        bool alone = false;  // whether nobody who is waited for waits for memory
        for (u32 i = 0, landed = 0; i < tiles * chunks; i++, advance(item)) {
            alone = alone || is_over(ADAPTED ? shrunk() : x_landed(0), 0);
            for (; i - landed >= (alone ? p.flight : p.flight_beside); landed++, advance(landing)) {
                wait_phase(weight_landed(landing.stage), landing.round % 2);
            }
            wait_until_used(item);
            announce(weight_landed(item.stage), weight_bytes);
            copy_boxes_once(weight_of(item.stage), p.weight, item.tile * outputs(),
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

// Turns sums into results, a thread four that follow each other at a time.
template <int COLUMNS, u32 TEAMS_MAX>
struct Results {
    static constexpr u32 ROWS = COLUMNS * 8;
    typedef ::Residual<(COLUMNS + 1) / 2> Residual;

    const Block<COLUMNS>& block;
    unsigned char* shared;

    // [teams, 64s of a tile's outputs, ROWS, STRIDE]; and factors of rows.
    __device__ float* sums() const { return reinterpret_cast<float*>(shared + block.p.sums); }
    __device__ float* factors() const { return reinterpret_cast<float*>(shared + FACTORS); }

    // Of a row, in threads: a power of two.
    __device__ u32 shift() const { return 32 - __clz(block.outputs() / 4 - 1); }

    // Adds up what the teams have.
    __device__ void add_up(float (&sum)[4], u32 row, u32 output) const {
        const float* first = sums() + (output / OUTPUTS * ROWS + row) * STRIDE + output % OUTPUTS;
#pragma unroll
        for (u32 i = 0; i < TEAMS_MAX; i++) {
            if (i < block.p.teams) add(sum, first + i * block.p.team * ROWS * STRIDE);
        }
    }

    template <class From>
    __device__ static void add(float (&sum)[4], const From* from) {
        float more[4];
        load(more, from);
#pragma unroll
        for (int n = 0; n < 4; n++) sum[n] += more[n];
    }

    __device__ static void scale(float (&sum)[4], float factor) {
#pragma unroll
        for (int n = 0; n < 4; n++) sum[n] *= factor;
    }

    __device__ void write(u32 row, u32 output, float (&sum)[4]) const {
        const u32 at = (block.split() * block.p.rows + row) * block.p.outputs + output;
        block.p.full ? write<float>(at, output, sum) : write<Element>(at, output, sum);
    }

    // Or what there is of them.
    template <class Out>
    __device__ void write(u32 at, u32 output, float (&sum)[4]) const {
        const GemmStreamParams& p = block.p;
        Out* to = static_cast<Out*>(p.out) + at;
        const Out* bias = block.split() == 0 ? static_cast<const Out*>(p.bias) : nullptr;
        if (p.outputs % 4 == 0) {
            if (bias) add(sum, bias + output);
            return store(to, sum);
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            if (output + n >= p.outputs) continue;
            from_f32(to[n], sum[n] + (bias ? to_f32(bias[output + n]) : 0.0f));
        }
    }

    // Writes a tile, of which `result` adds up four results. A block does this once: to bring code that
    // is repeated takes longer than to repeat it.
    template <class Result>
    __device__ void write_all(u32 tile, Result result) const {
        const GemmStreamParams& p = block.p;
        const u32 first = tile * block.outputs(), outputs = min(block.outputs(), p.outputs - first);
        const u32 shift = this->shift();
#pragma unroll 1
        for (u32 i = threadIdx.x; i < p.rows << shift; i += WARPS * 32) {
            const u32 row = i >> shift, output = (i - (row << shift)) * 4;
            if (output >= outputs) continue;
            const float factor = p.factors.squares ? factors()[row] : 1.0f;
            float sum[4] = {};
            result(sum, row, output);
            scale(sum, factor);
            if (p.parts == 2) {
                float up[4] = {};
                result(up, row, block.outputs() + output);
                scale(up, factor);
#pragma unroll
                for (int n = 0; n < 4; n++) sum[n] = silu(sum[n]) * up[n];
            }
            write(row, first + output, sum);
        }
    }

    // What a thread has in a round where the residual stream takes up a tile of no more than 64 outputs.
    struct Place {
        u32 row, output;
        bool exists;
    };

    __device__ Place place(u32 round) const {
        const u32 i = round * WARPS * 32 + threadIdx.x, row = i >> shift();
        const u32 output = (i - (row << shift())) * 4, first = block.first_tile * block.outputs();
        const bool exists = output < min(block.outputs(), block.p.outputs - first);
        return {row, first + output, row < block.p.rows && exists};
    }

    __device__ void fetch_residual(Residual& residual) const {
        const TakenUpParams& p = block.p.taken_up;
#pragma unroll
        for (u32 round = 0; round < Residual::ROUNDS; round++) {
            const Place at = place(round);
            if (at.exists) residual.fetch(round, p.residual + at.row * block.p.outputs + at.output);
        }
        if (place(0).exists) load(residual.weight, p.weight + place(0).output);
    }

    // Has the residual stream take up a block's only tile.
    template <class Result>
    __device__ void take_up(const Residual& residual, Result result) const {
        const GemmStreamParams& p = block.p;
#pragma unroll
        for (u32 round = 0; round < Residual::ROUNDS; round++) {
            const Place at = place(round);
            float squares = 0.0f;
            if (at.exists) {
                float sum[4] = {};
                result(sum, at.row, at.output - block.first_tile * block.outputs());
                const u32 to = at.row * p.outputs + at.output;
                squares = residual.take_up(round, sum, p.taken_up.residual + to);
                store(static_cast<Element*>(p.out) + to, sum);
            }
#pragma unroll 1
            for (u32 lanes = 1 << shift() >> 1; lanes > 0; lanes /= 2) {
                squares += __shfl_xor_sync(~0u, squares, lanes);
            }
            if (at.exists && at.output == block.first_tile * block.outputs()) {
                p.taken_up.squares[at.row * SQUARES_MAX + block.first_tile] = squares;
            }
        }
    }
};

// Goes through a block's tiles.
template <class Products, bool ADAPTED>
__device__ void multiply_tiles(const typename Products::Block& block, unsigned char* shared) {
    Products products(block);
    Turn turn = {products.team, 0, products.team};
    typedef ::Results<Products::COLUMNS, Products::TEAMS_MAX> Results;
    const Results results = {block, shared};
    const bool takes_up = block.p.taken_up.residual;
    for (u32 tile = block.first_tile, i = 0; i < block.tiles; i++, tile += block.apart()) {
        products.clear();
        typename Results::Residual residual;
        if (takes_up) await_x<256>();
        if (takes_up && Products::HAVE_ROOM) results.fetch_residual(residual);
        products.multiply_tile(turn);
        if (takes_up && !Products::HAVE_ROOM) results.fetch_residual(residual);
        meet_warps();
        products.keep(results.sums());
        meet_warps();
        if (block.p.factors.squares && i == 0) await_factors();
        if constexpr (ADAPTED) {
            await_added();
            const Adapters adapters(block.p, shared);
            auto result = [&](float(&sum)[4], u32 row, u32 output) {
                results.add_up(sum, row, output);
                const u32 column = output - adapters.first;
                if (column >= adapters.columns) return;
                results.add(sum, adapters.sums + row * adapters.stride + column);
            };
            takes_up ? results.take_up(residual, result) : results.write_all(tile, result);
        } else {
            auto result = [&](float(&sum)[4], u32 row, u32 output) { results.add_up(sum, row, output); };
            takes_up ? results.take_up(residual, result) : results.write_all(tile, result);
        }
    }
}

// What the warps of adapters do. Where they shrink, A is on its way before B is looked for, and what is
// known of B is looked up while other blocks shrink.
template <bool SHRINKS, int COLUMNS>
__device__ void add(const Block<COLUMNS>& block, unsigned char* shared) {
    const Adapters adapters(block.p, shared);
    const OwnShrink shrink(block.p, shared);
    const bool shrinks = SHRINKS && block.p.adapters.pool;
    const u32 warp = warp_of_block() - THREADS / 32;
    if (warp == 0) {
        if (shrinks && elect_lane()) shrink.copy_a();
        __syncwarp();
        await_pieces();
        if (elect_lane()) adapters.copy_b();
        return;
    }
    const u32 thread = threadIdx.x - THREADS - 32, threads = EXPANDERS * 32;
    // With more rows, the next kernels are better in later.
    if (COLUMNS == 1) let_next_in();
    adapters.begin(block.p, thread, threads, block.first_tile * block.outputs(), block.outputs());
    tell_pieces();
    meet_expanders();
    if (shrinks) {
        wait_for_previous();
        shrink.multiply_own(warp - 1);
    }
    u32 slice = warp - 1;
    do {
        adapters.look_up(slice);
        if (slice < EXPANDERS) {
            shrinks ? shrink.await(slice) : wait_for_previous();
            if (thread == 0) arrive(block.shrunk());
            adapters.stage_h(block.p.rows, thread, threads);
            meet_expanders();
            if (shrinks) shrink.leave(slice);
        }
    } while (adapters.expand(slice));
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
        if (ADAPTED) Adapters(p, shared).init_barriers(), init_barrier(block.shrunk(), 1);
        if (SHRINKS && p.adapters.pool) OwnShrink(p, shared).init_barriers();
        show_barriers();
    }
    if (warp == WARPS && elect_lane()) prefetch_map(p.weight);
    if (warp == WARPS + 1 && elect_lane()) prefetch_map(p.x);
    __syncthreads();
    if (warp == WARPS && elect_lane()) block.template copy_weight<ADAPTED>();
    if (warp == WARPS + 1) {
        if (elect_lane()) {
            if (ADAPTED && p.adapters.told) {
                hear(p.adapters.told);
            } else {
                wait_for_previous();
            }
        }
        __syncwarp();
        if (p.factors.squares) tell_x<32>();
        if (p.taken_up.residual) tell_x<256>();
        if (elect_lane()) {
            block.copy_x();
            if (ADAPTED && p.adapters.told) have_heard(p.adapters.told);
        }
    }
    if (warp == WARPS + 2 && p.factors.squares) {
        await_x<32>();
        float* factors = reinterpret_cast<float*>(shared + FACTORS);
        find_factors<Products::COLUMNS == 8 ? 16 : 8>(p.factors, p.rows, p.inputs, factors);
        tell_factors();
    }
    if (ADAPTED && warp >= THREADS / 32) add<SHRINKS>(block, shared);
    if (warp < WARPS) multiply_tiles<Products, ADAPTED>(block, shared);
}
