// lora_decode_shrink.cu, lora_decode_expand.cu and lora_decode_gated.cu.
#include "device.h"

#define ELEMENT_BF16
#include "lora_decode_expand.cuh"

namespace shrink {
#include "lora_decode_shrink.cu"
}
namespace plain {
#include "lora_decode_expand.cu"
}
namespace gated {
#include "lora_decode_gated.cu"
}

#include "adapters.h"

constexpr u32 BLOCKS = 3, PADDED = 3;  // rows of a step that are nobody's

// What a launch knows of adapters, but for its tiles.
static LoraDecodeParams params(const AdapterSet& adapters, u32 columns) {
    LoraDecodeParams p = {};
    p.pairs = adapters.pairs.data(), p.h = const_cast<float*>(adapters.h.data());
    p.rows = adapters.rows, p.h_stride = adapters.h_stride, p.splits = adapters.splits;
    p.targets = 2, p.columns = columns, p.staged = 0;
    for (const LoraPair& pair : adapters.pairs) {
        if (pair.shrink_rank == 0) continue;
        const u32 own = pair.expand_rank / pair.b_blocks;
        p.staged = max(p.staged, pair.b_blocks * (own <= 16 ? 16 : align(own, 32)));
    }
    return p;
}

static void expect(double got, double want, u32 row, u32 output, const char* of) {
    if (fabs(got - want) <= 1e-2 * (1.0 + fabs(want))) return;
    printf("row %u, output %u is %f, not %f\n", row, output, got, want);
    fail(of, output);
}

// As many entries as there are rows, zeros behind the last.
static std::vector<Segment> padded(std::vector<Segment> segments, u32 rows) {
    segments.resize(rows);
    return segments;
}

// Those that have an adapter, and those behind them that have none.
static std::vector<Segment> all_segments(const AdapterSet& adapters) {
    std::vector<Segment> all = adapters.segments;
    all.insert(all.end(), adapters.others.begin(), adapters.others.end());
    return all;
}

// Added to what is there, or to nothing.
static void check_expand(const AdapterSet& adapters, std::array<u32, 2> targets, u32 columns,
                         bool adds) {
    const u32 width = targets[0] + targets[1];
    LoraDecodeParams p = params(adapters, columns);
    std::vector<Segment> segments = adds ? adapters.segments : all_segments(adapters);
    const u32 count = segments.size(), rows = adds ? adapters.rows : adapters.rows - PADDED;
    segments = padded(segments, adapters.rows);
    p.segments = segments.data(), p.segment_count = &count, p.width = width;
    p.tile_end[0] = divide_up(targets[0], columns);
    p.tile_end[1] = p.tile_end[0] + divide_up(targets[1], columns);
    p.target_column[1] = targets[0];
    const Elements old = some(size_t{adapters.rows} * width, 1.0f);
    Elements y = adds ? old : Elements(old.size(), Element{0x7fc0});
    p.y = adds ? y.data() : nullptr, p.out = y.data();
    launch(BLOCKS, THREADS, [&] { plain::lora_decode_expand(p); });
    for (u32 row = 0; row < rows; row++) {
        for (u32 output = 0; output < width; output++) {
            const size_t at = size_t{row} * width + output;
            const double want = (adds ? to_f32(old[at]) : 0.0) + adapters.sum(row, output);
            expect(to_f32(y[at]), want, row, output, "expand");
        }
    }
}

static void check_gated(const AdapterSet& adapters, u32 width, u32 columns) {
    LoraDecodeParams p = params(adapters, columns);
    std::vector<Segment> all = all_segments(adapters);
    const u32 count = all.size();
    all = padded(all, adapters.rows);
    p.segments = all.data(), p.segment_count = &count, p.width = width;
    p.tile_end[0] = divide_up(width, columns);
    Elements old = some(size_t{adapters.rows} * 2 * width, 1.0f);
    Elements out(size_t{adapters.rows} * width, Element{0x7fc0});
    p.y = old.data(), p.out = out.data();
    launch(BLOCKS, THREADS, [&] { gated::lora_decode_gated(p); });
    auto sum = [&](u32 row, u32 output) {
        return to_f32(old[size_t{row} * 2 * width + output]) + adapters.sum(row, output);
    };
    for (u32 row = 0; row < adapters.rows - PADDED; row++) {
        for (u32 output = 0; output < width; output++) {
            const double gate = sum(row, output), up = sum(row, width + output);
            const double want = gate / (1.0 + exp(-gate)) * up;
            expect(to_f32(out[size_t{row} * width + output]), want, row, output, "gated");
        }
    }
}

