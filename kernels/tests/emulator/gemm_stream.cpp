// gemm_stream.cu and gemm_groups.cu, on as few multiprocessors as make its rings go round and its tiles differ.
#include "device.h"

#define ELEMENT_BF16
#include "adapters.h"
#include "gemm_stream.cuh"
#include <wgmma.cuh>

namespace warps {
#include "gemm_stream.cu"
}
namespace groups {
#include "gemm_groups.cu"
}

constexpr u32 PROCESSORS = 4, DYNAMIC_BYTES = 200 << 10;

// As kernels/src/cuda/gemm_stream.rs cuts a product.
struct Cut {
    u32 blocks, tile, columns, boxes, stages, team, teams, flight, flight_beside, sums, beside;

    Cut(bool in_groups, u32 rows, u32 weight_rows, u32 splits, u32 unit,
        std::function<u32(u32)> bytes_beside) {
        const u32 units = divide_up(divide_up(weight_rows, unit), PROCESSORS);
        const u32 whole = divide_up(units, divide_up(units, 256 / unit)) * unit;
        tile = splits > 1 ? OUTPUTS : max(whole, 16u);
        columns = splits > 1 ? align(divide_up(OUTPUTS, splits), 8) : tile;
        const u32 tiles = divide_up(weight_rows, tile);
        for (team = 1; team * OUTPUTS < tile; team *= 2) {}
        blocks = splits > 1 ? tiles * splits : min(tiles, PROCESSORS);
        const u32 both = rows > 32 || bytes_beside(columns) == 0 ? 32u << 10 : 28u << 10;
        const u32 of_both = in_groups ? both / ((tile + rows) * BOX_ROW_BYTES) : 8;
        boxes = max(1u, min(min(8u, of_both), (16u << 10) / (tile * BOX_ROW_BYTES)));
        const u32 weight = boxes * tile * BOX_ROW_BYTES;
        const u32 stage = weight + boxes * rows * BOX_ROW_BYTES;
        const u32 all_sums = WARPS * rows * STRIDE * sizeof(float);
        const u32 past = in_groups ? (team * OUTPUTS - tile) * BOX_ROW_BYTES : 0;
        const u32 room = DYNAMIC_BYTES - 2048 - align(max(past, bytes_beside(columns)), 1024);
        const bool alone = tiles <= blocks;
        const u32 most = min((alone ? room : room - all_sums) / stage, STAGES_MAX);
        stages = 0;
        const u32 teams_max = in_groups ? max(1u, 2 / team) : WARPS / team;
        const u32 fewest = max(1u, min(min(3u, teams_max), most / 2));
        for (u32 some = fewest; some <= min(teams_max, most); some++) {
            if (most / some * some >= stages) teams = some, stages = most / some * some;
        }
        sums = 1024 + (alone ? 0 : stages * stage), beside = 1024 + room;
        auto under_way = [&](u32 bytes) {
            return max(1u, min(stages, bytes * PROCESSORS / (blocks * weight)));
        };
        flight = under_way(96 << 10), flight_beside = under_way((bytes_beside(columns) > 0 ? 32 : 48) << 10);
    }
};

struct Shape {
    u32 rows, inputs, outputs, parts, splits = 1;
};

static void by_warps(const GemmStreamParams& p, u32 most, bool adapted) {
    using namespace warps;
    if (adapted) {
        return most == 8    ? gemm<WarpProducts<1>, true>(p)
               : most == 16 ? gemm<WarpProducts<2>, true>(p)
                            : gemm<WarpProducts<4>, true>(p);
    }
    most == 8    ? gemm<WarpProducts<1>, false>(p)
    : most == 16 ? gemm<WarpProducts<2>, false>(p)
                 : gemm<WarpProducts<4>, false>(p);
}

template <int BLOCKS, int COLUMNS>
static void by_groups(const GemmStreamParams& p, bool adapted) {
    using namespace groups;
    typedef GroupProducts<COLUMNS, BLOCKS> Products;
    adapted ? gemm<Products, true, true>(p) : gemm<Products, false>(p);
}

template <int BLOCKS>
static void by_groups(const GemmStreamParams& p, u32 most, bool adapted) {
    switch (most) {
        case 8: return by_groups<BLOCKS, 1>(p, adapted);
        case 16: return by_groups<BLOCKS, 2>(p, adapted);
        case 32: return by_groups<BLOCKS, 4>(p, adapted);
        default: return by_groups<BLOCKS, 8>(p, adapted);
    }
}

// A product's part in a norm, behind it or before it.
enum class Norm { WHOLE, TAKEN_UP, FACTORS };

