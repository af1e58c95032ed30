// What every kernel is told: one struct a kernel, laid out like its twin in kernels/src/cuda.
// Pointers come first so that no struct has padding in the middle; both sides assert the sizes.
#pragma once

#include "chain.cuh"
#include "element.cuh"

// The rows of one sequence, and where its block table starts in `Index::blocks`.
struct Span {
    u32 row, rows, blocks;
};
static_assert(sizeof(Span) == 12, "kernels/src/cuda/step.rs has the twin");

// Consecutive rows that use the adapter of one slot; of decode no more than 8.
struct Segment {
    u32 slot, row, rows;
};
static_assert(sizeof(Segment) == 12, "kernels/src/cuda/step.rs has the twin");

constexpr u32 PADDING = ~0u, NO_SLOT = ~0u;

// On a token that is not known to the host: the rest is its place among those that the step before
// drew.
constexpr u32 PENDING = 1u << 31;

// A batch's index data on the device.
struct Index {
    const u32* tokens;     // [rows]
    const u32* positions;  // [rows], PADDING where a row is none of the batch's
    const u32* row_span;   // [rows]: which span a row belongs to
    const Span* spans;
    const u32* blocks;
};
static_assert(sizeof(Index) == 40, "kernels/src/cuda/step.rs has the twin");

struct EmbedParams {
    const Element* table;  // [table_rows, width]
    const u32* tokens;
    const u32* drawn;  // by the step before
    Element* out;      // [rows, width], a block each
    u32 first, table_rows, width;
};
static_assert(sizeof(EmbedParams) == 48, "kernels/src/cuda/embed.rs has the twin");

struct PickRowsParams {
    const Element* x;
    const u32* picked;
    Element* out;  // [picked, width], a block each
    u32 width;
};
static_assert(sizeof(PickRowsParams) == 32, "kernels/src/cuda/pick_rows.rs has the twin");

struct RmsNormParams {
    const Element* x;
    const float* weight;  // [width]
    Element* out;         // [rows, width], a block each
    u32 width;
    float eps;
};
static_assert(sizeof(RmsNormParams) == 32, "kernels/src/cuda/rms_norm.rs has the twin");

struct AddRmsNormParams {
    Element* residual;    // [rows, width], a block each
    const float* weight;  // [width]
    Element* hidden;      // [rows, width]: added, and then the result
    u32 width;
    float eps;
};
static_assert(sizeof(AddRmsNormParams) == 32, "kernels/src/cuda/add_rms_norm.rs has the twin");

struct RoundParams {
    const float* from;
    Element* to;
    u64 elements;
};
static_assert(sizeof(RoundParams) == 24, "kernels/src/cuda/round.rs has the twin");

struct SiluMulParams {
    const Element* gate_up;  // [rows, 2 * width]
    Element* out;            // [rows, width]
    u32 width;
};
static_assert(sizeof(SiluMulParams) == 24, "kernels/src/cuda/silu_mul.rs has the twin");

struct HeadNormParams {
    Element* qkv;          // [rows, (query_heads + 2 * key_heads) * dim]
    const float* queries;  // [dim]
    const float* keys;     // [dim]
    u32 query_heads, key_heads, dim;
    float eps;
};
static_assert(sizeof(HeadNormParams) == 40, "kernels/src/cuda/head_norm.rs has the twin");

// Narrower types that an f32 cache may stand for.
constexpr u32 STANDS_FOR_F16 = 1, STANDS_FOR_BF16 = 2;

struct RopeKvStoreParams {
    Index index;
    Element* qkv;
    const float* table;  // [positions, dim]: cosines, then sines
    Element* keys;       // [blocks, heads, block_tokens, dim], and so are the values
    Element* values;
    u32 query_heads, key_heads, dim, block_tokens, stands_for;
};
static_assert(sizeof(RopeKvStoreParams) == 96, "kernels/src/cuda/rope_kv_store.rs has the twin");


// A matrix in device memory, perhaps in parts below each other, and the boxes of it that one bulk copy
// brings: the same rows of every part, and several boxes side by side. Made by the driver
// (`cuTensorMapEncodeTiled`).
struct alignas(128) TensorMap {
    u64 words[16];
};

constexpr u32 TARGETS_MAX = 8;

