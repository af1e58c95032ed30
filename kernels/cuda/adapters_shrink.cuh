// How a product of few rows shrinks for its own adapters, h = x A^T: A comes through a ring of bulk
// copies, before x is there, and the warps that will multiply B multiply it.
// Work is cut into pieces, of which each block takes an equal share; what is left by blocks that have no
// place for long, others take, so that nobody waits for one of them. Splits of the inputs go to h apart,
// [splits, rows, h_stride], and are added up in order by whoever reads them.
#pragma once

#include "bulk.cuh"
#include "shrink_sums.cuh"

constexpr u32 EXPANDERS = 4;  // warps that multiply
constexpr u32 A_RANKS = 8;    // of a piece, at most, and its rows of x
constexpr u32 A_WIDTH = 512;  // inputs that a slot holds
constexpr u32 A_ROW_BYTES = A_WIDTH * sizeof(Element) + 64;  // parts the banks
constexpr u32 A_SLOTS = 4;    // of the ring, and pieces that are known at once
constexpr u32 A_STEP = 32;    // inputs that a warp multiplies at once
constexpr u32 A_STEPS = A_WIDTH / EXPANDERS / A_STEP;

// Meets the warps that multiply.
__device__ inline void meet_expanders() { asm volatile("bar.sync 4, 128;" ::: "memory"); }

// Some lora ranks of one A, some of its inputs, and the rows of x that they are multiplied with.
struct ShrinkPiece {
    const Element* a;  // of the first rank, the first of these inputs
    u32 apart;         // elements from one rank's to the next one's
    u32 inputs, ranks;
    u32 rows;  // none behind the last piece
    u32 x, h;  // where the first row's inputs and its results start
};

static_assert(A_SLOTS * sizeof(ShrinkPiece) == 128, "kernels/src/cuda/beside.rs has room for so much");

// What the warps of one block do, between them.
struct OwnShrink {
    const AdaptersParams& p;
    u32 inputs, rows;     // of the product
    u32 ring, barriers;   // shared addresses
    ShrinkPiece* known;   // [A_SLOTS]
    float* shares;        // [2, EXPANDERS, rows, ranks]: of two pieces in turn
    u32 items;            // pieces of all blocks

    __device__ OwnShrink(const GemmStreamParams& gemm, unsigned char* shared)
        : p(gemm.adapters), inputs(gemm.inputs), rows(gemm.rows) {
        ring = shared_address(shared + p.ring), barriers = shared_address(shared) + 832;
        known = reinterpret_cast<ShrinkPiece*>(shared + p.known);
        shares = reinterpret_cast<float*>(known + A_SLOTS);
        items = *p.segment_count * p.shrink_tiles * p.splits;
    }

    __device__ u32 landed(u32 slot) const { return barriers + slot * 8; }
    __device__ u32 used(u32 slot) const { return landed(A_SLOTS + slot); }
    __device__ u32 is_known(u32 piece) const { return landed(2 * A_SLOTS + piece % A_SLOTS); }

    __device__ void init_barriers() const {
        for (u32 slot = 0; slot < A_SLOTS; slot++) {
            init_barrier(landed(slot), 1);
            init_barrier(used(slot), EXPANDERS);
            init_barrier(is_known(slot), 1);
        }
    }

    __device__ ShrinkPiece look_up(u32 item) const {
        const u32 each = p.shrink_tiles * p.splits, split = item % p.splits;
        const Segment segment = p.segments[item / each];
        const u32 at = segment.slot * p.shrink_tiles + item % each / p.splits;
        const ShrinkTile tile = p.shrink[at];
        const u32 share = (tile.inputs + p.splits * A_STEP - 1) / (p.splits * A_STEP) * A_STEP;
        const u32 first = min(split * share, tile.inputs);
        return {tile.a + first, tile.inputs, min(share, tile.inputs - first), tile.rows, segment.rows,
                segment.row * inputs + tile.input + first,
                (split * rows + segment.row) * p.h_stride + tile.h};
    }

    // One thread's work: says what the pieces are, and brings their A.
    __device__ void copy_a() const {
        const u32 share = (items + gridDim.x - 1) / gridDim.x;
        u32 slots = 0, pieces = 0;
        while (items > 0) {
            const u32 first = take(p.pool) * share;
            for (u32 item = first; item < min(first + share, items); item++, pieces++) {
                copy(look_up(item), pieces, slots);
            }
            if (!are_left(p.pool, (items + share - 1) / share)) break;
        }
        wait_for_slot(slots);
        tell(ShrinkPiece{}, pieces);
        for (u32 n = 0; n < A_SLOTS; n++) wait_for_slot(slots + n);
    }

    __device__ void wait_for_slot(u32 n) const {
        if (n >= A_SLOTS) wait_phase(used(n % A_SLOTS), (n / A_SLOTS - 1) % 2);
    }

