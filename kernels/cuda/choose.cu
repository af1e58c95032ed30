// tokens[row] = the token drawn from a row of logits, whose columns lie in one part a rank; columns
// from `vocab` on are padding. A block a row. What it computes, and in which order, is said in
// kernels/src/sampling/draw.rs: the same here, but for the order of sums in f64.
//
// Rows that are only asked for their largest logit keep their logits; others end up as weights,
// proportional to probabilities. Where a cut leaves more tokens than are sorted here, the sorted
// order is searched by the bits of weights instead. A row whose weights are no numbers gets the
// token of its largest logit. All ranks of a group choose for themselves, so nothing here may hang
// on the order in which threads arrive.
#include "params.cuh"

constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr u32 SORTED_MAX = 2048;  // a power of two, twice the threads
constexpr u32 ONE = 0x3f800000u;  // the bits of the largest weight

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

// kernels/src/math.rs has the twin, bit for bit.
__device__ inline float exponential(float x) {
    const float round = 12582912.0f, least = -87.33654f;
    const float clamped = x < least ? least : x > 88.02832f ? 88.02832f : x;
    const float shifted = __fadd_rn(__fmul_rn(clamped, 1.44269504088896340736f), round);
    const float n = __fsub_rn(shifted, round);
    const float r = __fadd_rn(__fsub_rn(clamped, __fmul_rn(n, 0.6933594f)),
                              __fmul_rn(n, 2.121944400e-4f));
    float p = 1.9875691e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3981999e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666666e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 5e-1f);
    p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    const float power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x < least ? 0.0f : __fmul_rn(p, power);
}

// One row, by token.
struct Row {
    const ChooseParams& p;

    __device__ float& at(u32 token) const {
        u32 part = token / p.part_width;
        u64 row = static_cast<u64>(part) * p.rows + blockIdx.x;
        return p.logits[row * p.part_width + token % p.part_width];
    }

    // A warp's tokens, one run of them.
    __device__ u32 begin(u32 warp) const { return min(warp * each(), p.vocab); }
    __device__ u32 each() const { return (p.vocab + WARPS - 1) / WARPS; }
};

struct Best {
    float logit;
    u32 token;
};

__device__ inline Best better(Best a, Best b) {
    bool second = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
    return second ? b : a;
}

__device__ inline Best warp_best(Best best) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        Best other = {__shfl_xor_sync(~0u, best.logit, lanes),
                      __shfl_xor_sync(~0u, best.token, lanes)};
        best = better(best, other);
    }
    return best;
}

// A thread's share of `count` logits, which are the tokens' from `first` on: it asks for several
// before it looks at one. Columns behind them may be read, but for those of other rows.
template <int N>
__device__ inline void find_largest(const float* logits, u32 count, u32 first, Best& best) {
    constexpr u32 AT_ONCE = N == 4 ? 4 : 8, STRIDE = THREADS * N;
    for (u32 start = threadIdx.x * N; start < count; start += AT_ONCE * STRIDE) {
        float of[AT_ONCE][N];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
            if (start + i * STRIDE < count) load(of[i], logits + start + i * STRIDE);
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                const u32 at = start + i * STRIDE + n;
                if (at < count && of[i][n] > best.logit) best = {of[i][n], first + at};
            }
        }
    }
}

// The first of the largest; NaN is never larger. All threads get it.
__device__ inline Best largest(const Row& row) {
    __shared__ Best bests[WARPS];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Best best = {minus_infinity(), 0};
    for (u32 first = 0; first < row.p.vocab; first += row.p.part_width) {
        const u32 count = min(row.p.part_width, row.p.vocab - first);
        row.p.part_width % 4 == 0 ? find_largest<4>(&row.at(first), count, first, best)
                                  : find_largest<1>(&row.at(first), count, first, best);
    }
    best = warp_best(best);
    if (lane == 0) bests[warp] = best;
    __syncthreads();
    return warp_best(bests[lane]);
}

// What the request says about single tokens; each is there once.
__device__ inline void edit(const Row& row, const Draw& draw, const Edit* edits) {
    for (u32 i = threadIdx.x; i < draw.edit_count; i += THREADS) {
        const Edit own = edits[i];
        if (own.token >= row.p.vocab) continue;
        float logit = __fadd_rn(row.at(own.token), own.bias);
        if (own.flags & EDIT_BANNED) logit = minus_infinity();
        if (own.flags & EDIT_SEEN) {
            const float penalty = draw.repetition_penalty;
            logit = logit < 0.0f ? __fmul_rn(logit, penalty) : __fdiv_rn(logit, penalty);
        }
        if (own.count > 0) {
            const float often = __fmul_rn(draw.frequency_penalty, static_cast<float>(own.count));
            logit = __fsub_rn(logit, __fadd_rn(often, draw.presence_penalty));
        }
        row.at(own.token) = logit;
    }
    __syncthreads();
}

