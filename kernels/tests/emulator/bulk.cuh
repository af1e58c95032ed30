// The host's twin of kernels/cuda/bulk.cuh: copies that run by themselves land in any order, and a
// thread that waits for the wrong phase of a barrier waits for ever, as on a GPU.
#pragma once

#include "mma.cuh"
#include "params.cuh"

constexpr u32 BOX_WIDTH = 64, BOX_ROW_BYTES = 128;

inline u32 place_in_box(u32 row, u32 part) {
    return row * BOX_ROW_BYTES + (part ^ row % 8) * 16;
}

inline u32 warp_of_block() { return threadIdx.x / 32; }
inline bool elect_lane() { return threadIdx.x % 32 == 0; }
inline void prefetch_map(const TensorMap&) {}
inline void show_barriers() {}

inline void init_barrier(u32 barrier, u32 arrivals) {
    device.own().barriers[barrier] = {0, arrivals, arrivals, 0};
}

inline void announce(u32 barrier, u32 bytes) {
    PhaseBarrier& own = device.own().barriers.at(barrier);
    if (own.left == 0) fail("more arrivals than a phase has, at", barrier);
    own.bytes += bytes, own.left--;
    own.check();
}

inline void arrive(u32 barrier) { announce(barrier, 0); }

inline bool is_over(u32 barrier, u32 parity) {
    give_way();
    return device.own().barriers.at(barrier).phase % 2 != parity;
}

inline void wait_phase(u32 barrier, u32 parity) {
    const PhaseBarrier& own = device.own().barriers.at(barrier);
    wait_until("a phase at " + std::to_string(barrier), [&] { return own.phase % 2 != parity; });
}

inline uint4 load_16(u32 at, bool exists) {
    uint4 words = {};
    if (exists && at % 16 != 0) fail("16 bytes at", at);
    if (exists) memcpy(&words, shared_bytes(at), 16);
    return words;
}

inline float load_one(u32 at) {
    Element element;
    memcpy(&element, shared_bytes(at), sizeof(element));
    return to_f32(element);
}

// Reads when it is issued, or when it lands: both may happen.
inline void start_copy(u32 bytes, u32 barrier, std::function<void()> land) {
    const unsigned long due = device.tick + 1 + device.chance() % device.slowest_copy;
    device.own().copies.push_back({due, bytes, barrier, std::move(land)});
}

inline void copy_bytes_once(u32 to, const void* from, u32 bytes, u32 barrier) {
    if (bytes % 16 != 0 || to % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
        fail("a copy is not of multiples of 16 bytes", bytes);
    }
    unsigned char* target = shared_bytes(to);
    start_copy(bytes, barrier, [=] { memcpy(target, from, bytes); });
}

// What stands in a TensorMap here.
struct Matrix {
    const Element* elements;  // [parts, rows, columns]
    u32 parts, rows, columns;
    u32 box_rows, boxes, box_parts;  // copied at once
};
static_assert(sizeof(Matrix) <= sizeof(TensorMap), "a matrix takes the place of a map");

inline void copy_boxes(u32 to, const TensorMap& map, u32 row, u32 part, u32 box, u32 barrier) {
    const Matrix from = reinterpret_cast<const Matrix&>(map);
    if (to % 1024 != 0) fail("a box at", to);
    unsigned char* target = shared_bytes(to);
    start_copy(from.boxes * from.box_parts * from.box_rows * BOX_ROW_BYTES, barrier, [=] {
        u32 line = 0;
        for (u32 k = 0; k < from.boxes; k++) {
            for (u32 p = part; p < part + from.box_parts; p++) {
                for (u32 r = row; r < row + from.box_rows; r++, line++) {
                    for (u32 i = 0; i < 8; i++) {
                        const u32 column = (box + k) * BOX_WIDTH + i * 8;
                        unsigned char* place = target + place_in_box(line, i);
                        memset(place, 0, 16);
                        if (p >= from.parts || r >= from.rows || column >= from.columns) continue;
                        const size_t at = (size_t{p} * from.rows + r) * from.columns + column;
                        memcpy(place, from.elements + at, 16);
                    }
                }
            }
        }
    });
}

inline void copy_boxes(u32 to, const TensorMap& map, u32 row, u32 box, u32 barrier) {
    copy_boxes(to, map, row, 0, box, barrier);
}

inline void copy_boxes_once(u32 to, const TensorMap& map, u32 row, u32 box, u32 barrier) {
    copy_boxes(to, map, row, box, barrier);
}
