// Group normalisation forward of images of which a block's slice fits into shared memory: x is read from memory once.
// group_norm.cu is for the others.
//
// Neighbouring channels of a group, Q of them, are summed together: differences from one element of the group, which is close
// enough to its mean for the sum of squares not to cancel.
#include "group_norm_whole.cuh"

namespace group_norm_whole_forward {

using namespace group_norm_whole;
using namespace group_norm_forward;

// Shared memory: of each channel, then of each group. src/ops/group_norm/plan.rs counts the same.
template <typename T, int W> struct Room {
    float *weight, *bias, *offset, *pivot, *mean, *rstd, *scratch;
    Raw<T, W> *x;
    unsigned char *gone;
};

template <typename T, int W, int Q> __device__ __forceinline__ Room<T, W> room(const Norm &n, float *shared) {
    Carve carve = {shared};
    const u32 groups = n.group_of(n.slice);
    Room<T, W> r = {carve.take(n.slice), carve.take(n.slice), carve.take(n.slice), carve.take(groups), carve.take(groups),
                    carve.take(groups), carve.take(blockDim.x / 32 * n.across * 2 * (W / Q))};
    r.x = reinterpret_cast<Raw<T, W> *>(carve.next);
    r.gone = reinterpret_cast<unsigned char *>(r.x + n.pixels * (n.slice / W));
    return r;
}

// The image's first pixel of a channel, and how far the next pixel is.
template <typename T> struct Column {
    const T *first;
    u32 stride;
};
template <typename T> __device__ __forceinline__ Column<T> column(const Norm &n, const Source<T> &x, u32 image, u32 channel) {
    const bool of_rest = channel >= x.joined;
    const u32 stride = of_rest ? n.channels - x.joined : x.joined;
    const u64 row = (u64)image * n.pixels * stride;
    return {of_rest ? x.rest + row + (channel - x.joined) : x.x + row + channel, stride};
}

template <typename T, int W>
__device__ __forceinline__ void store_channel(const Norm &n, const Room<T, W> &r, const Loaded<T> &of) {
    const u32 c = threadIdx.x, group = n.group_of(c);
    if (c >= n.slice) return;
    const Affine affine = of.affine();
    r.weight[c] = affine.weight;
    r.bias[c] = affine.bias;
    r.offset[c] = to_float(of.offset);
    if (group * n.per_group == c) r.pivot[group] = to_float(of.pivot) + to_float(of.offset);
}

// Leaves the sums of x + offset less the pivot, and of their squares; and writes x, where it was two tensors.
template <typename T, int W, int Q>
__device__ __forceinline__ void sum(const Norm &n, const Site &s, const Mine &m, T *whole, const Room<T, W> &r) {
    constexpr int S = W / Q;
    float v[2 * S] = {}, pivot[W] = {};
    if (m.any) {
#pragma unroll
        for (int k = 0; k < W; ++k) pivot[k] = r.pivot[n.group_of(m.pack * W + k / Q * Q)] - r.offset[m.pack * W + k];
    }
    T *copy = whole + s.offset + (u64)m.row * n.channels + m.pack * W;
    as_they_come<2>(n, m, [&](u32 at) {
        const Raw<T, W> x = r.x[at];
        if (whole) store_raw(copy, x);
        copy += m.rows * n.channels;
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const float d = x.at(k) - pivot[k];
            v[k / Q] += d;
            v[S + k / Q] += d * d;
        }
    });
    leave(n, m, v, r.scratch);
}

// Mean and reciprocal standard deviation of the slice's groups, a thread for each; also to `statistics` [N, 2, G].
template <typename T, int W, int Q>
__device__ __forceinline__ void groups(const Norm &n, const Site &s, const Room<T, W> &r, float eps, float *statistics) {
    constexpr int S = W / Q;
    const u32 group = threadIdx.x, all = n.group_of(n.channels), parts = n.per_group / Q;
    if (group >= n.group_of(n.slice)) return;
    float sum = 0.0f, square = 0.0f;
    for (u32 part = group * parts; part < (group + 1) * parts; ++part) {
        const float *of_part = sums_of<2 * S>(r.scratch, n, 0, part / S) + part % S;
#pragma unroll 4
        for (u32 warp = 0; warp < blockDim.x / 32; ++warp, of_part += n.across * 2 * S) {
            sum += of_part[0];
            square += of_part[S];
        }
    }
    const float fraction = reciprocal_flushed((float)n.per_group * (float)n.pixels), shift = sum * fraction;
    const float variance = fmaxf(square - sum * shift, 0.0f) * fraction;
    float *of_image = statistics + (u64)s.image * 2 * all + n.group_of(s.base) + group;
    of_image[0] = r.mean[group] = r.pivot[group] + shift;
    of_image[all] = r.rstd[group] = rsqrtf(variance + eps);
}