__device__ inline double warp_sum(double x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// Inclusive sums over a warp.
__device__ inline double warp_scan(double x) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        double before = __shfl_up_sync(~0u, x, lanes);
        if (lane >= lanes) x += before;
    }
    return x;
}

// Turns logits into weights; `sums` come to hold those of the warps, one behind the other.
__device__ inline void weigh(const Row& row, const Draw& draw, float most, double (&sums)[WARPS]) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    double sum = 0.0;
    for (u32 token = row.begin(warp) + lane; token < row.begin(warp + 1); token += 32) {
        float weight = exponential(__fdiv_rn(__fsub_rn(row.at(token), most), draw.temperature));
        row.at(token) = weight;
        sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (warp == 0) sums[lane] = warp_scan(sums[lane]);
    __syncthreads();
}

// The token at which the running sum of all weights passes `share` of the whole.
__device__ inline void pick_of_all(const Row& row, const double (&sums)[WARPS], double share) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const double mark = share * sums[WARPS - 1];
    double running = warp == 0 ? 0.0 : sums[warp - 1];
    // Only where the mark lies; nowhere, if sums are not numbers.
    if (running > mark || !(sums[warp] > mark)) return;
    for (u32 first = row.begin(warp); first < row.begin(warp + 1); first += 32) {
        u32 token = first + lane;
        double weight = token < row.begin(warp + 1) ? row.at(token) : 0.0;
        double upto = running + warp_scan(weight);
        u32 passed = __ballot_sync(~0u, upto > mark);
        if (passed) {
            if (lane == 0) row.p.tokens[blockIdx.x] = first + __ffs(passed) - 1;
            return;
        }
        running = __shfl_sync(~0u, upto, 31);
    }
}

constexpr u32 BIN_SHIFT = 19, BINS = (ONE >> BIN_SHIFT) + 1;  // of weights up to 1

// The least weight of a bin in which, with those above it, there are `count` tokens.
__device__ inline float weight_of_rank(const Row& row, u32 count) {
    __shared__ u32 bins[BINS];
    __shared__ u32 found;
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0;
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (u32 token = threadIdx.x; token < row.p.vocab; token += THREADS) {
        u32 bin = __float_as_uint(row.at(token)) >> BIN_SHIFT;
        if (bin < BINS) atomicAdd(&bins[bin], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        u32 above = 0;
        for (int last = BINS - 1; last >= 0; last -= 32) {
            const int bin = last - static_cast<int>(threadIdx.x);
            u32 own = bin >= 0 ? bins[bin] : 0, upto = own;
#pragma unroll
            for (int lanes = 1; lanes < 32; lanes *= 2) {
                u32 before = __shfl_up_sync(~0u, upto, lanes);
                if (threadIdx.x >= lanes) upto += before;
            }
            u32 reached = __ballot_sync(~0u, bin >= 0 && above + upto >= count);
            if (reached) {
                if (threadIdx.x == 0) found = last - (__ffs(reached) - 1);
                break;
            }
            above += __shfl_sync(~0u, upto, 31);
        }
    }
    __syncthreads();
    return __uint_as_float(found << BIN_SHIFT);
}

// Heavier tokens first, then lower ones.
__device__ inline u64 key_of(float weight, u32 token) {
    return static_cast<u64>(__float_as_uint(weight)) << 32 | ~token;
}

// Sorts the first `size` keys, a power of two, the largest first.
__device__ inline void sort(u64* keys, u32 size) {
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 apart = run / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < size / 2; i += THREADS) {
                u32 low = i / apart * apart * 2 + i % apart, high = low + apart;
                bool falls = (low & run) == 0;
                u64 a = keys[low], b = keys[high];
                if ((a < b) == falls) keys[low] = b, keys[high] = a;
            }
        }
    }
    __syncthreads();
}

// Running sums of the weights of sorted keys, two a thread.
__device__ inline void running(const u64* keys, u32 count, double* upto) {
    __shared__ double sums[WARPS];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = threadIdx.x * 2;
    auto weight = [&](u32 i) {
        return i < count ? static_cast<double>(__uint_as_float(keys[i] >> 32)) : 0.0;
    };
    double a = weight(first), b = weight(first + 1), scan = warp_scan(a + b);
    if (lane == 31) sums[warp] = scan;
    __syncthreads();
    if (warp == 0) sums[lane] = warp_scan(sums[lane]);
    __syncthreads();
    double before = (warp == 0 ? 0.0 : sums[warp - 1]) + scan - (a + b);
    upto[first] = before + a, upto[first + 1] = before + a + b;
    __syncthreads();
}