// What kernels read and write of it.
struct Halves {
    Elements residual;
    std::vector<float> weight, squares;
    double eps = 0.25;

    Halves(u32 rows, u32 outputs, Norm norm)
        : residual(some(size_t{rows} * outputs, 1.0f)), squares(rows * SQUARES_MAX, NAN) {
        for (u32 i = 0; i < outputs; i++) weight.push_back(any());
        for (float& square : squares) {
            if (norm == Norm::FACTORS) square = any() + 1.5f;
        }
    }

    double sum(u32 row, u32 count) const {
        double sum = 0.0;
        for (u32 i = 0; i < count; i++) sum += squares[row * SQUARES_MAX + i];
        return sum;
    }
};

static void expect(const char* what, u32 row, u32 output, double got, double want) {
    if (fabs(got - want) <= 1e-2 * (1.0 + fabs(want))) return;
    printf("%s of row %u, output %u is %f, not %f\n", what, row, output, got, want);
    fail("gemm_stream", row);
}

// With `a_blocks`, the product shrinks for its adapters, whose A have so many diagonal blocks.
static void check(bool in_groups, Shape shape, bool biased, AdapterSet* adapters = nullptr,
                  u32 a_blocks = 0, Norm norm = Norm::WHOLE) {
    const auto [rows, inputs, outputs, parts, splits] = shape;
    const u32 all = outputs * parts, most = rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
    const Elements weight = some(size_t{all} * inputs, 0.125f);
    const Elements x = some(size_t{rows} * inputs, 1.0f);
    const Elements bias = some(all, 1.0f);
    Elements out(size_t{rows} * outputs, Element{0x7fc0});
    std::vector<float> in_splits(size_t{splits} * rows * outputs, NAN), full_bias;
    for (const Element some : bias) full_bias.push_back(to_f32(some));
    AdaptersParams beside = {};
    Pool pool = {};
    u32 places = 0, unit = 8;
    if (adapters) {
        if (a_blocks > 0) adapters->add_a(inputs, a_blocks);
        for (const LoraPair& pair : adapters->pairs) {
            if (pair.b && pair.expand_rank / pair.b_blocks % 2) unit = parts * 8;
        }
        const u32 slices = EXPANDERS * SLICES * sizeof(Slice);
        const u32 known = align(slices + rows * 2 * sizeof(Piece), 128);
        const u32 of_a = A_SLOTS * sizeof(ShrinkPiece) + 2 * EXPANDERS * A_RANKS * A_RANKS * 4;
        const u32 shrunk = known + (a_blocks > 0 ? align(of_a, 128) : 0);
        const u32 ring = align(shrunk + rows * adapters->h_stride * sizeof(Element), 128);
        u32 rank = 0;
        for (const LoraPair& pair : adapters->pairs) rank = max(rank, pair.expand_rank);
        const u32 columns = Cut(in_groups, most, all, splits, unit, [](u32) { return 0; }).columns;
        const u32 many = rows > 16 ? 2048 : 4096, column = rank * u32{sizeof(Element)};
        const u32 slot = min(4096u, align(max(min(many, columns * column), 8 * column), 128));
        const u32 a_slots = a_blocks > 0 ? A_SLOTS * A_RANKS * A_ROW_BYTES : 0;
        places = ring + max(SLOTS * slot, a_slots);
        beside = {adapters->pairs.data(), adapters->segments.data(), &adapters->count,
                  adapters->h.data(), nullptr, a_blocks > 0 ? &pool : nullptr, x.data(),
                  adapters->shrink.data(), adapters->shrink_tiles, 2, adapters->splits,
                  adapters->h_stride, 0, known, shrunk, ring, places, slot, columns};
    }
    const Cut cut(in_groups, most, all, splits, unit, [&](u32 columns) {
        return adapters ? places + rows * (columns + 4) * u32{sizeof(float)} : 0;
    });
    for (u32* place : {&beside.pieces, &beside.known, &beside.shrunk, &beside.ring, &beside.sums}) {
        *place += cut.beside;
    }
    GemmStreamParams p = {};
    reinterpret_cast<Matrix&>(p.weight) = {weight.data(), parts, outputs, inputs,
                                           cut.tile / parts, cut.boxes, parts};
    reinterpret_cast<Matrix&>(p.x) = {x.data(), 1, rows, inputs, most, cut.boxes, 1};
    p.bias = biased ? bias.data() : nullptr, p.out = out.data(), p.adapters = beside;
    if (splits > 1) {
        p.out = in_splits.data(), p.full = true;
        if (biased) p.bias = full_bias.data();
    }
    p.rows = rows, p.inputs = inputs, p.outputs = outputs, p.parts = parts, p.tile = cut.tile;
    p.splits = splits;
    p.tiles = divide_up(all, cut.tile), p.chunks = divide_up(inputs / 64, cut.boxes);
    p.boxes = cut.boxes, p.stages = cut.stages, p.team = cut.team, p.teams = cut.teams;
    p.flight = cut.flight, p.flight_beside = cut.flight_beside, p.ring = 1024, p.sums = cut.sums;
    Halves halves(rows, outputs, norm);
    const Elements residual = halves.residual;
    if (norm == Norm::TAKEN_UP) {
        p.taken_up = {halves.residual.data(), halves.weight.data(), halves.squares.data()};
    }
    const u32 count = 1 + device.chance() % 132;
    if (norm == Norm::FACTORS) p.factors = {halves.squares.data(), count, float(halves.eps)};
    launch(cut.blocks, adapters ? ADAPTED_THREADS : THREADS, [&] {
        if (!in_groups) return by_warps(p, most, adapters);
        cut.team > 2 ? by_groups<2>(p, most, adapters) : by_groups<1>(p, most, adapters);
    });
    if (a_blocks > 0) adapters->check_h(x, inputs);
    if (pool.taken + pool.done + pool.left > 0) fail("what was taken is left", pool.taken);
    auto sum = [&](u32 row, u32 output) {
        double sum = 0.0;
        for (u32 i = 0; i < inputs; i++) {
            const Element w = weight[size_t{output} * inputs + i];
            sum += to_f32(x[size_t{row} * inputs + i]) * to_f32(w);
        }
        if (adapters) sum += adapters->sum(row, output);
        if (norm == Norm::FACTORS) sum /= sqrt(halves.sum(row, count) / inputs + halves.eps);
        return sum + (biased ? to_f32(bias[output]) : 0.0);
    };
    if (norm == Norm::TAKEN_UP) {
        for (u32 row = 0; row < rows; row++) {
            double squares = 0.0;
            for (u32 output = 0; output < outputs; output++) {
                const size_t at = size_t{row} * outputs + output;
                const double now = to_f32(halves.residual[at]);
                expect("residual", row, output, now, to_f32(residual[at]) + sum(row, output));
                expect("hidden", row, output, to_f32(out[at]), now * halves.weight[output]);
                squares += now * now;
            }
            expect("squares", row, 0, halves.sum(row, p.tiles), squares);
        }
        return;
    }
    for (u32 row = 0; row < rows; row++) {
        for (u32 output = 0; output < outputs; output++) {
            double want = sum(row, output);
            if (parts == 2) want = want / (1.0 + exp(-want)) * sum(row, outputs + output);
            double got = splits > 1 ? 0.0 : to_f32(out[size_t{row} * outputs + output]);
            for (u32 i = 0; i < splits && splits > 1; i++) {
                got += in_splits[(size_t{i} * rows + row) * outputs + output];
            }
            expect("result", row, output, got, want);
        }
    }
}

