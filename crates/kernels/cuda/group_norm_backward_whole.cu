// Group normalisation backward of images of which a block's slice fits into shared memory: x and dy are read from memory once.
// group_norm_backward.cu is for the others.
//
// The gradient of z takes the place of dy in shared memory, so that SiLU's slope is computed once; there it has dy's format, while
// all sums are of what it was before it was rounded. With them go those of x less its mean: what dx sums to over a channel
// follows from the three, dx = dz a + (x - mean) slope + constant.
#include "group_norm_whole.cuh"

namespace group_norm_backward_whole {

using namespace group_norm_whole;
using namespace group_norm_backward;

// Shared memory. Of each channel: z = x a + b, the group's mean less the channel's offset, and the sums over the pixels of dz,
// of dz (x - mean) and of x - mean. Of each group: what dx is made with. src/ops/group_norm/plan.rs counts the same.
template <typename T, int W> struct Room {
    float *a, *b, *mean, *sums, *slope, *constant, *scratch;
    Raw<T, W> *x, *dz;
    unsigned char *gone;
};

template <typename T, int W> __device__ __forceinline__ Room<T, W> room(const Norm &n, const Mine &m, float *shared) {
    Carve carve = {shared};
    const u32 groups = n.slice / n.per_group, size = n.pixels * m.packs;
    Room<T, W> r = {carve.take(n.slice), carve.take(n.slice), carve.take(n.slice), carve.take(3 * n.slice), carve.take(groups),
                    carve.take(groups), carve.take(blockDim.x / 32 * n.across * 3 * W)};
    r.x = reinterpret_cast<Raw<T, W> *>(carve.next);
    r.dz = r.x + size;
    r.gone = reinterpret_cast<unsigned char *>(r.dz + size);
    return r;
}

template <typename T, int W>
__device__ __forceinline__ void prepare(const Norm &n, const Site &s, const Operands<T> &o, const Room<T, W> &r,
                                        const float *statistics, u32 all) {
    for (u32 c = threadIdx.x; c < n.slice; c += blockDim.x) {
        const Affine of_channel = affine(n, s.image, s.base + c, o.weight, o.bias, o.modulation);
        r.mean[c] = statistics[c / n.per_group] - offset_of(n, s.image, s.base + c, o.offset);
        r.a[c] = of_channel.weight * statistics[all + c / n.per_group];
        r.b[c] = of_channel.bias - r.a[c] * r.mean[c];
    }
}

// d silu(z) / dz of z in units in which 2^z is e^-z.
__device__ __forceinline__ float silu_slope(float z) {
    const float s = reciprocal_flushed(1.0f + exp2_flushed(z)), p = z * s;
    return s - (p - p * s) * (1.0f / LOG2_E);
}

// Leaves the sums over the thread's pixels, and dz where dy was.
template <typename T, int W, bool DROPS>
__device__ __forceinline__ void sum(const Norm &n, const Mine &m, const Room<T, W> &r, u32 silu) {
    float v[3 * W] = {}, a[W] = {}, b[W] = {}, mean[W] = {};
    if (m.any) {
#pragma unroll
        for (int k = 0; k < W; ++k) {
            a[k] = -LOG2_E * r.a[m.pack * W + k];
            b[k] = -LOG2_E * r.b[m.pack * W + k];
            mean[k] = r.mean[m.pack * W + k];
        }
    }
    as_they_come(n, m, [&](u32 pixel) {
        const u32 at = m.at(pixel), gone = DROPS ? r.gone[at] : 0;
        const Raw<T, W> x = r.x[at], dy = r.dz[at];
        Pack<T, W> out;
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const float value = x.at(k), centred = value - mean[k];
            float dz = silu ? dy.at(k) * silu_slope(value * a[k] + b[k]) : dy.at(k);
            if (DROPS) dz = gone >> k & 1 ? 0.0f : dz;
            v[k] += dz;
            v[W + k] += dz * centred;
            v[2 * W + k] += centred;
            out.v[k] = from_float<T>(dz);
        }
        store_pack(reinterpret_cast<T *>(r.dz + at), out);
    });
    leave(n, m, v, r.scratch);
}

