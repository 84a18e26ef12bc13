// Group normalisation with scale-shift, SiLU and dropout, forward. What is added to all pixels of a channel alike before only
// moves the channel's mean, so it costs nothing.
//
// This is for images of which no slice fits into shared memory (group_norm_whole.cu is for the others): group_norm_moments
// finds mean and spread of the parts, and group_norm puts them together and reads x again.
//
// x may be two tensors whose channels stand side by side: it is then written as one while it is read.
//
// A channel's sums are of differences from its first pixel, and the channels of a group are put together by their means
// (Chan, Golub & LeVeque 1979): a large mean does not cancel.
#include "group_norm.cuh"

namespace group_norm_forward {

constexpr int BATCH = 4;

// Per channel of the slice: the mean, and the sum of squared differences from it.
struct Moments {
    float *mean, *square;
};

// Turns the threads' sums of (weighted) differences from the pivots, and of their squares, into the channels' moments.
template <int W, typename Pivot>
__device__ __forceinline__ void finish(const Norm &n, u32 first, float (&v)[2 * W], float count, float *scratch,
                                       Moments out, Pivot pivot) {
    sum_down(v, scratch, n.across);
    for (u32 i = threadIdx.x; i < n.across * W && first * W + i < n.slice; i += blockDim.x) {
        const float *sums = scratch + i / W * 2 * W + i % W;
        const u32 channel = first * W + i;
        const float shift = sums[0] / count;
        out.mean[channel] = pivot(channel) + shift;
        out.square[channel] = fmaxf(sums[W] - sums[0] * shift, 0.0f);
    }
}

// The moments of the block's part.
template <typename T, int W>
__device__ void moments(const Norm &n, const Site &s, const Source<T> &from, float *scratch, Moments out) {
    const u32 packs = n.slice / W;
    const u64 row = (u64)s.image * n.pixels + s.first;
    for (u32 first = 0; first < packs; first += n.across) {
        const u32 pack = first + s.column;
        float v[2 * W] = {};
        if (pack < packs) {
            const u32 channel = s.base + pack * W;
            const bool of_rest = channel >= from.joined;
            const u32 stride = of_rest ? n.channels - from.joined : from.joined;
            const T *column = of_rest ? from.rest + row * stride + (channel - from.joined) : from.x + row * stride + channel;
            T *copy = from.whole ? from.whole + s.offset + pack * W : nullptr;
            float pivot[W];
            const Pack<T, W> start = load_pack<T, W>(column);
#pragma unroll
            for (int k = 0; k < W; ++k) pivot[k] = to_float(start.v[k]);
            Raw<T, W> in[BATCH];
            batched<BATCH>(
                s.row, s.pixels, s.rows, [&](int b, u32 pixel) { in[b] = load_raw<T, W>(column + (u64)pixel * stride); },
                [&](int b, u32 pixel) {
                    if (copy) store_raw(copy + (u64)pixel * n.channels, in[b]);
#pragma unroll
                    for (int k = 0; k < W; ++k) {
                        const float d = in[b].at(k) - pivot[k];
                        v[k] += d;
                        v[W + k] += d * d;
                    }
                });
        }
        // What the block has written it finds there.
        const T *pivots = from.read() + s.offset;
        finish<W>(n, first, v, (float)s.pixels, scratch, out, [&](u32 channel) { return to_float(pivots[channel]); });
    }
    __syncthreads();
}

// The moments of the whole image from those of its parts, `partials` [images, parts, 2, C].
template <int W>
__device__ void merge(const Norm &n, const Site &s, const float *partials, float *scratch, Moments out) {
    const u32 packs = n.slice / W, parts = gridDim.y;
    partials += (u64)s.image * parts * 2 * n.channels + s.base;
    for (u32 first = 0; first < packs; first += n.across) {
        const u32 pack = first + s.column;
        float v[2 * W] = {};
        for (u32 part = s.row; part < parts && pack < packs; part += s.rows) {
            const float *of_part = partials + (u64)part * 2 * n.channels;
            const float count = (float)min(n.part, n.pixels - part * n.part);
#pragma unroll
            for (int k = 0; k < W; ++k) {
                const float d = of_part[pack * W + k] - partials[pack * W + k];
                v[k] += count * d;
                v[W + k] += of_part[n.channels + pack * W + k] + count * d * d;
            }
        }
        finish<W>(n, first, v, (float)n.pixels, scratch, out, [&](u32 channel) { return partials[channel]; });
    }
    __syncthreads();
}

// Mean and reciprocal standard deviation of the slice's groups, a warp for each; also to `statistics` [N, 2, G].
__device__ __forceinline__ void groups(const Norm &n, const Site &s, Moments in, float eps, float *mean, float *rstd,
                                       float *statistics) {
    const u32 lane = threadIdx.x % 32, all = n.channels / n.per_group;
    for (u32 group = threadIdx.x / 32; group < n.slice / n.per_group; group += blockDim.x / 32) {
        const float *means = in.mean + group * n.per_group, *squares = in.square + group * n.per_group;
        float sum = 0.0f, square = 0.0f;
        for (u32 c = lane; c < n.per_group; c += 32) sum += means[c] - means[0];
        const float middle = means[0] + warp_sum(sum) / (float)n.per_group;
        for (u32 c = lane; c < n.per_group; c += 32) {
            const float d = means[c] - middle;
            square += squares[c] + (float)n.pixels * d * d;
        }
        const float variance = warp_sum(square) / ((float)n.per_group * (float)n.pixels);
        if (lane == 0) {
            mean[group] = middle;
            rstd[group] = 1.0f / sqrtf(variance + eps);
            if (blockIdx.y == 0) {
                float *of_image = statistics + (u64)s.image * 2 * all + s.base / n.per_group + group;
                of_image[0] = middle;
                of_image[all] = rstd[group];
            }
        }
    }
    __syncthreads();
}

// y = silu(x a + b) or x a + b over the block's part, less what is dropped.
template <typename T, int W>
__device__ void apply(const Norm &n, const Site &s, const T *x, const float *a, const float *b, T *y, u32 silu,
                      const Mask &mask) {
    const u32 packs = n.slice / W;
    for (u32 pack = s.column; pack < packs; pack += n.across) {
        float slope[W], constant[W];
        fetch(slope, a + pack * W);
        fetch(constant, b + pack * W);
        const u64 column = s.offset + pack * W;
        Raw<T, W> in[BATCH];
        batched<BATCH>(
            s.row, s.pixels, s.rows,
            [&](int b, u32 pixel) { in[b] = load_raw<T, W>(x + column + (u64)pixel * n.channels); },
            [&](int b, u32 pixel) {
                const u32 gone = dropped<W>(mask, s.image, (u64)(s.first + pixel) * n.channels + s.base + pack * W);
                Pack<T, W> out;
#pragma unroll
                for (int k = 0; k < W; ++k) {
                    const float z = in[b].at(k) * slope[k] + constant[k];
                    const float v = (silu ? z * sigmoid(z) : z) * mask.factor();
                    out.v[k] = from_float<T>(gone >> k & 1 ? 0.0f : v);
                }
                store_pack(y + column + (u64)pixel * n.channels, out);
            });
    }
}

// With `partials`, the moments are those; otherwise the block's part is the whole image.
template <typename T, int W>
__device__ void forward(const Norm &n, const Operands<T> &o, float eps, u32 silu, float *shared) {
    const Site s = site(n);
    Carve carve = {shared};
    const Moments of_channels = {carve.take(n.slice), carve.take(n.slice)};
    float *a = carve.take(n.slice), *b = carve.take(n.slice);
    float *mean = carve.take(n.slice / n.per_group), *rstd = carve.take(n.slice / n.per_group);
    float *scratch = carve.take(blockDim.x / 32 * n.across * 2 * W);
    if (o.partials)
        merge<W>(n, s, o.partials, scratch, of_channels);
    else
        moments<T, W>(n, s, o.x, scratch, of_channels);
    if (o.offset) {
        for (u32 c = threadIdx.x; c < n.slice; c += blockDim.x)
            of_channels.mean[c] += offset_of(n, s.image, s.base + c, o.offset);
        __syncthreads();
    }
    groups(n, s, of_channels, eps, mean, rstd, o.statistics);
    for (u32 c = threadIdx.x; c < n.slice; c += blockDim.x) {
        const Affine of_channel = affine(n, s.image, s.base + c, o.weight, o.bias, o.modulation);
        a[c] = of_channel.weight * rstd[c / n.per_group];
        b[c] = of_channel.bias - a[c] * (mean[c / n.per_group] - offset_of(n, s.image, s.base + c, o.offset));
    }
    __syncthreads();
    apply<T, W>(n, s, o.x.read(), a, b, o.y, silu, o.mask);
}

// Writes the moments of the block's part to `partials`.
template <typename T, int W> __device__ void part_moments(const Norm &n, const Source<T> &x, float *partials, float *shared) {
    const Site s = site(n);
    Carve carve = {shared};
    const Moments found = {carve.take(n.slice), carve.take(n.slice)};
    moments<T, W>(n, s, x, carve.take(blockDim.x / 32 * n.across * 2 * W), found);
    partials += ((u64)s.image * gridDim.y + blockIdx.y) * 2 * n.channels + s.base;
    for (u32 c = threadIdx.x; c < n.slice; c += blockDim.x) {
        partials[c] = found.mean[c];
        partials[n.channels + c] = found.square[c];
    }
}

} // namespace group_norm_forward