// One target: a lora rank in diagonal blocks for each slot.
static void check_shrink(const std::vector<PairShape>& slots, const std::vector<Share>& shares,
                         u32 inputs, u32 splits) {
    const AdapterSet adapters({}, shares, 1, 8, 8);
    std::vector<Elements> factors;
    std::vector<std::vector<ShrinkTile>> of_slots;
    size_t most = 0;
    u32 h_stride = 0;
    for (const auto [rank, blocks] : slots) {
        factors.push_back(some(size_t{rank} * (inputs / blocks), 1.0f));
        of_slots.emplace_back();
        const u32 ranks = rank / blocks, own = inputs / blocks;
        for (u32 first = 0, rows = 0; first < rank; first += rows) {
            const Element* a = factors.back().data() + size_t{first} * own;
            rows = min(8u, ranks - first % ranks);
            of_slots.back().push_back({a, own, first / ranks * own, first, rows});
        }
        most = max(most, of_slots.back().size()), h_stride = max(h_stride, align(rank, 8));
    }
    std::vector<ShrinkTile> tiles;
    for (auto& of_slot : of_slots) {
        of_slot.resize(most);
        tiles.insert(tiles.end(), of_slot.begin(), of_slot.end());
    }
    std::vector<Segment> segments;
    u32 rows = 0;
    for (const Share& share : shares) {
        if (share.slot < slots.size()) segments.push_back({share.slot, rows, share.rows});
        rows += share.rows;
    }
    const u32 count = segments.size();
    segments = padded(segments, rows);
    const Elements x = some(size_t{rows} * inputs, 1.0f);
    std::vector<float> h(size_t{splits} * rows * h_stride, NAN);
    LoraDecodeParams p = {};
    p.shrink = tiles.data(), p.segments = segments.data(), p.segment_count = &count;
    p.x = x.data(), p.h = h.data(), p.rows = rows, p.width = inputs, p.h_stride = h_stride;
    p.splits = splits, p.shrink_tiles = most, p.targets = 1;
    launch(BLOCKS, THREADS, [&] { shrink::lora_decode_shrink(p); });
    for (u32 i = 0; i < count; i++) {
        const auto [slot, first, of_segment] = segments[i];
        const auto [rank, blocks] = slots[slot];
        const u32 own = inputs / blocks;
        for (u32 at = 0; at < of_segment * rank; at++) {
            const u32 row = first + at / rank, r = at % rank, from = r / (rank / blocks) * own;
            double want = 0.0, got = 0.0;
            for (u32 n = 0; n < own; n++) {
                const Element a = factors[slot][size_t{r} * own + n];
                want += to_f32(a) * to_f32(x[size_t{row} * inputs + from + n]);
            }
            for (u32 split = 0; split < splits; split++) {
                got += h[(size_t{split} * rows + row) * h_stride + r];
            }
            expect(got, want, row, r, "shrink");
        }
    }
}

int main(int, char** arguments) {
    device.chance.seed(atoi(arguments[1]));
    const Slots slots = {{{{16, 1}, {16, 1}}}, {{{64, 1}, {0, 1}}}, {{{128, 8}, {24, 1}}},
                         {{{0, 1}, {256, 1}}}, {{{8, 1}, {96, 2}}}, {{{12, 1}, {33, 1}}},
                         {{{3, 1}, {1, 1}}}};
    const std::vector<PairShape> factors = {{16, 1}, {64, 8}, {128, 1}, {8, 2},
                                            {20, 4}, {12, 1}, {3, 1}};
    const std::vector<std::vector<Share>> batches = {
        {{0, 1}},
        {{NOBODY, 2}, {0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 2}, {NOBODY, 1}, {5, 1}, {6, 3}},
        {{4, 8}, {4, 3}, {NOBODY, 8}, {2, 8}}};
    for (const std::vector<Share>& batch : batches) {
        std::vector<Share> shares = batch;
        shares.push_back({PADS, PADDED});
        for (const u32 width : {64u, 320u, 1088u}) {
            const AdapterSet adapters(slots, shares, 2, width, 2 * width);
            for (const u32 columns : {128u, 256u, 512u}) check_gated(adapters, width, columns);
            for (const u32 columns : {256u, 512u, 1024u}) {
                for (const bool adds : {false, true}) {
                    check_expand(adapters, {width, width}, columns, adds);
                }
            }
        }
        for (const auto [inputs, splits] : {std::array{64u, 1u}, {1088u, 1u}, {4120u, 4u}}) {
            check_shrink(factors, shares, inputs, splits);
        }
        const AdapterSet uneven(slots, shares, 3, 1000, 1040);
        for (const bool adds : {false, true}) check_expand(uneven, {1000, 40}, 256, adds);
    }
    printf("lora_decode_*.cu are right, seed %s\n", arguments[1]);
}
