// attention_decode.cu, with and without rows' own keys and values still to be rotated and kept.
#include "device.h"

#include <algorithm>

#define ELEMENT_BF16
#include "elements.h"
#include "attention_decode.cu"

constexpr u32 BLOCK_TOKENS = 16, PARTIALS = 8 * CHUNKS_MAX * (2 + 256);
constexpr float SCALE = 0.3f;

struct Shape {
    u32 query_heads, key_heads, window;
    std::vector<u32> seen;  // by each row, its own position included
};

// A cache whose blocks lie anywhere, here from the last to the first, and one row of each sequence.
template <int DIM>
struct Batch {
    Shape shape;
    std::vector<Span> spans;
    std::vector<u32> positions, row_span, blocks, arrivals;
    Elements qkv, keys, values, out;
    std::vector<float> shares, angles, partials;
    u32 splits = 0;

    explicit Batch(const Shape& shape) : shape(shape) {
        u32 most = 0;
        for (u32 row = 0; row < shape.seen.size(); row++) {
            const u32 count = divide_up(shape.seen[row], BLOCK_TOKENS);
            spans.push_back({row, 1, most}), row_span.push_back(row);
            positions.push_back(shape.seen[row] - 1);
            for (u32 block = 0; block < count; block++) blocks.push_back(most + count - 1 - block);
            most += count;
        }
        const u32 last = *std::max_element(positions.begin(), positions.end());
        const size_t kept = size_t{most} * shape.key_heads * BLOCK_TOKENS * DIM;
        qkv = some(positions.size() * fused(), 1.0f), keys = some(kept, 1.0f), values = some(kept, 1.0f);
        out.resize(positions.size() * shape.query_heads * DIM);
        for (u32 i = 0; i < (last + 1) * DIM; i++) {
            const double angle = (i / DIM) * pow(10000.0, -2.0 * (i % (DIM / 2)) / DIM);
            angles.push_back(i % DIM < DIM / 2 ? cos(angle) : sin(angle));
        }
        const u32 parts = shape.key_heads * divide_up(group(), HEADS);
        partials.assign(positions.size() * parts * PARTIALS, NAN);
        arrivals.assign(positions.size() * parts, 0);
    }

    // Has queries, keys and values in splits, whose sums are exact.
    void split(u32 count) {
        splits = count;
        for (u32 i = 0; i < count; i++) {
            for (const Element whole : qkv) {
                const float part = std::ldexp(std::round(to_f32(whole) * 8), -3);
                shares.push_back(i == 0 ? to_f32(whole) - part * (count - 1) : part);
            }
        }
    }

    u32 group() const { return shape.query_heads / shape.key_heads; }
    u32 fused() const { return (shape.query_heads + 2 * shape.key_heads) * DIM; }