// Puts the warps' sums together; `factor` is dropout's, of what was not dropped.
template <typename T, int W> __device__ __forceinline__ void add_warps(const Norm &n, const Room<T, W> &r, float factor) {
    for (u32 i = threadIdx.x; i < 3 * n.slice; i += blockDim.x) {
        const u32 kind = i / n.slice, channel = i % n.slice;
        float sum = 0.0f;
#pragma unroll 4
        for (u32 warp = 0; warp < blockDim.x / 32; ++warp)
            sum += sum_of(r.scratch, n, warp, channel / W, 3 * W)[kind * W + channel % W];
        r.sums[i] = kind < 2 ? factor * sum : sum;
    }
}

// slope = -rstd^2 / count (sum of w dz x^), constant = -rstd / count (sum of w dz), and a = w rstd; a thread for each group.
template <typename T, int W>
__device__ __forceinline__ void groups(const Norm &n, const Room<T, W> &r, const float *rstd) {
    for (u32 group = threadIdx.x; group < n.slice / n.per_group; group += blockDim.x) {
        float dz = 0.0f, dz_centred = 0.0f;
#pragma unroll 4
        for (u32 c = group * n.per_group; c < (group + 1) * n.per_group; ++c) {
            dz += r.a[c] * r.sums[c];
            dz_centred += r.a[c] * r.sums[n.slice + c];
        }
        const float count = (float)n.per_group * (float)n.pixels;
        r.slope[group] = -rstd[group] * rstd[group] * dz_centred / count;
        r.constant[group] = -dz / count;
    }
}

// dx, to where the channel's gradient belongs. EXTRA gradients from elsewhere are added, whose sums are left.
template <typename T, int W, int EXTRA>
__device__ __forceinline__ void apply(const Norm &n, const Site &s, const Mine &m, const Operands<T> &o, const Room<T, W> &r,
                                      float factor) {
    float v[W] = {};
    if (m.any) {
        float a[W], slope[W], constant[W];
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const u32 c = m.pack * W + k;
            a[k] = factor * r.a[c];
            slope[k] = r.slope[c / n.per_group];
            constant[k] = r.constant[c / n.per_group] - slope[k] * r.mean[c];
        }
        const u32 channel = s.base + m.pack * W;
        const bool of_rest = channel >= o.joined;
        const u32 stride = of_rest ? n.channels - o.joined : o.joined;
        const u64 row = (u64)s.image * n.pixels * stride, column = s.offset + m.pack * W;
        T *to = of_rest ? o.rest + row + (channel - o.joined) : o.dx + row + channel;
        constexpr int AHEAD = EXTRA ? 4 : 1;
        Raw<T, W> extra[AHEAD], second[AHEAD];
        batched<AHEAD>(
            m.row, n.pixels, m.rows,
            [&](int i, u32 pixel) {
                if (EXTRA > 0) extra[i] = load_raw<T, W>(o.extra + column + (u64)pixel * n.channels);
                if (EXTRA > 1) second[i] = load_raw<T, W>(o.second + column + (u64)pixel * n.channels);
            },
            [&](int i, u32 pixel) {
                const Raw<T, W> x = r.x[m.at(pixel)], dz = r.dz[m.at(pixel)];
                Pack<T, W> out;
#pragma unroll
                for (int k = 0; k < W; ++k) {
                    float rest = constant[k];
                    if (EXTRA > 0) {
                        const float more = EXTRA > 1 ? extra[i].at(k) + second[i].at(k) : extra[i].at(k);
                        v[k] += more;
                        rest += more;
                    }
                    out.v[k] = from_float<T>(dz.at(k) * a[k] + (x.at(k) * slope[k] + rest));
                }
                store_pack(to + (u64)pixel * stride, out);
            });
    }
    if (EXTRA > 0 && o.dx_sums) leave(n, m, v, r.scratch);
}

