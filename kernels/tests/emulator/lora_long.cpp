// lora_long_shrink.cu, lora_long_expand.cu, lora_long_norm.cu, lora_gated.cu and lora_gated_few.cu.
#include "device.h"

#define ELEMENT_BF16
#include <bulk.cuh>
#include "cluster.cuh"
#include "lora_few.cuh"
#include "lora_long.cuh"

namespace shrink {
#include "lora_long_shrink.cu"
}
namespace expand {
#include "lora_long_expand.cu"
}
namespace norm {
#include "lora_long_norm.cu"
}
namespace gated {
#include "lora_gated.cu"
}
namespace few {
#include "lora_gated_few.cu"
}

#include "adapters.h"

// Segments of x with some lora ranks each, the shrunk activations of each behind the other's.
static void check_shrink(u32 width, const std::vector<LongShrink>& shapes) {
    LoraLongShrinkParams p = {};
    u32 rows = 0, floats = 0, most = 0;
    std::vector<Elements> factors;
    for (size_t i = 0; i < shapes.size(); i++) {
        LongShrink& entry = p.entries[i];
        entry = shapes[i];
        factors.push_back(some(size_t{entry.ranks} * entry.inputs, 1.0f));
        entry.a = factors[i].data(), entry.row = rows, entry.h = floats + 8, entry.width = entry.ranks + 8;
        rows += entry.rows, floats += entry.rows * entry.width, most = max(most, entry.rows);
    }
    const Elements x = some(size_t{rows} * width, 1.0f);
    std::vector<float> h(floats + 8, NAN);
    p.x = x.data(), p.h = h.data(), p.width = width;
    for (u32 i = 0; i < shapes.size(); i++) {
        blockIdx.y = i;
        launch(divide_up(most, shrink::ROWS), shrink::THREADS, [&] { shrink::lora_long_shrink(p); });
        const LongShrink& entry = p.entries[i];
        for (u32 row = 0; row < entry.rows; row++) {
            const Element* from = x.data() + size_t{entry.row + row} * width + entry.column;
            for (u32 rank = 0; rank < entry.ranks; rank++) {
                double want = 0.0;
                for (u32 k = 0; k < entry.inputs; k++) {
                    want += to_f32(entry.a[size_t{rank} * entry.inputs + k]) * to_f32(from[k]);
                }
                const double got = h[entry.h + size_t{row} * entry.width + rank];
                if (fabs(got - want) <= 1e-2 * (1.0 + fabs(want))) continue;
                printf("row %u, lora rank %u of %u is %f, not %f\n", row, rank, i, got, want);
                fail("shrink", rank);
            }
        }
    }
}

// Some columns of y, the shrunk activations of each segment behind the other's.
static void check_expand(u32 width, const std::vector<LongExpand>& shapes) {
    LoraLongExpandParams p = {};
    u32 rows = 0, floats = 0;
    std::vector<Elements> factors;
    for (size_t i = 0; i < shapes.size(); i++) {
        LongExpand& entry = p.entries[i];
        entry = shapes[i];
        factors.push_back(some(size_t{entry.columns} * entry.pair.rank, 1.0f));
        entry.pair.b = factors[i].data(), entry.pair.h = 8;
        entry.row = rows, entry.h = floats, entry.width = entry.pair.rank + 8;
        rows += entry.rows, floats += entry.rows * entry.width;
    }
    std::vector<float> h(floats);
    for (float& value : h) value = any();
    const Elements old = some(size_t{rows} * width, 1.0f);
    Elements y = old;
    p.h = h.data(), p.y = y.data(), p.width = width;
    for (u32 i = 0; i < shapes.size(); i++) {
        const LongExpand& entry = p.entries[i];
        blockIdx.z = i;
        for (blockIdx.y = 0; blockIdx.y * ROWS < entry.rows; blockIdx.y++) {
            launch(divide_up(width, expand::COLUMNS * expand::TILES), THREADS, [&] { expand::lora_long_expand(p); });
        }
        for (u32 row = 0; row < entry.rows; row++) {
            const float* from = h.data() + entry.h + size_t{row} * entry.width + entry.pair.h;
            for (u32 column = 0; column < width; column++) {
                const size_t at = size_t{entry.row + row} * width + column;
                double want = to_f32(old[at]);
                for (u32 k = 0; k < entry.pair.rank && column - entry.column < entry.columns; k++) {
                    const size_t row_of_b = size_t{column - entry.column} * entry.pair.rank;
                    want += to_f32(entry.pair.b[row_of_b + k]) * from[k];
                }
                const double got = to_f32(y[at]);
                if (fabs(got - want) <= 2e-2 * (1.0 + fabs(want))) continue;
                printf("row %u, column %u of %u is %f, not %f\n", row, column, i, got, want);
                fail("expand", column);
            }
        }
    }
}

