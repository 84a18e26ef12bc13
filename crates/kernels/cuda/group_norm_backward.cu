// Group normalisation with scale-shift, SiLU and dropout, backward.
//
// Where a slice of an image's x fits into shared memory, it is read once and one launch does it all; where dy's does too,
// group_norm_backward_whole.cu is for it. Else group_norm_sums sums over the parts, and group_norm_backward puts the sums
// together and reads x and dy again.
//
// Every image's own gradients of weight and bias are left in memory; settle.cu adds those of all images, of all layers at once.
// So are, where they are wanted, the sums of dx over the pixels of each part: those of an image are the gradient of its offset,
// those of all images the gradient of the bias of the layer that made x, which would otherwise read all of dx again.
#include "group_norm.cuh"

namespace group_norm_backward {

constexpr int BATCH = 2;

// What the slice's channels need, in shared memory: z = x a + b, the group's mean less the channel's offset; then sums over the
// pixels: of dz, and of dz (x - mean).
struct Channels {
    float *a, *b, *mean, *dz, *dz_centred;
};

// What is dropped has no gradient. The others' factor is left to `gradient`: rounded to T it would show in the sums.
template <bool DROPS, typename T, int W>
__device__ __forceinline__ void drop(const Norm &n, const Site &s, const Mask &mask, u32 pixel, u32 pack, Raw<T, W> &dy) {
    if (DROPS) dy.clear(dropped<W>(mask, s.image, (u64)(s.first + pixel) * n.channels + s.base + pack * W));
}

// The gradient of z.
__device__ __forceinline__ float gradient(float x, float dy, float a, float b, u32 silu) {
    if (!silu) return dy;
    const float z = x * a + b, s = sigmoid(z);
    return dy * s * (1.0f + z * (1.0f - s));
}

template <typename T>
__device__ __forceinline__ void prepare(const Norm &n, const Site &s, const Operands<T> &o, Channels c) {
    const u32 all = n.channels / n.per_group;
    for (u32 i = threadIdx.x; i < n.slice; i += blockDim.x) {
        const float *of_image = o.statistics + (u64)s.image * 2 * all + (s.base + i) / n.per_group;
        const Affine of_channel = affine(n, s.image, s.base + i, o.weight, o.bias, o.modulation);
        c.mean[i] = of_image[0] - offset_of(n, s.image, s.base + i, o.offset);
        c.a[i] = of_channel.weight * of_image[all];
        c.b[i] = of_channel.bias - c.a[i] * c.mean[i];
    }
    __syncthreads();
}

// Moves a row's sums from the threads to the channels.
template <int W> __device__ __forceinline__ void finish(const Norm &n, u32 first, float (&v)[2 * W], float *scratch, Channels c) {
    sum_down(v, scratch, n.across);
    for (u32 i = threadIdx.x; i < n.across * W && first * W + i < n.slice; i += blockDim.x) {
        const float *sums = scratch + i / W * 2 * W + i % W;
        c.dz[first * W + i] = sums[0];
        c.dz_centred[first * W + i] = sums[W];
    }
}

// The sums over the block's part, of which x stays in `kept`, if KEPT.
template <typename T, int W, bool KEPT, bool DROPS>
__device__ void sum_pixels(const Norm &n, const Site &s, const Operands<T> &o, Raw<T, W> *kept, float *scratch, Channels c) {
    const u32 packs = n.slice / W;
    const float factor = DROPS ? o.mask.keep : 1.0f;
    for (u32 first = 0; first < packs; first += n.across) {
        const u32 pack = first + s.column;
        float v[2 * W] = {};
        if (pack < packs) {
            float a[W], b[W], mean[W];
            fetch(a, c.a + pack * W);
            fetch(b, c.b + pack * W);
            fetch(mean, c.mean + pack * W);
            const u64 column = s.offset + pack * W;
            Raw<T, W> x[BATCH], dy[BATCH];
            batched<BATCH>(
                s.row, s.pixels, s.rows,
                [&](int i, u32 pixel) {
                    x[i] = load_raw<T, W>(o.x + column + (u64)pixel * n.channels);
                    dy[i] = load_raw<T, W>(o.dy + column + (u64)pixel * n.channels);
                },
                [&](int i, u32 pixel) {
                    drop<DROPS>(n, s, o.mask, pixel, pack, dy[i]);
                    if (KEPT) kept[pixel * packs + pack] = x[i];
#pragma unroll
                    for (int k = 0; k < W; ++k) {
                        const float value = x[i].at(k);
                        const float dz = gradient(value, factor * dy[i].at(k), a[k], b[k], o.silu);
                        v[k] += dz;
                        v[W + k] += dz * (value - mean[k]);
                    }
                });
        }
        finish<W>(n, first, v, scratch, c);
    }
    __syncthreads();
}

// The sums over the image from those over its parts.
template <int W>
__device__ void sum_parts(const Norm &n, const Site &s, const float *partials, float *scratch, Channels c) {
    const u32 packs = n.slice / W, parts = gridDim.y;
    partials += (u64)s.image * parts * 2 * n.channels + s.base;
    for (u32 first = 0; first < packs; first += n.across) {
        const u32 pack = first + s.column;
        float v[2 * W] = {};
        for (u32 part = s.row; part < parts && pack < packs; part += s.rows) {
            const float *of_part = partials + (u64)part * 2 * n.channels + pack * W;
#pragma unroll
            for (int k = 0; k < W; ++k) {
                v[k] += of_part[k];
                v[W + k] += of_part[n.channels + k];
            }
        }
        finish<W>(n, first, v, scratch, c);
    }
    __syncthreads();
}

// dx = dz a + (x - mean) slope + constant, with these for each of the slice's groups, a warp for each:
// slope = -rstd^2 / count (sum of w dz x^), constant = -rstd / count (sum of w dz), and a = w rstd.
__device__ __forceinline__ void groups(const Norm &n, const Site &s, const float *statistics, Channels c, float *slope,
                                       float *constant) {
    const u32 lane = threadIdx.x % 32, all = n.channels / n.per_group;
    for (u32 group = threadIdx.x / 32; group < n.slice / n.per_group; group += blockDim.x / 32) {
        float dz = 0.0f, dz_centred = 0.0f;
        for (u32 i = lane; i < n.per_group; i += 32) {
            const u32 channel = group * n.per_group + i;
            dz += c.a[channel] * c.dz[channel];
            dz_centred += c.a[channel] * c.dz_centred[channel];
        }
        dz = warp_sum(dz);
        dz_centred = warp_sum(dz_centred);
        if (lane == 0) {
            const float *of_image = statistics + (u64)s.image * 2 * all + s.base / n.per_group + group;
            const float rstd = of_image[all], count = (float)n.per_group * (float)n.pixels;
            slope[group] = -rstd * rstd * dz_centred / count;
            constant[group] = -dz / count;
        }
    }
    __syncthreads();
}

// dx over the block's part, written to where the channel's gradient belongs, and its sums, if they are wanted; TWO gradients
// are added, or one.
template <typename T, int W, bool KEPT, bool DROPS, bool TWO>
__device__ void apply(const Norm &n, const Site &s, const Operands<T> &o, const Raw<T, W> *kept, Channels c,
                      const float *slopes, const float *constants, float *scratch) {
    const u32 packs = n.slice / W;
    const u64 row = (u64)s.image * n.pixels + s.first;
    const float factor = DROPS ? o.mask.keep : 1.0f;
    for (u32 first = 0; first < packs; first += n.across) {
        const u32 pack = first + s.column, channel = s.base + pack * W;
        float v[W] = {};
        if (pack < packs) {
            float a[W], b[W], slope[W], constant[W];
            fetch(a, c.a + pack * W);
            fetch(b, c.b + pack * W);
#pragma unroll
            for (int k = 0; k < W; ++k) {
                slope[k] = slopes[(pack * W + k) / n.per_group];
                constant[k] = constants[(pack * W + k) / n.per_group] - slope[k] * c.mean[pack * W + k];
            }
            const bool of_rest = channel >= o.joined;
            const u32 stride = of_rest ? n.channels - o.joined : o.joined;
            T *to = of_rest ? o.rest + row * stride + (channel - o.joined) : o.dx + row * stride + channel;
            const u64 column = s.offset + pack * W;
            Raw<T, W> x[BATCH], dy[BATCH], extra[BATCH], second[TWO ? BATCH : 1];
            batched<BATCH>(
                s.row, s.pixels, s.rows,
                [&](int i, u32 pixel) {
                    const u64 at = column + (u64)pixel * n.channels;
                    x[i] = KEPT ? kept[pixel * packs + pack] : load_raw<T, W>(o.x + at);
                    dy[i] = load_raw<T, W>(o.dy + at);
                    if (TWO || o.extra) extra[i] = load_raw<T, W>(o.extra + at);
                    if (TWO) second[i] = load_raw<T, W>(o.second + at);
                },
                [&](int i, u32 pixel) {
                    drop<DROPS>(n, s, o.mask, pixel, pack, dy[i]);
                    Pack<T, W> out;
#pragma unroll
                    for (int k = 0; k < W; ++k) {
                        const float value = x[i].at(k);
                        const float dz = gradient(value, factor * dy[i].at(k), a[k], b[k], o.silu);
                        float rest = TWO || o.extra ? constant[k] + extra[i].at(k) : constant[k];
                        if (TWO) rest += second[i].at(k);
                        const float dx = dz * a[k] + (value * slope[k] + rest);
                        v[k] += dx;
                        out.v[k] = from_float<T>(dx);
                    }
                    store_pack(to + (u64)pixel * stride, out);
                });
        }
        if (!o.dx_sums && !o.doffset) continue;
        sum_down(v, scratch, n.across);
        float *of_part = o.dx_sums + ((u64)s.image * gridDim.y + blockIdx.y) * n.channels + s.base + first * W;
        T *of_image = o.doffset + (u64)s.image * o.dapart + s.base + first * W;
        for (u32 i = threadIdx.x; i < n.across * W && first * W + i < n.slice; i += blockDim.x) {
            if (o.dx_sums) of_part[i] = scratch[i];
            if (o.doffset && gridDim.y == 1) of_image[i] = from_float<T>(scratch[i]);
        }
    }
}

// Leaves the image's gradients of weight and bias in `own`, and writes the modulation's.
template <typename T>
__device__ __forceinline__ void image_gradients(const Norm &n, const Site &s, const Operands<T> &o, Channels c) {
    const u32 all = n.channels / n.per_group;
    for (u32 i = threadIdx.x; i < n.slice; i += blockDim.x) {
        const u32 channel = s.base + i;
        const float rstd = o.statistics[((u64)s.image * 2 + 1) * all + channel / n.per_group];
        const float scale = o.modulation ? 1.0f + to_float(o.modulation[(u64)s.image * n.apart + channel]) : 1.0f;
        write_gradients(n, s, o, channel, c.dz[i], c.dz_centred[i] * rstd, scale);
    }
}

// The gradient of the image's offset from the sums of dx of its parts.
template <typename T> __device__ void offset_gradient(const Norm &n, const Site &s, const Operands<T> &o) {
    const u32 parts = gridDim.y;
    for (u32 i = threadIdx.x; i < n.slice; i += blockDim.x) {
        const float *of_image = o.dx_sums + (u64)s.image * parts * n.channels + s.base + i;
        float sum = 0.0f;
#pragma unroll 8
        for (u32 part = 0; part < parts; ++part) sum += of_image[(u64)part * n.channels];
        o.doffset[(u64)s.image * o.dapart + s.base + i] = from_float<T>(sum);
    }
}

// With `partials`, the sums over the pixels are those; otherwise the block's part is the whole image.
template <typename T, int W, bool KEPT, bool DROPS, bool TWO>
__device__ void backward(const Norm &n, const Operands<T> &o, float *shared) {
    const Site s = site(n);
    Carve carve = {shared};
    const Channels c = {carve.take(n.slice), carve.take(n.slice), carve.take(n.slice), carve.take(n.slice),
                        carve.take(n.slice)};
    float *slope = carve.take(n.slice / n.per_group), *constant = carve.take(n.slice / n.per_group);
    float *scratch = carve.take(blockDim.x / 32 * n.across * 2 * W);
    Raw<T, W> *kept = reinterpret_cast<Raw<T, W> *>(carve.next);
    prepare(n, s, o, c);
    if (!KEPT && o.partials) // what is kept is the whole image
        sum_parts<W>(n, s, o.partials, scratch, c);
    else
        sum_pixels<T, W, KEPT, DROPS>(n, s, o, kept, scratch, c);
    groups(n, s, o.statistics, c, slope, constant);
    apply<T, W, KEPT, DROPS, TWO>(n, s, o, kept, c, slope, constant, scratch);
    if (blockIdx.y == 0) image_gradients(n, s, o, c);
    if (!o.doffset || gridDim.y == 1) return;
    if (last_block(o.counters + blockIdx.z * gridDim.x + blockIdx.x, gridDim.y)) offset_gradient(n, s, o);
}

// Writes the sums over the block's part to `partials`.
template <typename T, int W, bool DROPS> __device__ void part_sums(const Norm &n, const Operands<T> &o, float *shared) {
    const Site s = site(n);
    Carve carve = {shared};
    const Channels c = {carve.take(n.slice), carve.take(n.slice), carve.take(n.slice), carve.take(n.slice),
                        carve.take(n.slice)};
    prepare(n, s, o, c);
    sum_pixels<T, W, false, DROPS>(n, s, o, nullptr, carve.take(blockDim.x / 32 * n.across * 2 * W), c);
    float *partials = o.partials + ((u64)s.image * gridDim.y + blockIdx.y) * 2 * n.channels + s.base;
    for (u32 i = threadIdx.x; i < n.slice; i += blockDim.x) {
        partials[i] = c.dz[i];
        partials[n.channels + i] = c.dz_centred[i];
    }
}

} // namespace group_norm_backward