// One local pair in device memory. A shrink rank of 0 marks a target without a pair.
struct alignas(16) LoraPair {
    const Element* a;  // [shrink_rank, input / a_blocks]
    const Element* b;  // [outputs, expand_rank / b_blocks]
    u32 shrink_rank, expand_rank, a_blocks, b_blocks;
    u32 output, outputs;  // columns of the site's output row
    u32 exchange;
    u32 h;  // where its shrunk activations start in those of a row with the same exchange
};
static_assert(sizeof(LoraPair) == 48, "kernels/src/cuda/lora.rs has the twin");

// Up to 8 rows of one A, of one diagonal block; none where `rows` is 0.
struct alignas(16) ShrinkTile {
    const Element* a;  // [rows, inputs]
    u32 inputs;
    u32 input;  // where they start in the site's input row
    u32 h;      // column of the shrunk activations
    u32 rows;
};
static_assert(sizeof(ShrinkTile) == 32, "kernels/src/cuda/lora_decode/table.rs has the twin");

// What adapters add to a product of few rows, and where in shared memory it is computed, in bytes from
// a multiple of 1024.
struct AdaptersParams {
    const LoraPair* pairs;  // [slots, targets]
    const Segment* segments;
    const u32* segment_count;
    float* h;        // [splits, rows, h_stride], rows a multiple of 16 bytes
    Word* told;      // by shrink, that x is there; or null where that has ended
    Pool* pool;      // of what the product shrinks itself; or null where another kernel does it
    const Element* x;          // [rows, inputs], for that
    const ShrinkTile* shrink;  // [slots, shrink_tiles]
    u32 shrink_tiles;
    u32 targets, splits, h_stride;
    u32 pieces, known, shrunk, ring, sums;  // of B; of A; h; A, then B; what is added to the tile
    u32 slot_bytes;  // of the ring
    u32 columns;     // of a tile that a block adds to, at most
    u32 padding;
};
static_assert(sizeof(AdaptersParams) == 112, "kernels/src/cuda/beside.rs has the twin");

constexpr u32 SQUARES_MAX = 160;  // blocks that have some of a row's outputs

// The norm behind a product, as far as a block can do it: the residual stream takes up the result, and
// `out` is what it then holds, times the norm's weight.
struct TakenUpParams {
    Element* residual;    // [rows, outputs], or null where nothing is taken up
    const float* weight;  // [outputs]
    float* squares;       // [rows, SQUARES_MAX]: sums of what blocks have of a row
};

// What that leaves to the product behind it: its results lack their row's factor, 1 / sqrt(mean + eps).
struct FactorsParams {
    const float* squares;  // [rows, SQUARES_MAX], or null where no factors are left
    u32 count;             // of a row's
    float eps;
};
static_assert(sizeof(TakenUpParams) == 24 && sizeof(FactorsParams) == 16,
              "kernels/src/cuda/factors.rs has the twins");

struct GemmStreamParams {
    TensorMap weight;  // [parts, outputs, inputs], boxes of `tile` rows of all parts together
    TensorMap x;       // [rows, inputs], boxes of as many rows as the kernel takes
    const void* bias;  // [outputs], or null; of the type of `out`
    void* out;         // [splits, rows, outputs]
    AdaptersParams adapters;
    TakenUpParams taken_up;
    FactorsParams factors;
    u32 rows, inputs, outputs;
    u32 full;    // whether `out` is f32
    u32 parts;   // 2 for a gate and what it lets through: out is silu(gate) * up
    u32 splits;  // of the inputs: as many blocks share a tile, and whoever reads `out` adds them up
    u32 tile;    // rows of the weight that a block takes at once: a multiple of 8
    u32 tiles;   // of the weight
    u32 chunks;  // of the inputs: what a stage of the ring has of them
    u32 boxes;   // of each operand in a stage
    u32 stages;  // of the ring
    u32 flight;         // stages whose weights are under way at once
    u32 flight_beside;  // the same while the kernels before this one are at work
    u32 team;    // warps that have a tile's outputs among them: 1, 2, 4 or 8
    u32 teams;   // that take stages in turn, whose number is a multiple of theirs
    u32 ring;    // where in shared memory the ring is, in bytes from a multiple of 1024
    u32 sums;    // and the warps' sums
};
static_assert(sizeof(GemmStreamParams) == 512, "kernels/src/cuda/gemm_stream.rs has the twin");

