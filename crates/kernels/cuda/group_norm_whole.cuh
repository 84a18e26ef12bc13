// What the passes of group normalisation share that keep a block's slice of an image in shared memory.
//
// Everything a block reads is on its way at once, by copies that need no registers; what is small (a channel's weight, random
// numbers) is found while they come. A thread reads what it has copied itself, and nothing of other threads', so that it waits
// for its copies alone, and sums the first of them while the last are on their way.
#pragma once
#include "group_norm.cuh"
#include "mma.cuh"

namespace group_norm_whole {

// A thread's copies end in so many groups.
constexpr int STAGES = 4;

// Which packs are the thread's: those of `pack` in pixels row, row + rows...; `stage` pixels are one stage's.
struct Mine {
    u32 row, rows, pack, packs, stage;
    bool any; // slices need not be as wide as a row of threads

    __device__ __forceinline__ u32 at(u32 pixel) const { return pixel * packs + pack; }
};

__device__ __forceinline__ Mine mine(const Norm &n, const Site &s, u32 width) {
    const u32 packs = n.slice / width, turns = (n.pixels + s.rows - 1) / s.rows;
    return {s.row, s.rows, s.column, packs, (turns + STAGES - 1) / STAGES * s.rows, s.column < packs};
}

// copy(pixel) for each of the thread's pixels, a group of copies a stage.
template <typename Copy> __device__ __forceinline__ void send_for(const Norm &n, const Mine &m, Copy copy) {
#pragma unroll
    for (int q = 0; q < STAGES; ++q) {
        const u32 end = m.any ? min(n.pixels, (q + 1) * m.stage) : 0;
#pragma unroll 4
        for (u32 pixel = q * m.stage + m.row; pixel < end; pixel += m.rows) copy(pixel);
        copies_end();
    }
}

// use(pixel) for each of the thread's pixels as they come. The stages are spelt out because what is waited for is a constant.
template <int Q = 0, typename Use> __device__ __forceinline__ void as_they_come(const Norm &n, const Mine &m, Use use) {
    copies_wait<STAGES - 1 - Q>();
    const u32 end = m.any ? min(n.pixels, (Q + 1) * m.stage) : 0;
#pragma unroll 2
    for (u32 pixel = Q * m.stage + m.row; pixel < end; pixel += m.rows) use(pixel);
    if constexpr (Q + 1 < STAGES) as_they_come<Q + 1>(n, m, use);
}

// Which elements of the thread's packs go, a byte a pack: random numbers are made while the copies are on their way.
template <int W>
__device__ __forceinline__ void draw(const Norm &n, const Site &s, const Mine &m, const Mask &mask, unsigned char *gone) {
    if (!m.any) return;
    for (u32 pixel = m.row; pixel < n.pixels; pixel += m.rows)
        gone[m.at(pixel)] = (unsigned char)dropped<W>(mask, s.image, (u64)pixel * n.channels + s.base + m.pack * W);
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
    for (; step < 32; step <<= 1) {
#pragma unroll
        for (int k = 0; k < K; ++k) v[k] += __shfl_xor_sync(0xffffffffu, v[k], step);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) to[first + k] = v[k];
}

// Where a warp leaves sum k of pack `pack`, of K a pack: sum_of(scratch, n, warp, pack, K)[k].
__device__ __forceinline__ float *sum_of(float *scratch, const Norm &n, u32 warp, u32 pack, u32 count) {
    return scratch + (warp * n.across + pack) * count;
}
template <int K> __device__ __forceinline__ void leave(const Norm &n, const Mine &m, float (&v)[K], float *scratch) {
    sum_lanes(v, n.across, 0, sum_of(scratch, n, threadIdx.x / 32, m.pack, K));
}

} // namespace group_norm_whole