// One segment behind another's row.
static void check_gated(u32 width, std::array<u32, 2> ranks, u32 rows) {
    LoraGatedParams p = {};
    GatedSegment& segment = p.segments[0];
    const std::array factors = {some(size_t{width} * ranks[0], 1.0f), some(size_t{width} * ranks[1], 1.0f)};
    segment.pairs[0] = {factors[0].data(), ranks[0], 0}, segment.pairs[1] = {factors[1].data(), ranks[1], ranks[0]};
    segment.row = 1, segment.rows = rows, segment.h = 8, segment.width = ranks[0] + ranks[1];
    std::vector<float> h(8 + size_t{rows} * segment.width);
    for (float& value : h) value = any() / 4;
    const Elements gate_up = some(size_t{rows + 1} * 2 * width, 1.0f);
    Elements out(size_t{rows + 1} * width);
    p.h = h.data(), p.gate_up = gate_up.data(), p.out = out.data(), p.width = width;
    blockIdx.z = 0;
    const bool few = max(ranks[0], ranks[1]) <= 16;
    const u32 rows_of_block = few ? few::TURNS * FEW_ROWS : ROWS;
    const u32 columns_of_block = few ? few::WARPS * FEW_COLUMNS : gated::COLUMNS * gated::TILES;
    for (blockIdx.y = 0; blockIdx.y * rows_of_block < rows; blockIdx.y++) {
        launch(divide_up(width, columns_of_block), THREADS, [&] { few ? few::lora_gated_few(p) : gated::lora_gated(p); });
    }
    for (u32 row = 0; row < rows; row++) {
        for (u32 column = 0; column < width; column++) {
            double sums[2];
            for (u32 i = 0; i < 2; i++) {
                const auto [b, rank, first] = segment.pairs[i];
                sums[i] = to_f32(gate_up[(size_t{row + 1} * 2 + i) * width + column]);
                for (u32 k = 0; k < rank; k++) {
                    sums[i] += h[8 + size_t{row} * segment.width + first + k] * to_f32(b[size_t{column} * rank + k]);
                }
            }
            const double want = sums[0] / (1.0 + exp(-sums[0])) * sums[1];
            const double got = to_f32(out[size_t{row + 1} * width + column]);
            if (fabs(got - want) <= 3e-2 * (1.0 + fabs(want))) continue;
            printf("row %u, column %u is %f, not %f\n", row, column, got, want);
            fail("gated", column);
        }
    }
}

// One segment behind another's row, by clusters of so many blocks.
static void check_norm(u32 width, u32 rank, u32 rows, u32 blocks) {
    LoraLongNormParams p = {};
    const Elements b = some(size_t{width} * rank, 1.0f);
    p.entries[0] = {{b.data(), rank, 8}, 0, width, 1, rows, 16, rank + 8};
    std::vector<float> h(16 + size_t{rows} * (rank + 8)), weight(width);
    for (float& value : h) value = any();
    for (float& value : weight) value = any();
    const Elements old = some(size_t{rows + 1} * width, 1.0f);
    Elements sum = old, out = old;
    p.h = h.data(), p.residual = sum.data(), p.weight = weight.data(), p.hidden = out.data();
    p.width = width, p.eps = 1e-5f;
    blockIdx.y = 0;
    device.of_cluster = blocks;
    launch(divide_up(rows, norm::ROWS) * blocks, norm::THREADS, [&] {
        switch (blocks) {
            case 1: return norm::lora_long_norm_1(p);
            case 2: return norm::lora_long_norm_2(p);
            case 4: return norm::lora_long_norm_4(p);
            case 8: return norm::lora_long_norm_8(p);
        }
    });
    device.of_cluster = 1;
    for (u32 row = 1; row <= rows; row++) {
        std::vector<double> wants(width);
        double squares = 0.0;
        for (u32 column = 0; column < width; column++) {
            wants[column] = to_f32(old[size_t{row} * width + column]);
            for (u32 k = 0; k < rank; k++) {
                wants[column] += h[16 + size_t{row - 1} * (rank + 8) + 8 + k] * to_f32(b[size_t{column} * rank + k]);
            }
            squares += wants[column] * wants[column];
        }
        const double scale = 1.0 / sqrt(squares / width + 1e-5);
        for (u32 column = 0; column < width; column++) {
            const double got[2] = {to_f32(sum[size_t{row} * width + column]), to_f32(out[size_t{row} * width + column])};
            const double want[2] = {wants[column], wants[column] * scale * weight[column]};
            for (u32 i = 0; i < 2; i++) {
                if (fabs(got[i] - want[i]) <= 2e-2 * (1.0 + fabs(want[i]))) continue;
                printf("row %u, column %u is %f, not %f\n", row, column, got[i], want[i]);
                fail(i == 0 ? "residual" : "norm", column);
            }
        }
    }
}

int main(int, char** arguments) {
    device.chance.seed(std::stoul(arguments[1]));
    auto some_of = [](u32 inputs, u32 ranks, u32 column, u32 rows) {
        return LongShrink{nullptr, inputs, ranks, column, 0, rows, 0, 0, 0};
    };
    check_shrink(712, {some_of(712, 48, 0, 150), some_of(64, 8, 128, 64), some_of(712, 64, 0, 65)});
    check_shrink(1024, {some_of(512, 16, 512, 70), some_of(1024, 24, 0, 1)});
    auto columns_of = [](u32 column, u32 columns, u32 rank, u32 rows) {
        return LongExpand{{nullptr, rank, 0}, column, columns, 0, rows, 0, 0};
    };
    check_expand(704, {columns_of(0, 704, 16, 130), columns_of(128, 64, 8, 40)});
    check_expand(192, {columns_of(64, 128, 64, 140), columns_of(0, 192, 24, 1)});
    check_gated(576, {16, 24}, 140);
    check_gated(64, {64, 8}, 3);
    check_gated(576, {16, 8}, 140);
    check_gated(64, {8, 16}, 3);
    check_norm(2176, 16, 67, 4);
    check_norm(128, 8, 1, 1);
    check_norm(1280, 8, 35, 2);
    check_norm(8192, 16, 33, 8);
    printf("lora_long_*.cu and lora_gated.cu are right, seed %s\n", arguments[1]);
}