#define GROUP_NORM_PASS(T, S, DROPS, TWO)                                                                              \
    extern "C" __global__ void TWO_BLOCKS group_norm_backward_##S(GROUP_NORM_BACKWARD_OPERANDS(T)) {                   \
        GROUP_NORM_BACKWARD_GATHER(T);                                                                                 \
        if (width > 1 && kept)                                                                                         \
            group_norm_backward::backward<T, 16 / sizeof(T), true, DROPS, TWO>(n, o, shared);                          \
        else if (width > 1)                                                                                            \
            group_norm_backward::backward<T, 16 / sizeof(T), false, DROPS, TWO>(n, o, shared);                         \
        else                                                                                                           \
            group_norm_backward::backward<T, 1, false, DROPS, TWO>(n, o, shared);                                      \
    }
#define GROUP_NORM_SUMS(T, S, DROPS)                                                                                   \
    extern "C" __global__ void TWO_BLOCKS group_norm_sums_##S(GROUP_NORM_BACKWARD_OPERANDS(T)) {                       \
        GROUP_NORM_BACKWARD_GATHER(T);                                                                                 \
        if (width > 1)                                                                                                 \
            group_norm_backward::part_sums<T, 16 / sizeof(T), DROPS>(n, o, shared);                                    \
        else                                                                                                           \
            group_norm_backward::part_sums<T, 1, DROPS>(n, o, shared);                                                 \
    }
#define GROUP_NORM_BACKWARD(T, S)                    \
    GROUP_NORM_SUMS(T, S, false)                     \
    GROUP_NORM_SUMS(T, dropout_##S, true)            \
    GROUP_NORM_PASS(T, S, false, false)              \
    GROUP_NORM_PASS(T, two_##S, false, true)         \
    GROUP_NORM_PASS(T, dropout_##S, true, false)
FOR_EACH_FLOAT(GROUP_NORM_BACKWARD)