int main(int, char** arguments) {
    device.chance.seed(atoi(arguments[1]));
    const std::vector<Shape> shapes = {
        {1, 1024, 96, 1},  {5, 4096, 64, 1},   {8, 2048, 200, 1},  {13, 1088, 160, 1},
        {16, 64, 1100, 1}, {3, 128, 50, 1},    {5, 192, 2500, 1},  {16, 640, 1500, 1},
        {17, 1088, 140, 1}, {29, 2048, 250, 1}, {32, 192, 900, 1}, {8, 320, 72, 2},
        {31, 320, 72, 2},  {7, 1024, 448, 2}};
    for (const bool in_groups : {false, true}) {
        for (const Shape& shape : shapes) {
            check(in_groups, shape, shape.parts == 1 && shape.rows % 2 == 1);
        }
    }
    check(true, {64, 576, 250, 1}, false);
    for (const bool in_groups : {false, true}) {
        check(in_groups, {3, 2048, 64, 1, 4}, true);
        check(in_groups, {16, 1088, 100, 1, 2}, true);
    }
    check(true, {50, 1600, 90, 1, 2}, true);
    for (const Norm norm : {Norm::TAKEN_UP, Norm::FACTORS}) {
        for (const bool in_groups : {false, true}) {
            check(in_groups, {1, 1024, 96, 1}, false, nullptr, 0, norm);
            check(in_groups, {7, 640, 224, 1}, false, nullptr, 0, norm);
            check(in_groups, {16, 576, 200, 1}, false, nullptr, 0, norm);
            check(in_groups, {29, 192, 256, 1}, false, nullptr, 0, norm);
        }
        check(true, {64, 576, 248, 1}, false, nullptr, 0, norm);
    }
    check(true, {41, 192, 448, 2}, false, nullptr, 0, Norm::FACTORS);
    check(true, {6, 2048, 64, 1, 4}, true, nullptr, 0, Norm::FACTORS);
    check(true, {41, 192, 448, 2}, false);
    const Slots even = {{{{16, 1}, {16, 1}}}, {{{64, 1}, {0, 1}}}, {{{128, 1}, {24, 1}}},
                        {{{0, 1}, {256, 1}}}, {{{8, 1}, {96, 1}}}};
    const Slots odd = {{{{1, 1}, {3, 1}}}, {{{12, 1}, {6, 1}}}, {{{36, 1}, {0, 1}}},
                       {{{0, 1}, {33, 1}}}, {{{7, 1}, {20, 1}}}};
    const Slots diagonal = {{{{64, 8}, {32, 4}}}};
    auto adapted = [](Shape shape, const Slots& slots, const std::vector<Share>& shares,
                      u32 splits) {
        const u32 all = shape.outputs * shape.parts;
        const u32 first = shape.parts == 2 ? shape.outputs : all / 32 * 16;
        for (const u32 a_blocks : {0u, device.chance() % 2 ? 1u : 4u}) {
            for (const bool in_groups : {false, true}) {
                if (a_blocks > 0 && !in_groups) continue;
                AdapterSet adapters(slots, shares, splits, first, all);
                check(in_groups, shape, shape.parts == 1, &adapters, a_blocks);
            }
        }
    };
    for (const Slots& slots : {even, odd}) {
        adapted({1, 1088, 128, 1}, slots, {{2, 1}}, 2);
        adapted({8, 1024, 192, 1}, slots, {{NOBODY, 2}, {0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 2}}, 1);
        adapted({8, 2048, 96, 2}, slots, {{4, 8}}, 3);
        adapted({13, 512, 512, 1}, slots, {{1, 8}, {1, 2}, {NOBODY, 3}}, 1);
        adapted({16, 576, 448, 2}, slots, {{1, 8}, {0, 5}, {3, 2}, {NOBODY, 1}}, 2);
        adapted({32, 320, 384, 2}, slots, {{1, 8}, {0, 8}, {3, 2}, {NOBODY, 1}, {2, 5}, {4, 8}}, 2);
        adapted({21, 1088, 256, 1}, slots, {{0, 8}, {3, 2}, {NOBODY, 3}, {4, 8}}, 1);
    }
    adapted({5, 640, 88, 2}, even, {{0, 2}, {2, 1}, {NOBODY, 1}, {3, 1}}, 2);
    adapted({19, 640, 216, 2}, even, {{0, 8}, {2, 3}, {NOBODY, 1}, {4, 7}}, 1);
    adapted({8, 2048, 64, 1, 4}, even, {{NOBODY, 2}, {0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 2}}, 1);
    adapted({1, 1088, 100, 1, 2}, odd, {{2, 1}}, 2);
    adapted({21, 1088, 128, 1, 2}, even, {{0, 8}, {3, 2}, {NOBODY, 3}, {4, 8}}, 1);
    adapted({6, 2048, 128, 1, 2}, diagonal, {{0, 4}, {NOBODY, 1}, {0, 1}}, 1);
    // More slices than warps look up at once.
    adapted({16, 64, 512, 1}, even, std::vector<Share>(16, {3, 1}), 1);
    for (const Norm norm : {Norm::TAKEN_UP, Norm::FACTORS}) {
        const std::vector<Share> some = {{NOBODY, 2}, {0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 2}};
        AdapterSet few(even, some, 1, 64, 192), by_warps(odd, some, 2, 64, 192);
        check(true, {8, 1024, 192, 1}, false, &few, 0, norm);
        check(false, {8, 1024, 192, 1}, false, &by_warps, 0, norm);
    }
    const std::vector<Share> many = {{0, 8}, {3, 8}, {1, 8}, {NOBODY, 3}, {4, 8}, {2, 8}, {0, 6}};
    for (const u32 outputs : {256u, 640u}) {
        AdapterSet few(even, many, 2, 128, outputs), own(even, many, 2, 128, outputs);
        check(true, {49, 576, outputs, 1}, true, &few);
        check(true, {49, 576, outputs, 1}, true, &own, 1);
    }
    adapted({6, 256, 512, 1}, diagonal, {{0, 4}, {NOBODY, 1}, {0, 1}}, 1);
    printf("gemm_stream.cu and gemm_groups.cu are right, seed %s\n", arguments[1]);
}