// The image's gradients of weight, bias, modulation and offset, and the sums of dx.
template <typename T, int W, int EXTRA>
__device__ __forceinline__ void image_gradients(const Norm &n, const Site &s, const Operands<T> &o, const Room<T, W> &r,
                                                const float *rstd) {
    for (u32 c = threadIdx.x; c < n.slice; c += blockDim.x) {
        const u32 channel = s.base + c, group = c / n.per_group;
        const float dz = r.sums[c], dz_x_hat = r.sums[n.slice + c] * rstd[group];
        const u64 at = (u64)s.image * 2 * n.channels + channel;
        const float scale = o.modulation ? 1.0f + to_float(o.modulation[(u64)s.image * n.apart + channel]) : 1.0f;
        o.own[at] = dz_x_hat * scale;
        o.own[at + n.channels] = dz * scale;
        if (o.modulation) {
            T *to = o.dmodulation + (u64)s.image * o.dapart + channel;
            to[0] = from_float<T>(dz_x_hat * o.weight[channel] + dz * o.bias[channel]);
            to[n.channels] = from_float<T>(dz);
        }
        if (!o.dx_sums && !o.doffset) continue;
        float sum = r.a[c] * dz + r.slope[group] * r.sums[2 * n.slice + c] + (float)n.pixels * r.constant[group];
        if (EXTRA > 0 && o.dx_sums)
            for (u32 warp = 0; warp < blockDim.x / 32; ++warp) sum += sum_of(r.scratch, n, warp, c / W, W)[c % W];
        if (o.dx_sums) o.dx_sums[(u64)s.image * n.channels + channel] = sum;
        if (o.doffset) o.doffset[(u64)s.image * o.dapart + channel] = from_float<T>(sum);
    }
}

template <typename T, bool DROPS, int EXTRA>
__device__ __forceinline__ void backward(const Norm &n, const Operands<T> &o, float *shared) {
    constexpr int W = 16 / sizeof(T);
    const Site s = site(n);
    const Mine m = mine(n, s, W);
    const Room<T, W> r = room<T, W>(n, m, shared);
    const float factor = DROPS ? o.mask.keep : 1.0f;
    const u32 all = n.channels / n.per_group;
    const float *statistics = o.statistics + (u64)s.image * 2 * all + s.base / n.per_group;
    send_for(n, m, [&](u32 pixel) {
        const u64 from = s.offset + m.pack * W + (u64)pixel * n.channels;
        copy_16(r.x + m.at(pixel), o.x + from, true);
        copy_16(r.dz + m.at(pixel), o.dy + from, true);
    });
    prepare(n, s, o, r, statistics, all);
    if (DROPS) draw<W>(n, s, m, o.mask, r.gone);
    __syncthreads();
    sum<T, W, DROPS>(n, m, r, o.silu);
    __syncthreads();
    add_warps(n, r, factor);
    __syncthreads();
    groups(n, r, statistics + all);
    __syncthreads();
    apply<T, W, EXTRA>(n, s, m, o, r, factor);
    if (EXTRA > 0) __syncthreads();
    image_gradients<T, W, EXTRA>(n, s, o, r, statistics + all);
}

} // namespace group_norm_backward_whole

#define GROUP_NORM_WHOLE_PASS(T, S, BLOCKS, DROPS, EXTRA, OTHER)                                                       \
    extern "C" __global__ void BLOCKS group_norm_backward_##S(GROUP_NORM_BACKWARD_OPERANDS(T)) {                 \
        GROUP_NORM_BACKWARD_GATHER(T);                                                                                 \
        if (o.extra)                                                                                                   \
            group_norm_backward_whole::backward<T, DROPS, EXTRA>(n, o, shared);                                        \
        else                                                                                                           \
            group_norm_backward_whole::backward<T, DROPS, OTHER>(n, o, shared);                                        \
    }
#define GROUP_NORM_WHOLE_BACKWARD(T, S)                                \
    GROUP_NORM_WHOLE_PASS(T, whole_##S, THREE_BLOCKS, false, 0, 0)     \
    GROUP_NORM_WHOLE_PASS(T, one_whole_##S, TWO_BLOCKS, false, 1, 1)   \
    GROUP_NORM_WHOLE_PASS(T, two_whole_##S, TWO_BLOCKS, false, 2, 2)   \
    GROUP_NORM_WHOLE_PASS(T, dropout_whole_##S, TWO_BLOCKS, true, 1, 0)
FOR_EACH_FLOAT(GROUP_NORM_WHOLE_BACKWARD)
