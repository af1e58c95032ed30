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
