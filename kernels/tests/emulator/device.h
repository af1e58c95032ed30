// What a kernel finds around it, on a host without a GPU: threads of blocks that run at once, in an
// order that chance chooses, and what they do together. A thread is a fiber that gives way wherever
// it waits; if all wait for ever, what each one waits for is printed.
#pragma once

#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#define __device__
#define __global__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define __cluster_dims__(...)
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};

[[noreturn]] inline void fail(const char* why, unsigned long value = 0) {
    printf("%s (%lu)\n", why, value);
    exit(1);
}

// Threads that meet: all of a warp or of a block, each of which may bring something.
struct Meeting {
    unsigned size = 0, arrived = 0, generation = 0;
    void* brought[1024];
};

struct NamedBarrier {
    unsigned arrived = 0, generation = 0;
};

// A barrier in shared memory: its phase ends when all arrivals and all announced bytes are there.
struct PhaseBarrier {
    unsigned phase = 0, arrivals = 0, left = 0;
    long bytes = 0;

    void check() {
        if (left == 0 && bytes == 0) phase++, left = arrivals;
    }
};

// A copy that runs by itself: it lands when its time has come.
struct OneCopy {
    unsigned long due;
    unsigned bytes, barrier;
    std::function<void()> land;
};

constexpr unsigned SHARED_BYTES = 228 << 10, POISON = 0xff;

struct OneBlock {
    std::array<Meeting, 32> warps;
    std::array<Meeting, 8> groups;  // of four warps
    Meeting all;
    std::map<unsigned, NamedBarrier> named;
    NamedBarrier cluster;  // of the cluster whose first block this is
    std::map<unsigned, PhaseBarrier> barriers;
    std::vector<OneCopy> copies;
    unsigned char* shared;
};

struct OneThread {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    std::string waits_for;
    std::vector<std::vector<std::function<void()>>> groups{1};  // of its copies; the last is open
};

struct Device {
    std::mt19937 chance{1};
    unsigned long tick = 0;
    unsigned slowest_copy = 50;
    std::vector<OneBlock> blocks;
    std::vector<OneThread> threads;  // [blocks, threads of a block]
    ucontext_t scheduler;
    std::function<void()> kernel;
    unsigned block = 0, thread = 0, of_block = 0;  // whose turn it is
    unsigned of_cluster = 1;                       // blocks of each

    OneBlock& own() { return blocks[block]; }
    OneThread& running() { return threads[block * of_block + thread]; }
};
inline Device device;

struct Dim {
    unsigned x, y, z;
};
inline Dim blockIdx, gridDim, blockDim;
struct ThreadIdx {
    struct {
        operator unsigned() const { return device.thread; }
    } x;
};
static ThreadIdx threadIdx;

// What kernels declare, each array at a place of its own, behind what a block was launched with.
inline unsigned static_end = 206 << 10;
template <class T>
unsigned static_place = (static_end += (sizeof(T) + 15) / 16 * 16) - (sizeof(T) + 15) / 16 * 16;
template <class T>
T& static_shared() {
    if (static_end > SHARED_BYTES) fail("too many arrays in shared memory", static_end);
    return *reinterpret_cast<T*>(device.own().shared + static_place<T>);
}

inline void give_way() {
    const unsigned block = device.block, thread = device.thread;
    swapcontext(&device.running().context, &device.scheduler);
    device.block = block, device.thread = thread, blockIdx.x = block;
}

template <class Condition>
void wait_until(const std::string& what, Condition condition) {
    device.running().waits_for = what;
    while (!condition()) give_way();
    device.running().waits_for = "";
}

// `together` does, for all, what the last one to come finds brought.
inline void meet(Meeting& meeting, unsigned place, void* own, void (*together)(void**)) {
    const unsigned generation = meeting.generation;
    meeting.brought[place] = own;
    if (++meeting.arrived == meeting.size) {
        if (together) together(meeting.brought);
        meeting.arrived = 0, meeting.generation++;
    }
    wait_until("its warp or block", [&] { return meeting.generation != generation; });
}

inline void with_warp(void* own, void (*together)(void**)) {
    meet(device.own().warps[device.thread / 32], device.thread % 32, own, together);
}

inline void __syncwarp() { with_warp(nullptr, nullptr); }
inline void __syncthreads() { meet(device.own().all, device.thread, nullptr, nullptr); }

inline void named_arrive(unsigned id, unsigned threads) {
    NamedBarrier& barrier = device.own().named[id];
    if (++barrier.arrived == threads) barrier.arrived = 0, barrier.generation++;
}

inline void named_sync(unsigned id, unsigned threads) {
    NamedBarrier& barrier = device.own().named[id];
    const unsigned generation = barrier.generation;
    named_arrive(id, threads);
    wait_until("barrier " + std::to_string(id), [&] { return barrier.generation != generation; });
}

template <class T>
struct Shuffled {
    T value, result;
    unsigned from;
};

template <class T>
T __shfl_sync(unsigned, T value, unsigned from) {
    Shuffled<T> own = {value, value, from % 32};
    with_warp(&own, [](void** all) {
        for (int lane = 0; lane < 32; lane++) {
            auto* own = static_cast<Shuffled<T>*>(all[lane]);
            own->result = static_cast<Shuffled<T>*>(all[own->from])->value;
        }
    });
    return own.result;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned apart) {
    return __shfl_sync(mask, value, device.thread % 32 ^ apart);
}