// y = silu(x a + b) or x a + b, less what is dropped.
template <typename T, int W, int Q, bool DROPS, bool SILU>
__device__ __forceinline__ void apply(const Norm &n, const Site &s, const Mine &m, const Operands<T> &o, const Room<T, W> &r) {
    const float factor = DROPS ? o.mask.keep : 1.0f;
    // With SiLU, z is in units in which 2^z is e^-z. What undoes them and dropout's factor go into the reciprocal.
    constexpr float UNIT = SILU ? -LOG2_E : 1.0f;
    const float scale = DROPS ? UNIT / factor : UNIT;
    float a[W], b[W];
#pragma unroll
    for (int k = 0; k < W; ++k) {
        const u32 channel = m.pack * W + k, group = n.group_of(m.pack * W + k / Q * Q);
        a[k] = UNIT * (r.weight[channel] * r.rstd[group]);
        b[k] = UNIT * r.bias[channel] - a[k] * (r.mean[group] - r.offset[channel]);
    }
    T *to = o.y + s.offset + (u64)m.row * n.channels + m.pack * W;
    u32 at = m.first;
#pragma unroll 2
    for (u32 pixel = m.row; pixel < n.pixels; pixel += m.rows, at += m.step, to += m.rows * n.channels) {
        const Raw<T, W> x = r.x[at];
        const u32 gone = DROPS ? r.gone[at] : 0;
        Pack<T, W> out;
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const float z = x.at(k) * a[k] + b[k];
            const float y = SILU ? z * reciprocal_flushed(scale + scale * exp2_flushed(z)) : z * factor;
            out.v[k] = from_float<T>(gone >> k & 1 ? 0.0f : y);
        }
        store_pack(to, out);
    }
}

template <typename T, int Q, bool DROPS>
__device__ __forceinline__ void forward(const Norm &n, const Operands<T> &o, float eps, u32 silu, float *shared) {
    constexpr int W = 16 / sizeof(T);
    const Site s = site(n);
    const Mine m = mine<W>(n, s);
    const Room<T, W> r = room<T, W, Q>(n, shared);
    Loaded<T> channel = load_channel<T>(n, s, o);
    if (threadIdx.x < n.slice) channel.pivot = *column(n, o.x, s.image, s.base + threadIdx.x).first;
    const Column<T> column_of = column(n, o.x, s.image, s.base + m.pack * W);
    const T *from = column_of.first + (u64)m.row * column_of.stride;
    send_packs(n, m, [&](u32 at) {
        copy_of_line(r.x + at, from);
        from += m.rows * column_of.stride;
    });
    store_channel(n, r, channel);
    if (DROPS) draw<W>(n, s, m, o.mask, r.gone);
    __syncthreads();
    sum<T, W, Q>(n, s, m, o.x.whole, r);
    __syncthreads();
    groups<T, W, Q>(n, s, r, eps, o.statistics);
    __syncthreads();
    if (!m.any) return;
    if (silu)
        apply<T, W, Q, DROPS, true>(n, s, m, o, r);
    else
        apply<T, W, Q, DROPS, false>(n, s, m, o, r);
}

} // namespace group_norm_whole_forward

#define GROUP_NORM_WHOLE(T, S)                                                                                         \
    extern "C" __global__ void THREE_BLOCKS group_norm_whole_##S(GROUP_NORM_FORWARD_OPERANDS(T)) {                     \
        GROUP_NORM_FORWARD_GATHER(T);                                                                                  \
        if (keep != 0.0f && per_group % 4 == 0)                                                                        \
            group_norm_whole_forward::forward<T, 4, true>(n, o, eps, silu, shared);                                    \
        else if (keep != 0.0f)                                                                                         \
            group_norm_whole_forward::forward<T, 1, true>(n, o, eps, silu, shared);                                    \
        else if (per_group % 4 == 0)                                                                                   \
            group_norm_whole_forward::forward<T, 4, false>(n, o, eps, silu, shared);                                   \
        else                                                                                                           \
            group_norm_whole_forward::forward<T, 1, false>(n, o, eps, silu, shared);                                   \
    }
FOR_EACH_FLOAT(GROUP_NORM_WHOLE)
