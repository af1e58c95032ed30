// Adapters of a product for the emulator's tests, and what they add by the book.
#pragma once

#include "elements.h"
#include "params.cuh"

struct PairShape {
    u32 rank, blocks;
};
typedef std::vector<std::array<PairShape, 2>> Slots;
struct Share {
    u32 slot, rows;
};
constexpr u32 NOBODY = ~0u, PADS = ~1u;  // rows without an adapter, and of no sequence

// Adapters of a product's two targets.
struct AdapterSet {
    std::vector<Elements> factors;
    std::vector<LoraPair> pairs;
    std::vector<Segment> segments, others;  // those that have an adapter, and those that have none
    std::vector<float> h;  // [splits, rows, h_stride]
    std::vector<Elements> a_factors;
    std::vector<ShrinkTile> shrink;  // [slots, shrink_tiles]
    u32 shrink_tiles = 0;
    u32 h_stride = 0, count = 0, splits, rows = 0;

    AdapterSet(const Slots& slots, const std::vector<Share>& shares, u32 splits, u32 first, u32 all)
        : splits(splits) {
        factors.reserve(slots.size() * 2);
        for (const auto& slot : slots) add_slot(slot, {first, all - first});
        h_stride = align(h_stride, 8);
        for (const Share& share : shares) {
            if (share.slot == NOBODY) others.push_back({NO_SLOT, rows, share.rows});
            if (share.slot < slots.size()) segments.push_back({share.slot, rows, share.rows});
            rows += share.rows;
        }
        count = segments.size();
        h.resize(size_t{splits} * rows * h_stride);
        for (float& value : h) value = any();
    }

    void add_slot(const std::array<PairShape, 2>& slot, std::array<u32, 2> targets) {
        u32 column = 0, ranks = 0;
        for (u32 target = 0; target < 2; target++) {
            const auto [rank, blocks] = slot[target];
            LoraPair pair = {};
            if (rank > 0) {
                factors.push_back(some(size_t{targets[target]} * (rank / blocks), 1.0f));
                pair = {nullptr, factors.back().data(), rank, rank, 1, blocks, column,
                        targets[target], 0, ranks};
            }
            pairs.push_back(pair);
            column += targets[target], ranks += rank;
        }
        h_stride = max(h_stride, ranks);
    }

    // Their A, of so many diagonal blocks, as shrink finds it. `h` holds nothing yet.
    void add_a(u32 inputs, u32 blocks) {
        a_factors.reserve(pairs.size());
        std::vector<std::vector<ShrinkTile>> of_slots;
        for (size_t i = 0; i < pairs.size(); i++) {
            if (i % 2 == 0) of_slots.emplace_back();
            LoraPair& pair = pairs[i];
            if (pair.shrink_rank == 0) continue;
            pair.a_blocks = pair.shrink_rank % blocks == 0 ? blocks : 1;
            const u32 width = inputs / pair.a_blocks, ranks = pair.shrink_rank / pair.a_blocks;
            a_factors.push_back(some(size_t{pair.shrink_rank} * width, 0.125f));
            pair.a = a_factors.back().data();
            for (u32 rank = 0; rank < pair.shrink_rank; rank++) {
                if (rank % ranks % 8 != 0) continue;
                const u32 rows = min(ranks - rank % ranks, 8u);
                of_slots.back().push_back({pair.a + size_t{rank} * width, width, rank / ranks * width,
                                           pair.h + rank, rows});
            }
        }
        for (const auto& tiles : of_slots) shrink_tiles = max(shrink_tiles, u32(tiles.size()));
        for (auto& tiles : of_slots) {
            tiles.resize(shrink_tiles);
            shrink.insert(shrink.end(), tiles.begin(), tiles.end());
        }
        h.assign(h.size(), NAN);
    }

    // Fails where `h` is not what x, [rows, inputs], gives.
    void check_h(const Elements& x, u32 inputs) const {
        for (const Segment& segment : segments) {
            for (u32 row = segment.row; row < segment.row + segment.rows; row++) {
                for (u32 i = 0; i < shrink_tiles; i++) {
                    const ShrinkTile& tile = shrink[segment.slot * shrink_tiles + i];
                    for (u32 rank = 0; rank < tile.rows; rank++) {
                        double want = 0.0, got = 0.0;
                        for (u32 n = 0; n < tile.inputs; n++) {
                            want += to_f32(x[size_t{row} * inputs + tile.input + n]) *
                                    to_f32(tile.a[size_t{rank} * tile.inputs + n]);
                        }
                        for (u32 split = 0; split < splits; split++) {
                            got += h[(size_t{split} * rows + row) * h_stride + tile.h + rank];
                        }
                        if (!(fabs(got - want) <= 1e-3 * (1.0 + fabs(want)))) {
                            printf("h of row %u, rank %u is %f, not %f\n", row, tile.h + rank, got, want);
                            fail("gemm_stream shrinks");
                        }
                    }
                }
            }
        }
    }

    // What they add to an output of a row.
    double sum(u32 row, u32 output) const {
        double sum = 0.0;
        for (const Segment& segment : segments) {
            if (row < segment.row || row >= segment.row + segment.rows) continue;
            for (u32 target = 0; target < 2; target++) {
                const LoraPair& pair = pairs[segment.slot * 2 + target];
                const u32 column = output - pair.output;
                if (pair.shrink_rank > 0 && column < pair.outputs) sum += sum_of(pair, row, column);
            }
        }
        return sum;
    }

    double sum_of(const LoraPair& pair, u32 row, u32 column) const {
        const u32 ranks = pair.expand_rank / pair.b_blocks;
        const u32 block = column / (pair.outputs / pair.b_blocks);
        double sum = 0.0;
        for (u32 rank = 0; rank < ranks; rank++) {
            float shrunk = 0.0f;
            for (u32 split = 0; split < splits; split++) {
                const size_t at = (size_t{split} * rows + row) * h_stride;
                shrunk += h[at + pair.h + block * ranks + rank];
            }
            Element rounded;
            from_f32(rounded, shrunk);
            sum += to_f32(rounded) * to_f32(pair.b[size_t{column} * ranks + rank]);
        }
        return sum;
    }
};
