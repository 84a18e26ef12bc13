// What the passes of group normalisation share that keep a block's slice of an image in shared memory.
//
// Everything a block reads is on its way at once, by copies that need no registers; what is small (a channel's weight, random
// numbers) is found while they come. A thread reads what it has copied itself, and nothing of other threads', so that it waits
// for its copies alone, and sums the first of them while the last are on their way.
//
// A block does little for each of its elements, so what it does once counts: no division, and loops that step from address to
// address. It has a thread for every channel of its slice (src/ops/group_norm/plan.rs).
#pragma once
#include "group_norm.cuh"
#include "mma.cuh"

namespace group_norm_whole {

// What a thread's channel needs, as it lies in memory: loaded before the copies, that it does not come behind them, and not
// looked at before they are sent, which would wait for it.
template <typename T> struct Loaded {
    float weight, bias;
    T scale, shift, offset, pivot;

    __device__ __forceinline__ Affine affine() const {
        Affine a = {weight, bias, 1.0f + to_float(scale)};
        a.weight *= a.scale;
        a.bias = a.bias * a.scale + to_float(shift);
        return a;
    }
};

template <typename T, typename O> __device__ __forceinline__ Loaded<T> load_channel(const Norm &n, const Site &s, const O &o) {
    const T zero = from_float<T>(0.0f);
    const u32 c = s.base + threadIdx.x;
    if (threadIdx.x >= n.slice) return {};
    Loaded<T> of = {o.weight[c], o.bias[c], zero, zero, zero, zero};
    if (o.modulation) {
        of.scale = o.modulation[(u64)s.image * n.apart + c];
        of.shift = o.modulation[(u64)s.image * n.apart + n.channels + c];
    }
    if (o.offset) of.offset = o.offset[(u64)s.image * n.apart + c];
    return of;
}

// A thread's copies end in so many groups.
constexpr u32 STAGES = 2;

// 16 bytes to shared memory on their way, and what stands beside them in 128 bytes to the L2 cache, where the blocks of the
// neighbouring slices will look for it.
#ifndef EMULATED
__device__ __forceinline__ void copy_of_line(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
#else
__device__ inline void copy_of_line(void *to, const void *from) { copy_16(to, from, true); }
#endif

// The thread's packs: one in each of pixels row, row + rows...
struct Mine {
    u32 row, rows, pack;
    u32 first, step; // where they lie in shared memory, in packs
    u32 stage;       // pixels of a stage
    bool any;        // slices need not be as wide as a row of threads
};

template <int W> __device__ __forceinline__ Mine mine(const Norm &n, const Site &s) {
    const u32 packs = n.slice / W;
    return {s.row, s.rows, s.column, s.row * packs + s.column, s.rows * packs, (n.pixels + STAGES - 1) / STAGES, s.column < packs};
}

// send(pack) for each of the thread's packs, a group of copies a stage.
template <typename Send> __device__ __forceinline__ void send_packs(const Norm &n, const Mine &m, Send send) {
    u32 pixel = m.row, at = m.first;
#pragma unroll 1
    for (u32 q = 1; q <= STAGES; ++q) {
        const u32 end = m.any ? min(n.pixels, q * m.stage) : 0;
#pragma unroll 4
        for (; pixel < end; pixel += m.rows, at += m.step) send(at);
        copies_end();
    }
}

// use(pack) for each of the thread's packs as they come, UNROLLED at a time.
template <int UNROLLED, typename Use> __device__ __forceinline__ void as_they_come(const Norm &n, const Mine &m, Use use) {
    u32 pixel = m.row, at = m.first;
#pragma unroll 1
    for (u32 q = 1; q <= STAGES; ++q) {
        // What is waited for must be a constant.
        if (q == 1) copies_wait<1>();
        if (q == 2) copies_wait<0>();
        const u32 end = m.any ? min(n.pixels, q * m.stage) : 0;
#pragma unroll UNROLLED
        for (; pixel < end; pixel += m.rows, at += m.step) use(at);
    }
}

// Which elements of the thread's packs go, a byte a pack: random numbers are made while the copies are on their way.
template <int W>
__device__ __forceinline__ void draw(const Norm &n, const Site &s, const Mine &m, const Mask &mask, unsigned char *gone) {
    const u64 step = step_of(mask);
    u32 block = (m.row * n.channels + s.base + m.pack * W) / 4, at = m.first;
    for (u32 pixel = m.row; pixel < n.pixels && m.any; pixel += m.rows, at += m.step) {
        gone[at] = (unsigned char)dropped<W>(mask, step, s.image, block);
        block += m.rows * n.channels / 4;
    }
}

// Sums each of K numbers over the lanes of a warp that are multiples of `step` apart, to to[first..first + K]. A pair of lanes
// shares the numbers among them rather than that both add all, as long as they can be halved. All lanes must call it.
template <int K> __device__ __forceinline__ void sum_lanes(float (&v)[K], u32 step, u32 first, float *to) {
    if constexpr (K % 2 == 0) {
        if (step < 32) {
            const bool high = threadIdx.x & step;
            float half[K / 2];
#pragma unroll
            for (int k = 0; k < K / 2; ++k) {
                const float given = high ? v[k] : v[K / 2 + k], own = high ? v[K / 2 + k] : v[k];
                half[k] = own + __shfl_xor_sync(0xffffffffu, given, step);
            }
            sum_lanes<K / 2>(half, step << 1, first + (high ? K / 2 : 0), to);
            return;
        }
    }
    bool first_of_equals = true;
    for (; step < 32; step <<= 1) {
        first_of_equals = first_of_equals && !(threadIdx.x & step);
#pragma unroll
        for (int k = 0; k < K; ++k) v[k] += __shfl_xor_sync(0xffffffffu, v[k], step);
    }
    if (!first_of_equals) return;
#pragma unroll
    for (int k = 0; k < K; ++k) to[first + k] = v[k];
}

// Where a warp leaves its sums of pack `pack`, K of them.
template <int K> __device__ __forceinline__ float *sums_of(float *scratch, const Norm &n, u32 warp, u32 pack) {
    return scratch + (warp * n.across + pack) * K;
}
template <int K> __device__ __forceinline__ void leave(const Norm &n, const Mine &m, float (&v)[K], float *scratch) {
    sum_lanes(v, n.across, 0, sums_of<K>(scratch, n, threadIdx.x / 32, m.pack));
}

} // namespace group_norm_whole
