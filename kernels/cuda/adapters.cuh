// What adapters add to one tile of a product of few rows, h B^T, while the product's weights stream.
// One thread keeps a ring filled with B by bulk copies, and four warps multiply what has landed, on
// tensor cores: columns of the tile are the left operand's rows, and the rows of h the right one's
// columns. A product does not mind in which order it meets the lora ranks, as long as both operands
// agree: lane l = 4 g + t holds, of 16 columns, g and g + 8, 8 of 32 lora ranks, from 8 t on.
#pragma once

#include "adapters_shrink.cuh"

constexpr u32 SLOTS = 12;    // of the ring
constexpr u32 SLICES = 16;   // that a warp looks up at once
constexpr u32 STAGED = 2;    // times 16 bytes of h that a thread adds up at once
constexpr u32 TOGETHER = 2;  // 16s of columns that a warp multiplies at once

// Some columns of one B, all of them in the tile.
struct Piece {
    const Element* b;  // the row of its first column
    u32 row, rows;     // of the batch
    u32 h;             // where a row's shrunk activations start
    u32 ranks;         // of a diagonal block
    u32 of_block;      // columns of one
    u32 within;        // its first column, counted from the pair's first
    u32 columns;       // none where there is no pair
    u32 place;         // its first column, counted from the tile's first
    u32 most;          // columns that fit into a slot
    u32 slices;        // of its columns

    // Diagonal blocks that its pair has up to its last column.
    __device__ u32 blocks() const { return (within + columns - 1) / of_block + 1; }

    // What is left of the diagonal block that its first column is in, or of the piece.
    __device__ u32 head() const { return min(of_block - within % of_block, columns); }

    // How many slices so many columns are, of one diagonal block.
    __device__ u32 slices_of(u32 some) const { return (some + most - 1) / most; }

    __device__ u32 count_slices() const {
        const u32 head = this->head(), rest = columns - head;
        const u32 whole = rest / of_block * slices_of(of_block);
        return slices_of(head) + whole + slices_of(rest % of_block);
    }

    // The first column of the n-th slice.
    __device__ u32 column_of(u32 n) const {
        const u32 head = this->head(), of_head = slices_of(head);
        if (n < of_head) return n * most;
        const u32 each = slices_of(of_block), block = (n - of_head) / each;
        return head + block * of_block + (n - of_head - block * each) * most;
    }
};

// What is copied at once, some columns of one piece and of one diagonal block, as those see it who
// multiply it: what they would look up and divide for is done before h is there.
struct Slice {
    u32 ranks, columns, rows;  // no columns behind the last slice
    u32 h, sums;  // where the first row's shrunk activations, and its results, start

    // Whether all loads are of 16 bytes: rows of h start at multiples of that.
    __device__ bool even() const { return (ranks | h) % 8 == 0; }
};

static_assert(EXPANDERS * SLICES * sizeof(Slice) == 1280 && sizeof(Piece) == 48,
              "kernels/src/cuda/beside.rs has room for so much");

struct Adapters {
    const AdaptersParams& p;
    Piece* pieces;
    float* sums;  // [rows, stride]
    Element* h;             // [rows, h_stride]
    Slice* slices;          // [EXPANDERS, SLICES]
    u32 ring, barriers;     // shared addresses
    u32* needed;            // of h: from a column of all rows up to another
    u32 count;   // of pieces
    u32 first, columns;  // of the tile that this block adds to, of all of its parts
    u32 stride;

    // `shared` starts at a multiple of 1024.
    __device__ Adapters(const GemmStreamParams& gemm, unsigned char* shared) : p(gemm.adapters) {
        slices = reinterpret_cast<Slice*>(shared + p.pieces);
        pieces = reinterpret_cast<Piece*>(slices + EXPANDERS * SLICES);
        sums = reinterpret_cast<float*>(shared + p.sums);
        h = reinterpret_cast<Element*>(shared + p.shrunk);
        ring = shared_address(shared + p.ring);
        barriers = shared_address(shared) + 640;
        needed = reinterpret_cast<u32*>(shared + 928);
        count = *p.segment_count * p.targets;
        columns = p.columns, stride = columns + 4;
        first = gemm.splits > 1 ? blockIdx.x % gemm.splits * columns : 0;
    }

    __device__ u32 landed(u32 slot) const { return barriers + slot * 8; }
    __device__ u32 used(u32 slot) const { return landed(SLOTS + slot); }

    __device__ void init_barriers() const {
        for (u32 slot = 0; slot < SLOTS; slot++) {
            init_barrier(landed(slot), 1);
            init_barrier(used(slot), 1);
        }
        needed[0] = ~0u, needed[1] = 0;
    }