// The first of `count` places whose running sum is past the mark, or reaches it; `count` if none.
__device__ inline u32 first_past(const double* upto, u32 count, double mark, bool reaching) {
    __shared__ u32 first;
    if (threadIdx.x == 0) first = count;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        if (reaching ? upto[i] >= mark : upto[i] > mark) atomicMin(&first, i);
    }
    __syncthreads();
    u32 found = first;
    __syncthreads();
    return found;
}

// A weight as an integer: sums of these do not hang on their order.
__device__ inline u64 mass_of(u32 bits) {
    return static_cast<u64>(static_cast<double>(__uint_as_float(bits)) * 1099511627776.0);  // 2^40
}

// The mass of all weights whose bits are `least` or more; all threads get it.
__device__ inline u64 mass_from(const Row& row, u32 least) {
    __shared__ u64 mass;
    if (threadIdx.x == 0) mass = 0;
    __syncthreads();
    u64 own = 0;
    for (u32 token = threadIdx.x; token < row.p.vocab; token += THREADS) {
        const u32 bits = __float_as_uint(row.at(token));
        if (least <= bits && bits <= ONE) own += mass_of(bits);
    }
    atomicAdd(&mass, own);
    __syncthreads();
    own = mass;
    __syncthreads();
    return own;
}

// A place in the sorted order: the token number `nth`, from 1, of those whose weight has these bits.
struct Place {
    u32 bits, nth;
};

constexpr u32 DIGIT_BITS = 10, DIGITS = 1 << DIGIT_BITS;  // three digits make the bits of a weight

// The first digit, from the largest on, at which the running sum of `bins` reaches `target`; `above`
// becomes the sum before it. One warp.
__device__ inline u32 digit_at(const u64* bins, u64 target, u64& above) {
    const u32 lane = threadIdx.x;
    for (int last = DIGITS - 1; last >= 0; last -= 32) {
        const u64 own = bins[last - lane];
        u64 upto = own;
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) {
            u64 before = __shfl_up_sync(~0u, upto, lanes);
            if (lane >= lanes) upto += before;
        }
        const u32 reached = __ballot_sync(~0u, above + upto >= target);
        if (reached) {
            const int found = __ffs(reached) - 1;
            above += __shfl_sync(~0u, upto - own, found);
            return last - found;
        }
        above += __shfl_sync(~0u, upto, 31);
    }
    return 0;
}

// Where the running sum over the sorted order reaches `target`, which is no more than the whole: of
// tokens if they are `counted`, of mass else. `bins` is room for DIGITS.
__device__ inline Place place_of(const Row& row, u64 target, bool counted, u64* bins) {
    __shared__ u32 digit;
    __shared__ u64 before;
    u32 prefix = 0;
    u64 above = 0;
    for (int shift = 2 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        for (u32 i = threadIdx.x; i < DIGITS; i += THREADS) bins[i] = 0;
        __syncthreads();
        for (u32 token = threadIdx.x; token < row.p.vocab; token += THREADS) {
            const u32 bits = __float_as_uint(row.at(token));
            if (bits > ONE || bits >> shift >> DIGIT_BITS != prefix) continue;
            atomicAdd(&bins[bits >> shift & (DIGITS - 1)], counted ? 1 : mass_of(bits));
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            const u32 found = digit_at(bins, target, above);
            if (threadIdx.x == 0) digit = found, before = above;
        }
        __syncthreads();
        prefix = prefix << DIGIT_BITS | digit, above = before;
        __syncthreads();
    }
    const u64 each = counted ? 1 : max(mass_of(prefix), 1ull);
    return {prefix, static_cast<u32>((target - above + each - 1) / each)};
}

// The mass of the sorted order up to a place.
__device__ inline u64 mass_upto(const Row& row, Place place) {
    return mass_from(row, place.bits + 1) + place.nth * mass_of(place.bits);
}

// Draws the token at a place. Every warp counts those of its own run that have the weight.
__device__ inline void pick_at(const Row& row, Place place) {
    __shared__ u32 counts[WARPS];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, end = row.begin(warp + 1);
    auto equals = [&](u32 first) {
        const u32 token = first + lane;
        return __ballot_sync(~0u, token < end && __float_as_uint(row.at(token)) == place.bits);
    };
    u32 own = 0, before = 0;
    for (u32 first = row.begin(warp); first < end; first += 32) own += __popc(equals(first));
    if (lane == 0) counts[warp] = own;
    __syncthreads();
    for (u32 i = 0; i < warp; i++) before += counts[i];
    if (place.nth <= before || place.nth > before + own) return;
    for (u32 first = row.begin(warp); first < end; first += 32) {
        const u32 equal = equals(first), upto = before + __popc(equal & ((2u << lane) - 1));
        if ((equal >> lane & 1) && upto == place.nth) row.p.tokens[blockIdx.x] = first + lane;
        before += __popc(equal);
    }
}