inline bool __any_sync(unsigned mask, bool value) {
    unsigned any = value;
    for (unsigned apart = 1; apart < 32; apart *= 2) any |= __shfl_xor_sync(mask, any, apart);
    return any != 0;
}

inline bool __all_sync(unsigned mask, bool value) { return !__any_sync(mask, !value); }

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
    return static_cast<std::common_type_t<A, B>>(a) < b ? a : b;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
    return static_cast<std::common_type_t<A, B>>(a) > b ? a : b;
}
inline int __clz(unsigned x) { return __builtin_clz(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __uint_as_float(unsigned x) {
    float value;
    memcpy(&value, &x, sizeof(value));
    return value;
}
inline float __int_as_float(int x) { return __uint_as_float(x); }
inline void __threadfence() {}
template <class T>
T __ldcg(const T* from) {
    return *from;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const unsigned long both = low | static_cast<unsigned long>(high) << 32;
    unsigned chosen = 0;
    for (int i = 0; i < 4; i++) chosen |= (both >> (selector >> i * 4 & 7) * 8 & 0xff) << i * 8;
    return chosen;
}
inline void atomicMin(unsigned* to, unsigned other) { *to = min(*to, other); }
inline void atomicMax(unsigned* to, unsigned other) { *to = max(*to, other); }
inline unsigned atomicAdd(unsigned* to, unsigned more) { return (*to += more) - more; }

// Rounded to nearest, ties to even.
inline unsigned short bf16_bits(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof(bits));
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline void begin_thread() {
    device.kernel();
    device.running().done = true;
    swapcontext(&device.running().context, &device.scheduler);
}

inline void land_copies(OneBlock& block) {
    for (size_t i = 0; i < block.copies.size();) {
        if (block.copies[i].due > device.tick) {
            i++;
            continue;
        }
        const OneCopy copy = block.copies[i];
        block.copies.erase(block.copies.begin() + i);
        copy.land();
        PhaseBarrier& barrier = block.barriers.at(copy.barrier);
        barrier.bytes -= copy.bytes;
        barrier.check();
    }
}

[[noreturn]] inline void tell_who_waits() {
    for (size_t i = 0; i < device.threads.size(); i += 32) {
        const OneThread& first = device.threads[i];
        const char* what = first.done ? "done" : first.waits_for.c_str();
        printf("block %zu, warp %zu: %s\n", i / device.of_block, i % device.of_block / 32, what);
    }
    fail("all wait");
}

// Runs every warp up to where it waits, in turn; now and then one is left out for a while.
inline bool run_a_round(std::vector<unsigned>& rests) {
    bool some_left = false;
    for (size_t i = 0; i < device.threads.size(); i++) {
        unsigned& rest = rests[i / 32];
        if (i % 32 == 0 && rest == 0 && device.chance() % 64 == 0) rest = device.chance() % 40;
        if (i % 32 == 0 && rest > 0) rest--;
        if (device.threads[i].done) continue;
        some_left = true;
        if (rest > 0) continue;
        device.block = i / device.of_block, device.thread = i % device.of_block;
        blockIdx.x = device.block;
        swapcontext(&device.scheduler, &device.threads[i].context);
    }
    return some_left;
}

// Runs a kernel on blocks that are all there at once, and whose shared memory holds NaN.
inline void launch(unsigned blocks, unsigned threads, std::function<void()> kernel) {
    constexpr unsigned ROUNDS_MAX = 200000, STACK_BYTES = 1 << 16;
    static std::vector<unsigned char> shared;
    shared.assign((blocks + 1) * size_t{SHARED_BYTES}, POISON);
    const size_t start = 1024 - reinterpret_cast<uintptr_t>(shared.data()) % 1024;
    device.kernel = std::move(kernel), device.of_block = threads;
    device.blocks.assign(blocks, {});
    device.threads.assign(blocks * threads, {});
    gridDim = {blocks, 1, 1}, blockDim = {threads, 1, 1};
    for (unsigned block = 0; block < blocks; block++) {
        device.blocks[block].shared = shared.data() + start + block * size_t{SHARED_BYTES};
        device.blocks[block].all.size = threads;
        for (Meeting& warp : device.blocks[block].warps) warp.size = 32;
        for (Meeting& group : device.blocks[block].groups) group.size = 128;
    }
    for (OneThread& thread : device.threads) {
        thread.stack.resize(STACK_BYTES);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = STACK_BYTES;
        makecontext(&thread.context, begin_thread, 0);
    }
    std::vector<unsigned> rests(device.threads.size() / 32);
    for (unsigned round = 0; run_a_round(rests); round++, device.tick++) {
        for (device.block = 0; device.block < blocks; device.block++) land_copies(device.own());
        if (round > ROUNDS_MAX) tell_who_waits();
    }
    for (const OneBlock& block : device.blocks) {
        if (!block.copies.empty()) fail("copies nobody waited for", block.copies.size());
    }
}

// A number in [-1, 1).
inline float any() { return static_cast<int>(device.chance()) / 2147483648.0f; }