    // A segment's piece, of `outputs` columns from `first` on, of each part.
    __device__ Piece piece(const GemmStreamParams& gemm, const Segment& segment, u32 target, u32 first,
                           u32 outputs) const {
        const u32 part = gemm.parts == 2 ? target : 0;
        const LoraPair pair = p.pairs[segment.slot * p.targets + target];
        const u32 start = part * gemm.outputs + first;
        const u32 begin = max(start, pair.output);
        const u32 end = min(start + outputs, pair.output + pair.outputs);
        if (pair.shrink_rank == 0 || begin >= end) return Piece{};
        const u32 ranks = pair.expand_rank / pair.b_blocks, within = begin - pair.output;
        const Element* b = pair.b + static_cast<u64>(within) * ranks;
        const u32 most = p.slot_bytes / (ranks * sizeof(Element)) / 8 * 8;
        Piece piece = {b, segment.row, segment.rows, pair.h, ranks, pair.outputs / pair.b_blocks,
                       within, end - begin, part * outputs + begin - start, most};
        piece.slices = piece.count_slices();
        return piece;
    }

    // By `threads` threads: finds the pieces, and adds nothing yet. The tile is `outputs` columns from
    // `start` on, of each of its parts. A segment is on its way before it is known how many there are:
    // there is room for one a row.
    __device__ void begin(const GemmStreamParams& gemm, u32 thread, u32 threads, u32 start,
                          u32 outputs) const {
        const u32 own = first < outputs ? min(outputs - first, columns) : 0;
        Segment next = p.segments[min(thread / p.targets, gemm.rows - 1)];
#pragma unroll 1
        for (u32 n = thread; n < count; n += threads) {
            const Segment segment = next;
            if (n + threads < count) next = p.segments[(n + threads) / p.targets];
            const Piece piece = this->piece(gemm, segment, n % p.targets, start + first, own);
            pieces[n] = piece;
            if (piece.columns == 0) continue;
            atomicMin(needed, piece.h);
            atomicMax(needed + 1, piece.h + piece.ranks * piece.blocks());
        }
        for (u32 i = thread; i < gemm.rows * stride; i += threads) sums[i] = 0.0f;
    }

    // One thread's work.
    __device__ void copy_b() const {
        u32 i = 0;
        for (u32 n = 0; n < count; n++) {
            const Piece& piece = pieces[n];
            for (u32 column = 0; column < piece.columns; i++) {
                const u32 slot = i % SLOTS, round = i / SLOTS;
                const Element* b = piece.b + static_cast<u64>(column) * piece.ranks;
                const u32 columns = slice_of(piece, column).columns;
                const u32 bytes = columns * piece.ranks * sizeof(Element);
                if (round > 0) wait_phase(used(slot), (round - 1) % 2);
                announce(landed(slot), bytes);
                copy_bytes_once(ring + slot * p.slot_bytes, b, bytes, landed(slot));
                column += columns;
            }
        }
    }

    __device__ Slice slice_of(const Piece& piece, u32 column) const {
        const u32 at = piece.within + column, block = at / piece.of_block;
        const u32 left = (block + 1) * piece.of_block - at;
        const u32 columns = min(min(piece.most, left), piece.columns - column);
        const u32 h = piece.row * p.h_stride + piece.h + block * piece.ranks;
        const u32 sums = piece.row * stride + piece.place + column;
        return {piece.ranks, columns, piece.rows, h, sums};
    }

    // By `threads` threads, once shrink is done: what is needed of its parts added up in order, and
    // rounded. A thread has as many loads on their way as it can.
    __device__ void stage_h(u32 rows, u32 thread, u32 threads) const {
        const u32 from = needed[0] / 4 * 4, width = needed[0] < needed[1] ? (needed[1] - from + 3) / 4 : 0;
        const u32 all = rows * width, split = rows * p.h_stride;
#pragma unroll 1
        for (u32 first = thread; first < all; first += STAGED * threads) {
            float sums[STAGED][4] = {};
            u32 at[STAGED];
#pragma unroll
            for (u32 i = 0; i < STAGED; i++) {
                const u32 n = first + i * threads;
                at[i] = n < all ? n / width * p.h_stride + from + n % width * 4 : ~0u;
            }
#pragma unroll 4
            for (u32 n = 0; n < p.splits; n++) {
#pragma unroll
                for (u32 i = 0; i < STAGED; i++) {
                    if (at[i] != ~0u) add(sums[i], p.h + n * split + at[i]);
                }
            }
#pragma unroll
            for (u32 i = 0; i < STAGED; i++) {
                if (at[i] != ~0u) store(h + at[i], sums[i]);
            }
        }
    }