struct AttentionParams {
    Index index;
    const Element* qkv;
    const float* shares;  // [splits, rows, fused], whose sum is `qkv`; where there are splits
    const float* table;  // angles, where queries and keys are still to be rotated; or null
    Element* keys;
    Element* values;
    Element* out;    // [rows, query_heads * dim]
    const u32* work;  // what each block works on; see the kernels
    float* partials;  // [work, key heads, parts, chunks, heads of a part, 2 + dim]
    u32* arrivals;    // [work, key heads, parts], zero between launches
    u32 query_heads, key_heads, dim, block_tokens;
    u32 window;  // 0 sees everything
    float scale;  // of products, for powers of two
    u32 first;    // the first row where `work` is null
    u32 rows, splits;
};
static_assert(sizeof(AttentionParams) == 152, "kernels/src/cuda/attention.rs has the twin");

// Shrunk columns of one row of a slot, by exchange.
struct LoraWidths {
    u32 of[3];
};
static_assert(sizeof(LoraWidths) == 12, "kernels/src/cuda/lora.rs has the twin");

struct LoraParams {
    const LoraPair* pairs;     // [slots, targets]
    const LoraWidths* widths;  // [slots]
    const Segment* segments;
    const Element* x;  // shrink: [rows, width]
    Element* y;        // expand: [rows, width]
    float* h;
    u32 segment_count, targets, width, exchange;
    u32 h_stride;  // expand: floats that it keeps of one row's shrunk activations
    u32 first;     // of the segments that this launch takes, grid y of them
};
static_assert(sizeof(LoraParams) == 72, "kernels/src/cuda/lora.rs has the twin");

struct LoraDecodeParams {
    const ShrinkTile* shrink;  // [slots, shrink_tiles]
    const LoraPair* pairs;     // [slots, targets]
    const Segment* segments;
    const u32* segment_count;
    const Element* x;  // shrink: [rows, width]
    const Element* y;  // expand: [rows, width], or null; gated: [rows, 2, width]
    Element* out;      // [rows, width]; of expand, y itself where there is one
    float* h;          // [splits, rows, h_stride]
    Word* told;        // shrink: where to say that x is there, or null
    u32 rows, width, h_stride, splits, shrink_tiles, targets;
    u32 columns;  // expand: of a tile
    u32 staged;   // expand: shrunk activations of a row that there is room for
    u32 tile_end[TARGETS_MAX];       // expand: tiles up to the end of a target; gated: of both
    u32 target_column[TARGETS_MAX];  // where a target starts in the site's output row
};
static_assert(sizeof(LoraDecodeParams) == 168, "kernels/src/cuda/lora_decode.rs has the twin");

struct LoraRowsParams {
    LoraParams lora;
    const ShrinkTile* shrink;  // [slots, shrink_tiles]
    const Element* x;          // shrink: [rows, width]
    u32 width, shrink_tiles;
};
static_assert(sizeof(LoraRowsParams) == 96, "kernels/src/cuda/lora_rows.rs has the twin");

constexpr u32 GATED_SEGMENTS_MAX = 16, LONG_ENTRIES_MAX = 32, LONG_RANKS_MAX = 64;

// B of a pair at a long segment, or of one of its diagonal blocks.
struct LongPair {
    const Element* b;  // [columns, rank]
    u32 rank;
    u32 h;  // column of the shrunk activations
};

struct GatedSegment {
    LongPair pairs[2];  // of a gate, and of what it lets through
    u32 row, rows;
    u32 h;      // where its shrunk activations start
    u32 width;  // of one row of them
};
static_assert(sizeof(GatedSegment) == 48, "kernels/src/cuda/lora_gated.rs has the twin");

struct LoraGatedParams {
    const float* h;
    const Element* gate_up;  // [rows, 2 * width]
    Element* out;            // [rows, width]
    u32 width;
    GatedSegment segments[GATED_SEGMENTS_MAX];
};
static_assert(sizeof(LoraGatedParams) == 800, "kernels/src/cuda/lora_gated.rs has the twin");