#define GROUP_NORM(T, S)                                                                                               \
    extern "C" __global__ void THREE_BLOCKS group_norm_##S(GROUP_NORM_FORWARD_OPERANDS(T)) {                           \
        GROUP_NORM_FORWARD_GATHER(T);                                                                                  \
        if (width > 1)                                                                                                 \
            group_norm_forward::forward<T, 16 / sizeof(T)>(n, o, eps, silu, shared);                                   \
        else                                                                                                           \
            group_norm_forward::forward<T, 1>(n, o, eps, silu, shared);                                                \
    }                                                                                                                  \
    extern "C" __global__ void THREE_BLOCKS                                                                            \
        group_norm_moments_##S(SOURCE(T), float *partials, u32 pixels, u32 channels, u32 per_group, u32 slice,         \
                               u32 across, u32 part, u32 width, u32 inverse) {                                         \
        DYNAMIC_SHARED(float, shared);                                                                                 \
        const Norm n = {pixels, channels, per_group, slice, across, part, 0, inverse};                                 \
        if (width > 1)                                                                                                 \
            group_norm_forward::part_moments<T, 16 / sizeof(T)>(n, GATHERED_SOURCE, partials, shared);                 \
        else                                                                                                           \
            group_norm_forward::part_moments<T, 1>(n, GATHERED_SOURCE, partials, shared);                              \
    }
FOR_EACH_FLOAT(GROUP_NORM)