    __device__ static void add(float (&sum)[4], const float* from) {
        float more[4];
        load(more, from);
#pragma unroll
        for (int n = 0; n < 4; n++) sum[n] += more[n];
    }

    // The n-th slice of all; without columns if there are less.
    __device__ Slice find(u32 n) const {
#pragma unroll 1
        for (u32 i = 0; i < count; i++) {
            const Piece& piece = pieces[i];
            if (n < piece.slices) return slice_of(piece, piece.column_of(n));
            n -= piece.slices;
        }
        return Slice{};
    }

    // A warp multiplies every so many slices. It looks up so many of those from `first` on at once,
    // a lane one, and has done so of its first ones when h is there.
    __device__ void look_up(u32 first) const {
        const u32 lane = threadIdx.x % 32;
        __syncwarp();
        if (lane < SLICES) slices[first % EXPANDERS * SLICES + lane] = find(first + lane * EXPANDERS);
        __syncwarp();
    }

    // Those that were looked up. Returns whether there may be more, from `next` on.
    __device__ bool expand(u32& next) const {
        do {
            const Slice slice = slices[next % EXPANDERS * SLICES + next / EXPANDERS % SLICES];
            if (slice.columns == 0) return false;
            const u32 slot = next % SLOTS;
            wait_phase(landed(slot), next / SLOTS % 2);
            multiply(slice, ring + slot * p.slot_bytes);
            __syncwarp();
            if (threadIdx.x % 32 == 0) arrive(used(slot));
            next += EXPANDERS;
        } while (next / EXPANDERS % SLICES > 0);
        return true;
    }

    __device__ void multiply(const Slice& slice, u32 b) const {
        const Element* x = h + slice.h;
        float* to = sums + slice.sums;
        if (!slice.even()) return multiply_any(slice, b, x, to);
#pragma unroll 1
        for (u32 first = 0; first < slice.columns; first += TOGETHER * 16) {
            const u32 columns = min(slice.columns - first, TOGETHER * 16);
            multiply_even(slice, columns, b + first * slice.ranks * sizeof(Element), x, to + first);
        }
    }

    // Up to 16 times TOGETHER columns: none waits for another's loads. They are read by eights, as slots
    // have room for.
    __device__ void multiply_even(const Slice& slice, u32 columns, u32 b, const Element* x,
                                  float* to) const {
        const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, ranks = slice.ranks;
        const u32 eight = 8 * ranks * sizeof(Element);  // columns of B, in bytes
        float results[TOGETHER][4] = {};
#pragma unroll 1
        for (u32 rank = t * 8; rank < ranks + t * 8; rank += 32) {
            const bool some = rank < ranks;
            const u32 at = b + (g * ranks + rank) * sizeof(Element);
            uint4 y = {}, v[TOGETHER], w[TOGETHER];
            if (some && g < slice.rows) y = fetch<8>(x + g * p.h_stride + rank).raw.words;
#pragma unroll
            for (u32 n = 0; n < TOGETHER; n++) {
                v[n] = load_16(at + 2 * n * eight, some && n * 16 < columns);
                w[n] = load_16(at + (2 * n + 1) * eight, some && n * 16 + 8 < columns);
            }
#pragma unroll
            for (u32 n = 0; n < TOGETHER; n++) {
                const u32 one[4] = {v[n].x, w[n].x, v[n].y, w[n].y};
                const u32 two[4] = {v[n].z, w[n].z, v[n].w, w[n].w};
                multiply_add(results[n], one, y.x, y.y);
                multiply_add(results[n], two, y.z, y.w);
            }
        }
#pragma unroll
        for (u32 n = 0; n < TOGETHER; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 row = t * 2 + i % 2, column = n * 16 + i / 2 * 8;
                if (row < slice.rows && column + g < columns) to[row * stride + column + g] = results[n][i];
            }
        }
    }

    // A column a lane.
    __device__ void multiply_any(const Slice& slice, u32 b, const Element* x, float* to) const {
        for (u32 column = threadIdx.x % 32; column < slice.columns; column += 32) {
            for (u32 row = 0; row < slice.rows; row++) {
                float sum = 0.0f;
#pragma unroll 8
                for (u32 rank = 0; rank < slice.ranks; rank++) {
                    sum += load_one(b + (column * slice.ranks + rank) * sizeof(Element)) *
                           to_f32(x[row * p.h_stride + rank]);
                }
                to[row * stride + column] = sum;
            }
        }
    }
};