// Draws from the tokens that the cuts leave, where they are too many to be sorted. Every cut leaves
// a head of the sorted order, so what matters of it is its mass.
__device__ inline void pick_of_many(const Row& row, const Draw& draw, u64* bins) {
    const bool limited = 0 < draw.top_k && draw.top_k < row.p.vocab;
    u64 mass = limited ? mass_upto(row, place_of(row, draw.top_k, true, bins)) : mass_from(row, 0);
    if (draw.top_p < 1.0f) {
        const double share = static_cast<double>(draw.top_p) * static_cast<double>(mass);
        const u64 target = min(max(static_cast<u64>(ceil(share)), 1ull), mass);
        mass = min(mass, mass_upto(row, place_of(row, target, false, bins)));
    }
    if (draw.min_p > 0.0f) mass = min(mass, mass_from(row, __float_as_uint(draw.min_p)));
    if (mass == 0) return;
    const u64 passed = static_cast<u64>(draw.share * static_cast<double>(mass)) + 1;
    pick_at(row, place_of(row, min(passed, mass), false, bins));
}

// Draws from the tokens that the cuts leave.
__device__ inline void pick_of_few(const Row& row, const Draw& draw, double all) {
    __shared__ u64 keys[SORTED_MAX];
    __shared__ double upto[SORTED_MAX];
    __shared__ u32 candidates;
    const u32 vocab = row.p.vocab;
    const bool limited = 0 < draw.top_k && draw.top_k < vocab;
    float least = __fdiv_rn(__fmul_rn(1.0f - draw.top_p, static_cast<float>(all)), vocab);
    if (limited) least = weight_of_rank(row, draw.top_k);
    if (!limited) least = fmaxf(least, draw.min_p);
    if (threadIdx.x == 0) candidates = 0;
    __syncthreads();
    for (u32 token = threadIdx.x; token < vocab; token += THREADS) {
        float weight = row.at(token);
        if (!(weight >= least)) continue;
        u32 place = atomicAdd(&candidates, 1);
        if (place < SORTED_MAX) keys[place] = key_of(weight, token);
    }
    __syncthreads();
    u32 count = candidates, size = 2;
    if (count == 0) return;
    if (count > SORTED_MAX) return pick_of_many(row, draw, keys);
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += THREADS) keys[i] = 0;
    sort(keys, size);
    if (limited) count = min(count, draw.top_k);
    running(keys, count, upto);
    if (draw.top_p < 1.0f) {
        const float total = limited ? static_cast<float>(upto[count - 1]) : static_cast<float>(all);
        const double mass = __fmul_rn(draw.top_p, total);
        count = min(first_past(upto, count, mass, true) + 1, count);
    }
    __shared__ u32 kept;
    if (threadIdx.x == 0) kept = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        if (__uint_as_float(keys[i] >> 32) >= draw.min_p) atomicMax(&kept, i + 1);
    }
    __syncthreads();
    count = kept;
    if (count == 0) return;
    u32 drawn = first_past(upto, count, draw.share * upto[count - 1], false);
    if (threadIdx.x == 0) row.p.tokens[blockIdx.x] = ~static_cast<u32>(keys[drawn % count]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) choose(ChooseParams p) {
    __shared__ double sums[WARPS];
    wait_for_previous();
    const Row row = {p};
    const Draw draw = p.draws[blockIdx.x];
    if (draw.edit_count > 0) {
        const u32* words = reinterpret_cast<const u32*>(p.draws + blockIdx.x);
        edit(row, draw, reinterpret_cast<const Edit*>(words + draw.edits));
    }
    const Best best = largest(row);
    if (draw.temperature == 0.0f) {
        if (threadIdx.x == 0) p.tokens[blockIdx.x] = best.token;
        return;
    }
    if (threadIdx.x == 0) p.tokens[blockIdx.x] = best.token;
    weigh(row, draw, best.logit, sums);
    const bool cut = (0 < draw.top_k && draw.top_k < p.vocab) || draw.top_p < 1.0f ||
                     draw.min_p > 0.0f;
    cut ? pick_of_few(row, draw, sums[WARPS - 1]) : pick_of_all(row, sums, draw.share);
}
