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

template <typename T, int W> __device__ __forceinline__ Room<T, W> room(const Norm &n, float *shared) {
    Carve carve = {shared};
    const u32 groups = n.group_of(n.slice), size = n.pixels * (n.slice / W);
    Room<T, W> r = {carve.take(n.slice), carve.take(n.slice), carve.take(n.slice), carve.take(3 * n.slice), carve.take(groups),
                    carve.take(groups), carve.take(blockDim.x / 32 * n.across * 3 * W)};
    r.x = reinterpret_cast<Raw<T, W> *>(carve.next);
    r.dz = r.x + size;
    r.gone = reinterpret_cast<unsigned char *>(r.dz + size);
    return r;
}

template <typename T, int W>
__device__ __forceinline__ void store_channel(const Norm &n, const Room<T, W> &r, const Affine &of, float mean, float rstd) {
    const u32 c = threadIdx.x, group = n.group_of(c);
    if (c >= n.slice) return;
    if (group * n.per_group == c) r.slope[group] = rstd; // until the group has its slope
    r.mean[c] = mean;
    r.a[c] = of.weight * rstd;
    r.b[c] = of.bias - r.a[c] * mean;
}

// d silu(z) / dz of z in units in which 2^z is e^-z.
__device__ __forceinline__ float silu_slope(float z) {
    const float s = reciprocal_flushed(1.0f + exp2_flushed(z)), p = z * s;
    return s - (p - p * s) * (1.0f / LOG2_E);
}

// Leaves the sums over the thread's pixels, and dz where dy was.
template <typename T, int W, bool DROPS, bool SILU>
__device__ __forceinline__ void sum(const Norm &n, const Mine &m, const Room<T, W> &r) {
    float v[3 * W] = {}, a[W] = {}, b[W] = {}, mean[W] = {};
    if (m.any) {
#pragma unroll
        for (int k = 0; k < W; ++k) {
            a[k] = -LOG2_E * r.a[m.pack * W + k];
            b[k] = -LOG2_E * r.b[m.pack * W + k];
            mean[k] = r.mean[m.pack * W + k];
        }
    }
    as_they_come<1>(n, m, [&](u32 at) {
        const u32 gone = DROPS ? r.gone[at] : 0;
        const Raw<T, W> x = r.x[at], dy = r.dz[at];
        Pack<T, W> out;
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const float value = x.at(k), centred = value - mean[k];
            float dz = SILU ? dy.at(k) * silu_slope(value * a[k] + b[k]) : dy.at(k);
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

// Puts the warps' sums together: a thread for each channel; `factor` is dropout's, of what was not dropped.
template <typename T, int W> __device__ __forceinline__ void add_warps(const Norm &n, const Room<T, W> &r, float factor) {
    const u32 c = threadIdx.x;
    if (c >= n.slice) return;
    const float *of_warp = sums_of<3 * W>(r.scratch, n, 0, c / W) + c % W;
    float dz = 0.0f, dz_centred = 0.0f, centred = 0.0f;
#pragma unroll 4
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp, of_warp += n.across * 3 * W) {
        dz += of_warp[0];
        dz_centred += of_warp[W];
        centred += of_warp[2 * W];
    }
    r.sums[c] = factor * dz;
    r.sums[n.slice + c] = factor * dz_centred;
    r.sums[2 * n.slice + c] = centred;
}

// slope = -rstd^2 / count (sum of w dz x^), constant = -rstd / count (sum of w dz), and a = w rstd; a thread for each group.
template <typename T, int W>
__device__ __forceinline__ void groups(const Norm &n, const Room<T, W> &r) {
    const u32 group = threadIdx.x;
    if (group >= n.group_of(n.slice)) return;
    const float rstd = r.slope[group], fraction = reciprocal_flushed((float)n.per_group * (float)n.pixels);
    float dz = 0.0f, dz_centred = 0.0f;
#pragma unroll 4
    for (u32 c = group * n.per_group; c < (group + 1) * n.per_group; ++c) {
        dz += r.a[c] * r.sums[c];
        dz_centred += r.a[c] * r.sums[n.slice + c];
    }
    r.slope[group] = -rstd * rstd * dz_centred * fraction;
    r.constant[group] = -dz * fraction;
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
            slope[k] = r.slope[n.group_of(c)];
            constant[k] = r.constant[n.group_of(c)] - slope[k] * r.mean[c];
        }
        const u32 channel = s.base + m.pack * W;
        const bool of_rest = channel >= o.joined;
        const u32 stride = of_rest ? n.channels - o.joined : o.joined;
        const u64 row = (u64)s.image * n.pixels * stride + (u64)m.row * stride;
        T *to = of_rest ? o.rest + row + (channel - o.joined) : o.dx + row + channel;
        u32 at = m.first;
        constexpr int AHEAD = EXTRA ? 4 : 2;
        Raw<T, W> extra[AHEAD], second[AHEAD];
        const u64 column = s.offset + m.pack * W;
        batched<AHEAD>(
            m.row, n.pixels, m.rows,
            [&](int i, u32 pixel) {
                if (EXTRA > 0) extra[i] = load_raw<T, W>(o.extra + column + (u64)pixel * n.channels);
                if (EXTRA > 1) second[i] = load_raw<T, W>(o.second + column + (u64)pixel * n.channels);
            },
            [&](int i, u32) {
                const Raw<T, W> x = r.x[at], dz = r.dz[at];
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
                store_pack(to, out);
                at += m.step;
                to += m.rows * stride;
            });
    }
    if (EXTRA > 0 && o.dx_sums) leave(n, m, v, r.scratch);
}

