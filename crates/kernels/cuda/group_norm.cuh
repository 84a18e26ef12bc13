// What the passes of group normalisation share. The formulas are in src/ops/group_norm/mod.rs.
//
// A block has a slice of the channels, whole groups of them, of one image, or of a part of its pixels. Its threads stand in
// rows as in columns.cuh: a row reads W channels a thread of one pixel. Grid: slices, parts, images.
#pragma once
#include "columns.cuh"
#include "philox.cuh"

// Registers that let three blocks of 256 threads share a multiprocessor, as plan.rs lets them by shared memory: without the
// bound the compiler takes those of two. Blocks of 512 threads fit as well.
#define THREE_BLOCKS __maxnreg__(80)
#define TWO_BLOCKS __maxnreg__(128)

// Sizes that are the same for all blocks.
struct Norm {
    u32 pixels, channels, per_group;
    u32 slice;  // channels of a slice
    u32 across; // threads in a row
    u32 part;   // pixels of a part
    u32 apart;  // elements between the rows of modulation or offset
    u32 inverse; // of per_group, in units of 2^-16, rounded up: only where a slice has no more than 256 channels

    __device__ __forceinline__ u32 group_of(u32 channel) const { return channel * inverse >> 16; }
};

// Where the block and the thread work.
struct Site {
    u32 image, base;       // the image, and the slice's first channel
    u32 first, pixels;     // the part: its first pixel and their number
    u32 row, rows, column; // the thread's row of `rows`, and its place there
    u64 offset;            // of the slice in the part's first pixel
};

__device__ __forceinline__ Site site(const Norm &n) {
    Site s;
    s.image = blockIdx.z;
    s.base = blockIdx.x * n.slice;
    s.first = blockIdx.y * n.part;
    s.pixels = min(n.part, n.pixels - s.first);
    const u32 shift = __ffs(n.across) - 1; // a division takes thirty instructions
    s.row = threadIdx.x >> shift;
    s.rows = blockDim.x >> shift;
    s.column = threadIdx.x & (n.across - 1);
    s.offset = ((u64)s.image * n.pixels + s.first) * n.channels + s.base;
    return s;
}

// Dropout of what the normalisation gives: which elements go, and what the others are multiplied by (src/ops/dropout.rs).
struct Mask {
    u64 key;
    const u32 *step_at; // the step's low and high half, if a captured graph is to find another one in each replay
    u64 step, position; // the latter of the first image
    u32 threshold;
    float keep; // 0: no dropout

    __device__ __forceinline__ float factor() const { return keep == 0.0f ? 1.0f : keep; }
};

// A mask as kernels take it, and from there.
#define MASK u64 key, const u32 *step_at, u64 step, u64 position, u32 threshold, float keep
#define GATHERED_MASK {key, step_at, step, position, threshold, keep}

__device__ __forceinline__ u64 step_of(const Mask &m) { return m.step_at ? m.step_at[0] | (u64)m.step_at[1] << 32 : m.step; }

// Which of the elements 4 block... of an image go, a bit for each of W, or of 4.
template <int W> __device__ __forceinline__ u32 dropped(const Mask &m, u64 step, u32 image, u32 block) {
    u32 bits = 0;
#pragma unroll
    for (int k = 0; k < W; k += 4) {
        const Words words = element_block(m.key, step, m.position + image, block + k / 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) bits |= words.v[j] < m.threshold ? 1u << (k + j) : 0u;
    }
    return bits;
}

// The same of W neighbours from element `at`: a multiple of 4, or W is 1.
template <int W> __device__ __forceinline__ u32 dropped(const Mask &m, u32 image, u64 at) {
    if (m.keep == 0.0f) return 0;
    const u32 bits = dropped<W>(m, step_of(m), image, (u32)(at / 4));
    return W < 4 ? bits >> at % 4 & 1 : bits;
}

// Hands out dynamic shared memory, in multiples of 16 bytes; src/ops/group_norm/cuda.rs counts the same.
struct Carve {
    float *next;
    __device__ __forceinline__ float *take(u32 floats) {
        float *taken = next;
        next += (floats + 3) / 4 * 4;
        return taken;
    }
};

// For each row i = first, first + step... below `end`: load(b, i), then use(b, i), B rows at a time, so that B loads are under
// way before the first is used.
template <int B, typename Load, typename Use>
__device__ __forceinline__ void batched(u32 first, u32 end, u32 step, Load load, Use use) {
    for (u32 i = first; i < end; i += B * step) {
#pragma unroll
        for (int b = 0; b < B; ++b)
            if (i + b * step < end) load(b, i + b * step);
#pragma unroll
        for (int b = 0; b < B; ++b)
            if (i + b * step < end) use(b, i + b * step);
    }
}

// W numbers of every channel's own, from shared memory.
template <int W> __device__ __forceinline__ void fetch(float (&to)[W], const float *from) {
#pragma unroll
    for (int k = 0; k < W; ++k) to[k] = from[k];
}