// Some lora ranks of a long segment, or of one of its diagonal blocks.
struct LongShrink {
    const Element* a;  // [ranks, inputs]
    u32 inputs, ranks;
    u32 column;  // of x, where its inputs start
    u32 row, rows;
    u32 h, width;  // where its shrunk activations start, and how far apart its rows of them are
    u32 padding;
};
static_assert(sizeof(LongShrink) == 40, "kernels/src/cuda/lora_long_shrink.rs has the twin");

struct LoraLongShrinkParams {
    const Element* x;  // [rows, width]
    float* h;
    u32 width, padding;
    LongShrink entries[LONG_ENTRIES_MAX];
};
static_assert(sizeof(LoraLongShrinkParams) == 1304, "kernels/src/cuda/lora_long_shrink.rs has the twin");

// Columns of y that one pair adds to, in a long segment.
struct LongExpand {
    LongPair pair;
    u32 column, columns;
    u32 row, rows;
    u32 h, width;  // where its shrunk activations start, and how far apart its rows of them are
};
static_assert(sizeof(LongExpand) == 40, "kernels/src/cuda/lora_long_expand.rs has the twin");

struct LoraLongExpandParams {
    const float* h;
    Element* y;  // [rows, width]
    u32 width, padding;
    LongExpand entries[LONG_ENTRIES_MAX];
};
static_assert(sizeof(LoraLongExpandParams) == 1304, "kernels/src/cuda/lora_long_expand.rs has the twin");

struct LoraLongNormParams {
    const float* h;
    Element* residual;  // [rows, width], and so is `hidden`
    const float* weight;
    Element* hidden;
    u32 width;
    float eps;
    LongExpand entries[LONG_ENTRIES_MAX];  // all columns
};
static_assert(sizeof(LoraLongNormParams) == 1320, "kernels/src/cuda/lora_long_norm.rs has the twin");

// How a row's token is drawn: kernels/src/sampling/device.rs has the twin. All zeros ask for the
// largest logit.
struct Draw {
    double share;  // of the whole, in [0, 1): the token at which the running sum of weights passes it
    float temperature, top_p, min_p;
    u32 top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    u32 edits;  // where they start, in words from this draw on
    u32 edit_count;
    u32 padding;
};
static_assert(sizeof(Draw) == 48, "kernels/src/sampling/device.rs has the twin");

// What is said about one token.
struct Edit {
    u32 token;
    float bias;
    u32 count;  // how often it is in the output
    u32 flags;
};
static_assert(sizeof(Edit) == 16, "kernels/src/sampling/device.rs has the twin");

constexpr u32 EDIT_BANNED = 1, EDIT_SEEN = 2;

struct ChooseParams {
    float* logits;  // [parts, rows, part_width]
    u32* tokens;    // [rows], a block each
    const Draw* draws;
    u32 rows, part_width, vocab;
};
static_assert(sizeof(ChooseParams) == 40, "kernels/src/cuda/sample.rs has the twin");

// Bounds of collectives over peer memory; kernels/src/cuda/peer.rs has the twins.
constexpr u32 PEER_RANKS_MAX = 8, PEER_BLOCKS_MAX = 32, PEER_THREADS = 512;
constexpr u64 PEER_FLAGS_BYTES = 4096, PEER_AREA_BYTES = PEER_FLAGS_BYTES + (12ull << 20);

// What a rank writes to `stop` when it has waited too long.
constexpr u32 PEER_TIMED_OUT = 2;

struct PeerParams {
    unsigned char* areas[PEER_RANKS_MAX];  // by rank; see peer.cuh
    u32* epochs;                           // [PEER_BLOCKS_MAX], this rank's own
    u32* stop;                             // in host memory: not zero when the group is given up
    const void* in;
    void* out;
    u64 elements;  // of one rank
    u64 timeout;   // ns
    u32 rank, ranks, two_shots;
};
static_assert(sizeof(PeerParams) == 128, "kernels/src/cuda/peer.rs has the twin");

struct PeerReduceNormParams {
    PeerParams peer;      // `in` and `out` are hidden, [rows, width]
    Element* residual;    // [rows, width]
    const float* weight;  // [width]
    u32 width;
    float eps;
};
static_assert(sizeof(PeerReduceNormParams) == 152,
              "kernels/src/cuda/peer_reduce_norm.rs has the twin");
