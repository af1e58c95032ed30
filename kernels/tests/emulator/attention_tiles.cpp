// attention_tiles.cu and attention_groups.cu.
#include "device.h"

#define ELEMENT_BF16
#include "elements.h"
#include "attention_tiles.cuh"
#include <wgmma.cuh>

namespace tiles {
#include "attention_tiles.cu"
}
namespace groups {
#include "attention_groups.cu"
}

constexpr u32 BLOCK_TOKENS = 16;

// Sequences that have some positions in the cache, of which the last are this step's rows.
struct Sequence {
    u32 seen, rows;
};

template <int DIM>
static void check(bool in_groups, const std::vector<Sequence>& sequences, u32 query_heads, u32 key_heads,
                  u32 window) {
    std::vector<Span> spans;
    std::vector<u32> positions, blocks, work;
    u32 rows = 0, most = 0;
    for (u32 i = 0; i < sequences.size(); i++) {
        const auto [seen, own] = sequences[i];
        spans.push_back({rows, own, static_cast<u32>(blocks.size())});
        for (u32 row = 0; row < own; row++) positions.push_back(seen - own + row);
        // Blocks of a sequence lie anywhere, here from the last to the first.
        const u32 count = divide_up(seen, BLOCK_TOKENS);
        for (u32 block = 0; block < count; block++) blocks.push_back(most + count - 1 - block);
        for (u32 row = 0; row < own; row += 128) work.push_back(i), work.push_back(rows + row);
        rows += own, most += count;
    }
    const u32 fused = (query_heads + 2 * key_heads) * DIM;
    const Elements qkv = some(size_t{rows} * fused, 1.0f);
    Elements keys = some(size_t{most} * key_heads * BLOCK_TOKENS * DIM, 1.0f), values = keys;
    for (Element& value : values) from_f32(value, any());
    Elements out(size_t{rows} * query_heads * DIM);
    AttentionParams p = {};
    p.index = {nullptr, positions.data(), nullptr, spans.data(), blocks.data()};
    p.qkv = qkv.data(), p.keys = keys.data(), p.values = values.data(), p.out = out.data();
    p.work = work.data(), p.query_heads = query_heads, p.key_heads = key_heads, p.dim = DIM;
    p.block_tokens = BLOCK_TOKENS, p.window = window, p.scale = 0.3f * 1.442695f;
    for (blockIdx.y = 0; blockIdx.y < work.size() / 2; blockIdx.y++) {
        blockIdx.z = 0;
        if constexpr (DIM == 64 || DIM == 128) {
            if (in_groups) launch(query_heads, groups::THREADS, [&] { groups::attend<DIM>(p); });
        }
        for (; !in_groups && blockIdx.z < 128 / tiles::Shape<DIM>::ROWS; blockIdx.z++) {
            launch(query_heads, tiles::THREADS, [&] { tiles::attend<DIM>(p); });
        }
    }
    for (u32 row = 0, i = 0; row < rows; row++) {
        if (row == spans[i].row + spans[i].rows) i++;
        for (u32 head = 0; head < query_heads; head++) {
            const Element* query = qkv.data() + size_t{row} * fused + head * DIM;
            std::vector<double> want(DIM);
            double total = 0.0;
            for (u32 key = 0; key <= positions[row]; key++) {
                if (window > 0 && key + window <= positions[row]) continue;
                const u32 block = blocks[spans[i].blocks + key / BLOCK_TOKENS];
                const u32 of = head / (query_heads / key_heads);
                const size_t at = ((size_t{block} * key_heads + of) * BLOCK_TOKENS + key % BLOCK_TOKENS) * DIM;
                double score = 0.0;
                for (u32 d = 0; d < DIM; d++) score += to_f32(query[d]) * to_f32(keys[at + d]);
                const double weight = exp(score * 0.3);
                total += weight;
                for (u32 d = 0; d < DIM; d++) want[d] += weight * to_f32(values[at + d]);
            }
            for (u32 d = 0; d < DIM; d++) {
                const double got = to_f32(out[(size_t{row} * query_heads + head) * DIM + d]);
                if (fabs(got - want[d] / total) <= 2e-2) continue;
                printf("row %u, head %u, %u of %d is %f, not %f\n", row, head, d, DIM, got, want[d] / total);
                fail("attention", row);
            }
        }
    }
}

int main(int, char** arguments) {
    device.chance.seed(std::stoul(arguments[1]));
    for (const bool in_groups : {false, true}) {
        check<64>(in_groups, {{150, 150}, {70, 9}}, 4, 2, 0);
        check<128>(in_groups, {{131, 130}, {40, 3}}, 2, 1, 0);
        check<128>(in_groups, {{100, 37}}, 2, 2, 33);
    }
    check<256>(false, {{90, 80}}, 2, 1, 0);
    printf("attention_tiles.cu and attention_groups.cu are right, seed %s\n", arguments[1]);
}