    size_t place(u32 row, u32 position, u32 head) const {
        const u32 block = blocks[spans[row].blocks + position / BLOCK_TOKENS];
        return ((size_t{block} * shape.key_heads + head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * DIM;
    }

    // A head of a row of `qkv`, rotated.
    Elements rotated(u32 row, u32 head) const {
        const Element* from = qkv.data() + size_t{row} * fused() + head * DIM;
        const float* by = angles.data() + size_t{positions[row]} * DIM;
        Elements to(DIM);
        for (u32 i = 0; i < DIM / 2; i++) {
            const float x = to_f32(from[i]), y = to_f32(from[DIM / 2 + i]);
            from_f32(to[i], x * by[i] - y * by[DIM / 2 + i]);
            from_f32(to[DIM / 2 + i], y * by[i] + x * by[DIM / 2 + i]);
        }
        return to;
    }

    AttentionParams params(bool rotates) {
        AttentionParams p = {};
        p.index = {nullptr, positions.data(), row_span.data(), spans.data(), blocks.data()};
        if (splits > 0) p.shares = shares.data(), p.splits = splits;
        if (splits == 0) p.qkv = qkv.data();
        p.rows = positions.size(), p.table = rotates ? angles.data() : nullptr;
        p.keys = keys.data(), p.values = values.data(), p.out = out.data();
        p.partials = partials.data(), p.arrivals = arrivals.data();
        p.query_heads = shape.query_heads, p.key_heads = shape.key_heads, p.dim = DIM;
        p.block_tokens = BLOCK_TOKENS, p.window = shape.window, p.scale = SCALE * 1.442695f;
        return p;
    }
};

// Keeps all rows' own keys, rotated, and values in the cache.
template <int DIM>
static void keep_all(Batch<DIM>& batch) {
    const Shape& shape = batch.shape;
    for (u32 row = 0; row < batch.positions.size(); row++) {
        for (u32 head = 0; head < shape.key_heads; head++) {
            const u32 of_row = shape.query_heads + head;
            const Elements key = batch.rotated(row, of_row);
            const Element* value = &batch.qkv[row * batch.fused() + (of_row + shape.key_heads) * DIM];
            const size_t at = batch.place(row, batch.positions[row], head);
            memcpy(&batch.keys[at], key.data(), DIM * sizeof(Element));
            memcpy(&batch.values[at], value, DIM * sizeof(Element));
        }
    }
}

// Leaves NaN where rows will keep their own.
template <int DIM>
static void forget_all(Batch<DIM>& batch) {
    for (u32 row = 0; row < batch.positions.size(); row++) {
        for (u32 head = 0; head < batch.shape.key_heads; head++) {
            const size_t at = batch.place(row, batch.positions[row], head);
            memset(&batch.keys[at], 0xff, DIM * sizeof(Element));
            memset(&batch.values[at], 0xff, DIM * sizeof(Element));
        }
    }
}

// All rows' queries, as they meet the keys.
template <int DIM>
static Elements queries_of(const Batch<DIM>& batch, bool rotates) {
    Elements queries;
    for (u32 row = 0; row < batch.positions.size(); row++) {
        for (u32 head = 0; head < batch.shape.query_heads; head++) {
            const Element* from = &batch.qkv[row * batch.fused() + head * DIM];
            const Elements query = rotates ? batch.rotated(row, head) : Elements(from, from + DIM);
            queries.insert(queries.end(), query.begin(), query.end());
        }
    }
    return queries;
}

template <int DIM>
static void attend_all(Batch<DIM>& batch, bool rotates) {
    const AttentionParams p = batch.params(rotates);
    const Elements qkv = batch.qkv;
    const std::vector<float> shares = batch.shares;
    const auto size = qkv.size() * sizeof(Element);
    memset(batch.qkv.data(), 0xff, size);
    std::fill(batch.shares.begin(), batch.shares.end(), NAN);
    previous = [&] {
        memcpy(batch.qkv.data(), qkv.data(), size);
        std::copy(shares.begin(), shares.end(), batch.shares.begin());
    };
    const u32 parts = batch.shape.key_heads * divide_up(batch.group(), HEADS);
    for (blockIdx.z = 0; blockIdx.z < batch.positions.size(); blockIdx.z++) {
        const u32 chunks = divide_up(batch.positions[blockIdx.z] + 1, CHUNK_TILES_MIN * TILE);
        for (blockIdx.y = 0; blockIdx.y < parts; blockIdx.y++) {
            launch(chunks, THREADS, [&] {
                gridDim.y = parts;
                attend<DIM>(p);
            });
        }
    }
}

// Against what the cache holds by now, for queries that are rotated if they are to be.
template <int DIM>
static void hold_to_answer(const Batch<DIM>& batch, const Elements& queries) {
    for (u32 row = 0; row < batch.positions.size(); row++) {
        for (u32 head = 0; head < batch.shape.query_heads; head++) {
            const Element* query = &queries[(size_t{row} * batch.shape.query_heads + head) * DIM];
            std::vector<double> want(DIM);
            double total = 0.0;
            for (u32 key = 0; key <= batch.positions[row]; key++) {
                if (batch.shape.window > 0 && key + batch.shape.window <= batch.positions[row]) continue;
                const size_t at = batch.place(row, key, head / batch.group());
                double score = 0.0;
                for (u32 d = 0; d < DIM; d++) score += to_f32(query[d]) * to_f32(batch.keys[at + d]);
                const double weight = exp(score * SCALE);
                total += weight;
                for (u32 d = 0; d < DIM; d++) want[d] += weight * to_f32(batch.values[at + d]);
            }
            for (u32 d = 0; d < DIM; d++) {
                const double got = to_f32(batch.out[(size_t{row} * batch.shape.query_heads + head) * DIM + d]);
                if (fabs(got - want[d] / total) <= 2e-2) continue;
                printf("row %u, head %u, %u of %d is %f, not %f\n", row, head, d, DIM, got, want[d] / total);
                fail("attention", row);
            }
        }
    }
}

template <int DIM>
static void check(const Shape& shape, bool rotates, u32 splits = 0) {
    Batch<DIM> batch(shape);
    if (splits > 0) batch.split(splits);
    Batch<DIM> kept = batch;
    if (rotates) keep_all(kept), forget_all(batch);
    attend_all(batch, rotates);
    for (size_t i = 0; i < kept.keys.size(); i++) {
        if (memcmp(&kept.keys[i], &batch.keys[i], sizeof(Element))) fail("a key", i);
        if (memcmp(&kept.values[i], &batch.values[i], sizeof(Element))) fail("a value", i);
    }
    hold_to_answer(batch, queries_of(kept, rotates));
}

int main(int, char** arguments) {
    device.chance.seed(std::stoul(arguments[1]));
    for (const bool rotates : {true, false}) {
        check<64>({8, 2, 0, {1, 16, 33, 200}}, rotates);
        check<128>({8, 1, 0, {17, 32, 150, 209}}, rotates);
        check<128>({9, 1, 0, {385, 60}}, rotates);
        check<128>({4, 2, 40, {300, 41}}, rotates);
        check<256>({4, 2, 0, {31, 193}}, rotates);
    }
    check<128>({8, 1, 0, {17, 150, 209}}, true, 6);
    check<64>({8, 2, 0, {1, 200}}, true, 2);
    check<96>({4, 2, 0, {31, 210}}, false);
    printf("attention_decode.cu is right, seed %s\n", arguments[1]);
}