// What is added to a channel of x before it is normalised: `offset` is [N, C] with rows apart, or none.
template <typename T>
__device__ __forceinline__ float offset_of(const Norm &n, u32 image, u32 channel, const T *offset) {
    return offset ? to_float(offset[(u64)image * n.apart + channel]) : 0.0f;
}

// Weight and bias of a channel with the image's modulation folded in.
struct Affine {
    float weight, bias, scale; // `scale` is 1 + the modulation's
};

template <typename T>
__device__ __forceinline__ Affine affine(const Norm &n, u32 image, u32 channel, const float *weight, const float *bias,
                                         const T *modulation) {
    Affine a = {weight[channel], bias[channel], 1.0f};
    if (modulation) {
        const T *of_image = modulation + (u64)image * n.apart;
        a.scale = 1.0f + to_float(of_image[channel]);
        a.weight *= a.scale;
        a.bias = a.bias * a.scale + to_float(of_image[n.channels + channel]);
    }
    return a;
}

namespace group_norm_forward {

// x [pixels, C]; or its first channels, and the rest, and where to write all of it.
template <typename T> struct Source {
    const T *x, *rest;
    T *whole; // none if x is
    u32 joined; // the first channels: all, if there is no rest

    // All of x, once the block has read its part.
    __device__ __forceinline__ const T *read() const { return whole ? whole : x; }
};

template <typename T> struct Operands {
    Source<T> x;
    const float *weight, *bias;
    const T *modulation, *offset;
    T *y;
    float *statistics, *partials;
    Mask mask;
};

} // namespace group_norm_forward

namespace group_norm_backward {

template <typename T> struct Operands {
    const T *x, *dy, *extra, *second; // the latter two are added to dx
    const float *weight, *bias;
    const T *modulation, *offset;
    const float *statistics;
    T *dx, *rest; // [pixels, joined] and [pixels, C - joined]
    T *dmodulation, *doffset;
    u32 dapart; // elements between the rows of either
    float *partials; // [images, parts, 2, C]: sums over the parts, or none
    float *own;      // [images, 2, C]: each image's gradients of weight and bias
    float *dx_sums;  // [images, parts, C]: each part's sums of dx, or none
    u32 *counters;
    u32 silu, joined;
    Mask mask;
};

// Leaves the image's gradients of a channel's weight and bias in `own`, and writes the modulation's. `scale` is 1 + the
// modulation's.
template <typename T>
__device__ __forceinline__ void write_gradients(const Norm &n, const Site &s, const Operands<T> &o, u32 channel, float dz,
                                                float dz_x_hat, float scale) {
    const u64 at = (u64)s.image * 2 * n.channels + channel;
    o.own[at] = dz_x_hat * scale;
    o.own[at + n.channels] = dz * scale;
    if (o.modulation) {
        T *to = o.dmodulation + (u64)s.image * o.dapart + channel;
        to[0] = from_float<T>(dz_x_hat * o.weight[channel] + dz * o.bias[channel]);
        to[n.channels] = from_float<T>(dz);
    }
}

} // namespace group_norm_backward

// What the kernels of either direction take, and from there.
#define SOURCE(T) const T *x, const T *rest, T *whole, u32 joined
#define GATHERED_SOURCE {x, rest, whole, joined}
#define GROUP_NORM_FORWARD_OPERANDS(T)                                                                                 \
    SOURCE(T), const float *weight, const float *bias, const T *modulation, const T *offset, u32 apart, T *y,          \
        float *statistics, float *partials, u32 pixels, u32 channels, u32 per_group, u32 slice, u32 across, u32 part,  \
        u32 width, u32 inverse, u32 kept, float eps, u32 silu, MASK
#define GROUP_NORM_FORWARD_GATHER(T)                                                                                   \
    DYNAMIC_SHARED(float, shared);                                                                                     \
    const Norm n = {pixels, channels, per_group, slice, across, part, apart, inverse};                                 \
    const group_norm_forward::Operands<T> o = {GATHERED_SOURCE, weight, bias, modulation, offset, y, statistics,       \
                                               partials, GATHERED_MASK}
#define GROUP_NORM_BACKWARD_OPERANDS(T)                                                                                \
    const T *x, const T *dy, const T *extra, const T *second, const float *weight, const float *bias,                  \
        const T *modulation, const T *offset, u32 apart, const float *statistics, T *dx, T *rest, T *dmodulation,      \
        T *doffset, u32 dapart, float *partials, float *own, float *dx_sums, u32 *counters, u32 silu, u32 joined,      \
        MASK, u32 pixels, u32 channels, u32 per_group, u32 slice, u32 across, u32 part, u32 width, u32 inverse,        \
        u32 kept
#define GROUP_NORM_BACKWARD_GATHER(T)                                                                                  \
    DYNAMIC_SHARED(float, shared);                                                                                     \
    const Norm n = {pixels, channels, per_group, slice, across, part, apart, inverse};                                 \
    const group_norm_backward::Operands<T> o = {                                                                       \
        x,      dy,   extra,       second,  weight, bias,     modulation, offset,  statistics, dx,   rest,             \
        dmodulation, doffset, dapart, partials, own, dx_sums, counters, silu, joined, GATHERED_MASK}