// The image's gradients of weight, bias, modulation and offset, and the sums of dx: a thread for each channel.
template <typename T, int W, int EXTRA>
__device__ __forceinline__ void image_gradients(const Norm &n, const Site &s, const Operands<T> &o, const Room<T, W> &r,
                                                float scale, float rstd) {
    const u32 c = threadIdx.x, channel = s.base + c, group = n.group_of(c);
    if (c >= n.slice) return;
    const float dz = r.sums[c];
    write_gradients(n, s, o, channel, dz, r.sums[n.slice + c] * rstd, scale);
    if (!o.dx_sums && !o.doffset) return;
    float sum = r.a[c] * dz + r.slope[group] * r.sums[2 * n.slice + c] + (float)n.pixels * r.constant[group];
    if (EXTRA > 0 && o.dx_sums)
        for (u32 warp = 0; warp < blockDim.x / 32; ++warp) sum += sums_of<W>(r.scratch, n, warp, c / W)[c % W];
    if (o.dx_sums) o.dx_sums[(u64)s.image * n.channels + channel] = sum;
    if (o.doffset) o.doffset[(u64)s.image * o.dapart + channel] = from_float<T>(sum);
}

template <typename T, bool DROPS, int EXTRA>
__device__ __forceinline__ void backward(const Norm &n, const Operands<T> &o, float *shared) {
    constexpr int W = 16 / sizeof(T);
    const Site s = site(n);
    const Mine m = mine<W>(n, s);
    const Room<T, W> r = room<T, W>(n, shared);
    const float factor = DROPS ? o.mask.keep : 1.0f;
    const u32 all = n.group_of(n.channels);
    const float *statistics = o.statistics + (u64)s.image * 2 * all + n.group_of(s.base);
    const Loaded<T> channel = load_channel<T>(n, s, o);
    float mean = 0.0f, rstd = 0.0f;
    if (threadIdx.x < n.slice) {
        mean = statistics[n.group_of(threadIdx.x)];
        rstd = statistics[all + n.group_of(threadIdx.x)];
    }
    u64 from = s.offset + (u64)m.row * n.channels + m.pack * W;
    send_packs(n, m, [&](u32 at) {
        copy_of_line(r.x + at, o.x + from);
        copy_of_line(r.dz + at, o.dy + from);
        from += m.rows * n.channels;
    });
    const Affine of_channel = channel.affine();
    store_channel(n, r, of_channel, mean - to_float(channel.offset), rstd);
    if (DROPS) draw<W>(n, s, m, o.mask, r.gone);
    __syncthreads();
    if (o.silu)
        sum<T, W, DROPS, true>(n, m, r);
    else
        sum<T, W, DROPS, false>(n, m, r);
    __syncthreads();
    add_warps(n, r, factor);
    __syncthreads();
    groups(n, r);
    __syncthreads();
    if (EXTRA == 0) image_gradients<T, W, EXTRA>(n, s, o, r, of_channel.scale, rstd);
    apply<T, W, EXTRA>(n, s, m, o, r, factor);
    if (EXTRA == 0) return;
    __syncthreads();
    image_gradients<T, W, EXTRA>(n, s, o, r, of_channel.scale, rstd);
}

} // namespace group_norm_backward_whole

#define GROUP_NORM_WHOLE_PASS(T, S, DROPS, EXTRA, OTHER)                                                               \
    extern "C" __global__ void TWO_BLOCKS group_norm_backward_##S(GROUP_NORM_BACKWARD_OPERANDS(T)) {                   \
        GROUP_NORM_BACKWARD_GATHER(T);                                                                                 \
        if (EXTRA == OTHER || o.extra)                                                                                 \
            group_norm_backward_whole::backward<T, DROPS, EXTRA>(n, o, shared);                                        \
        else                                                                                                           \
            group_norm_backward_whole::backward<T, DROPS, OTHER>(n, o, shared);                                        \
    }
#define GROUP_NORM_WHOLE_BACKWARD(T, S)                    \
    GROUP_NORM_WHOLE_PASS(T, whole_##S, false, 0, 0)       \
    GROUP_NORM_WHOLE_PASS(T, one_whole_##S, false, 1, 1)   \
    GROUP_NORM_WHOLE_PASS(T, two_whole_##S, false, 2, 2)   \
    GROUP_NORM_WHOLE_PASS(T, dropout_whole_##S, true, 1, 0)
FOR_EACH_FLOAT(GROUP_NORM_WHOLE_BACKWARD)
