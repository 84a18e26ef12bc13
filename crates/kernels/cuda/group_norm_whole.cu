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

template <typename T, int W, int Q> __device__ __forceinline__ Room<T, W> room(const Norm &n, const Mine &m, float *shared) {
    Carve carve = {shared};
    const u32 groups = n.slice / n.per_group;
    Room<T, W> r = {carve.take(n.slice), carve.take(n.slice), carve.take(n.slice), carve.take(groups), carve.take(groups),
                    carve.take(groups), carve.take(blockDim.x / 32 * n.across * 2 * (W / Q))};
    r.x = reinterpret_cast<Raw<T, W> *>(carve.next);
    r.gone = reinterpret_cast<unsigned char *>(r.x + n.pixels * m.packs);
    return r;
}

// Element (image's first pixel, channel) of x, and how far the next pixel's is.
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

// What the slice's channels need.
template <typename T, int W>
__device__ __forceinline__ void prepare(const Norm &n, const Site &s, const Operands<T> &o, const Room<T, W> &r) {
    for (u32 c = threadIdx.x; c < n.slice; c += blockDim.x) {
        const Affine of_channel = affine(n, s.image, s.base + c, o.weight, o.bias, o.modulation);
        r.weight[c] = of_channel.weight;
        r.bias[c] = of_channel.bias;
        r.offset[c] = offset_of(n, s.image, s.base + c, o.offset);
        if (c % n.per_group == 0) r.pivot[c / n.per_group] = to_float(*column(n, o.x, s.image, s.base + c).first) + r.offset[c];
    }
}

// Leaves the sums of x + offset less the pivot, and of their squares; and writes x, where it was two tensors.
template <typename T, int W, int Q>
__device__ __forceinline__ void sum(const Norm &n, const Site &s, const Mine &m, const Source<T> &from, const Room<T, W> &r) {
    constexpr int S = W / Q;
    float v[2 * S] = {}, pivot[W] = {};
    if (m.any) {
#pragma unroll
        for (int k = 0; k < W; ++k) pivot[k] = r.pivot[(m.pack * W + k) / n.per_group] - r.offset[m.pack * W + k];
    }
    T *copy = from.whole ? from.whole + s.offset + m.pack * W : nullptr;
    as_they_come(n, m, [&](u32 pixel) {
        const Raw<T, W> x = r.x[m.at(pixel)];
        if (copy) store_raw(copy + (u64)pixel * n.channels, x);
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
    const u32 all = n.channels / n.per_group, parts = n.per_group / Q;
    for (u32 group = threadIdx.x; group < n.slice / n.per_group; group += blockDim.x) {
        float sum = 0.0f, square = 0.0f;
        for (u32 warp = 0; warp < blockDim.x / 32; ++warp)
#pragma unroll 2
            for (u32 part = group * parts; part < (group + 1) * parts; ++part) {
                const float *of_part = sum_of(r.scratch, n, warp, part / S, 2 * S) + part % S;
                sum += of_part[0];
                square += of_part[S];
            }
        const float count = (float)n.per_group * (float)n.pixels, shift = sum / count;
        const float variance = fmaxf(square - sum * shift, 0.0f) / count;
        float *of_image = statistics + (u64)s.image * 2 * all + s.base / n.per_group + group;
        of_image[0] = r.mean[group] = r.pivot[group] + shift;
        of_image[all] = r.rstd[group] = 1.0f / sqrtf(variance + eps);
    }
}

// y = silu(x a + b) or x a + b, less what is dropped.
template <typename T, int W, bool DROPS, bool SILU>
__device__ __forceinline__ void apply(const Norm &n, const Site &s, const Mine &m, const Operands<T> &o, const Room<T, W> &r) {
    const float factor = DROPS ? o.mask.keep : 1.0f;
    // With SiLU, z is in units in which 2^z is e^-z. What undoes them and dropout's factor go into the reciprocal.
    constexpr float UNIT = SILU ? -LOG2_E : 1.0f;
    const float scale = UNIT / factor;
    float a[W], b[W];
#pragma unroll
    for (int k = 0; k < W; ++k) {
        const u32 channel = m.pack * W + k, group = channel / n.per_group;
        a[k] = UNIT * (r.weight[channel] * r.rstd[group]);
        b[k] = UNIT * r.bias[channel] - a[k] * (r.mean[group] - r.offset[channel]);
    }
    T *to = o.y + s.offset + m.pack * W;
#pragma unroll 2
    for (u32 pixel = m.row; pixel < n.pixels; pixel += m.rows) {
        const Raw<T, W> x = r.x[m.at(pixel)];
        const u32 gone = DROPS ? r.gone[m.at(pixel)] : 0;
        Pack<T, W> out;
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const float z = x.at(k) * a[k] + b[k];
            const float y = SILU ? z * reciprocal_flushed(scale + scale * exp2_flushed(z)) : z * factor;
            out.v[k] = from_float<T>(gone >> k & 1 ? 0.0f : y);
        }
        store_pack(to + (u64)pixel * n.channels, out);
    }
}

template <typename T, int Q, bool DROPS>
__device__ __forceinline__ void forward(const Norm &n, const Operands<T> &o, float eps, u32 silu, float *shared) {
    constexpr int W = 16 / sizeof(T);
    const Site s = site(n);
    const Mine m = mine(n, s, W);
    const Room<T, W> r = room<T, W, Q>(n, m, shared);
    const Column<T> from = column(n, o.x, s.image, s.base + m.pack * W);
    send_for(n, m, [&](u32 pixel) { copy_16(r.x + m.at(pixel), from.first + (u64)pixel * from.stride, true); });
    prepare(n, s, o, r);
    if (DROPS) draw<W>(n, s, m, o.mask, r.gone);
    __syncthreads();
    sum<T, W, Q>(n, s, m, o.x, r);
    __syncthreads();
    groups<T, W, Q>(n, s, r, eps, o.statistics);
    __syncthreads();
    if (!m.any) return;
    if (silu)
        apply<T, W, DROPS, true>(n, s, m, o, r);
    else
        apply<T, W, DROPS, false>(n, s, m, o, r);
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