    // A piece has a slot at least: so what was known of the one so many before is no longer needed.
    __device__ void tell(const ShrinkPiece& piece, u32 n) const {
        known[n % A_SLOTS] = piece;
        arrive(is_known(n));
    }

    __device__ void copy(const ShrinkPiece& piece, u32 n, u32& slots) const {
        wait_for_slot(slots);
        tell(piece, n);
        const Element* from = piece.a;
        for (u32 at = 0; at < max(piece.inputs, 1u); at += A_WIDTH, from += A_WIDTH, slots++) {
            const u32 slot = slots % A_SLOTS, to = ring + slot * A_RANKS * A_ROW_BYTES;
            const u32 bytes = min(piece.inputs - at, A_WIDTH) * sizeof(Element);
            wait_for_slot(slots);
            announce(landed(slot), bytes * piece.ranks);
            copy_ranks(to, from, piece, bytes, landed(slot));
        }
    }

    __device__ static void copy_ranks(u32 to, const Element* from, const ShrinkPiece& piece, u32 bytes,
                                      u32 barrier) {
#pragma unroll
        for (u32 rank = 0; rank < A_RANKS; rank++) {
            if (rank < piece.ranks) {
                copy_bytes_once(to + rank * A_ROW_BYTES, from + rank * piece.apart, bytes, barrier);
            }
        }
    }

    // By all warps that multiply, once x is there: all pieces that `copy_a` tells of.
    __device__ void multiply_own(u32 warp) const {
        u32 slots = 0, n = 0;
        for (;; n++) {
            wait_phase(is_known(n), n / A_SLOTS % 2);
            const ShrinkPiece piece = known[n % A_SLOTS];
            if (piece.rows == 0) break;
            write(piece, multiply(piece, warp, slots), warp, n);
        }
        meet_expanders();
        if (n > 0 && warp == 0 && elect_lane()) give(p.pool, n);
    }

    // By the same: waits until all blocks have multiplied theirs.
    __device__ void await(u32 warp) const {
        if (items > 0 && warp == 0 && elect_lane()) await_all(p.pool, items);
        meet_expanders();
    }

    __device__ void leave(u32 warp) const {
        if (items > 0 && warp == 0 && elect_lane()) ::leave(p.pool);
    }

    // What lane 4 g + t multiplies of A and x: of every 32 inputs those from 8 t on, of lora rank g and
    // of row g. A warp has as many inputs of a slot as the others, which follow each other.
    __device__ ShrinkSums multiply(const ShrinkPiece& piece, u32 warp, u32& slots) const {
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const u32 own = warp * A_STEPS * A_STEP + t * 8;
        const u32 end = g < piece.rows ? piece.inputs : 0, a_end = g < piece.ranks ? piece.inputs : 0;
        const Element* row = p.x + piece.x + g * inputs;
        auto fetch_x = [&](u32 at) { return at < end ? fetch<8>(row + at).raw.words : uint4{}; };
        uint4 x[A_STEPS];
#pragma unroll
        for (u32 i = 0; i < A_STEPS; i++) x[i] = fetch_x(own + i * A_STEP);
        ShrinkSums sums;
        for (u32 at = own; at - own < max(piece.inputs, 1u); at += A_WIDTH, slots++) {
            const u32 slot = slots % A_SLOTS;
            const u32 a = ring + (slot * A_RANKS + g) * A_ROW_BYTES + own * sizeof(Element);
            wait_phase(landed(slot), slots / A_SLOTS % 2);
#pragma unroll
            for (u32 i = 0; i < A_STEPS; i++) {
                const u32 now = at + i * A_STEP;
                sums.add(load_16(a + i * A_STEP * sizeof(Element), now < a_end), x[i]);
                x[i] = fetch_x(now + A_WIDTH);
            }
            __syncwarp();
            if (threadIdx.x % 32 == 0) arrive(used(slot));
        }
        return sums;
    }

    // Adds up what the warps have.
    __device__ void write(const ShrinkPiece& piece, const ShrinkSums& sums, u32 warp, u32 n) const {
        constexpr u32 SHARE = A_RANKS * A_RANKS;
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        float* all = shares + n % 2 * EXPANDERS * SHARE;
        float* own = all + warp * SHARE + 2 * t * A_RANKS + g;
        own[0] = sums.sum(0), own[A_RANKS] = sums.sum(1);
        meet_expanders();
        const u32 at = warp * 32 + threadIdx.x % 32, row = at / A_RANKS, rank = at % A_RANKS;
        if (row >= piece.rows || rank >= piece.ranks) return;
        float sum = 0.0f;
#pragma unroll
        for (u32 share = 0; share < EXPANDERS; share++) sum += all[share * SHARE + at];
        p.h[piece.h + row * p.h_stride + rank] = sum;
    }
};
