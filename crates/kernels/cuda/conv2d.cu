// What a convolution needs besides cuDNN: bias and residual where they could not be fused, a gradient added to what is
// there, and plain convolutions for shapes that no engine takes, and for comparisons without a transform's rounding.
#include "common.cuh"

// The sizes of a convolution; see crates/kernels/src/ops/conv2d/mod.rs for the formula.
struct Geometry {
    u32 n, h, w, ci, oh, ow, co, kernel, stride, pad;
};

// y[row, c] += bias[c] + residual[row, c].
template <typename T> __device__ void bias_residual(T *y, const T *bias, const T *residual, u64 channels, u64 n) {
    for (u64 i = global_thread(); i < n; i += global_threads()) {
        float v = to_float(y[i]) + to_float(bias[i % channels]);
        if (residual) v += to_float(residual[i]);
        y[i] = from_float<T>(v);
    }
}

// to (+)= from, four neighbours at a time where both begin at multiples of four.
template <typename T> __device__ void accumulate(const T *from, float *to, u32 add, u64 n) {
    constexpr int W = 4;
    const bool aligned = (u64)from % sizeof(Pack<T, W>) == 0 && (u64)to % sizeof(Pack<float, W>) == 0;
    const u64 packed = aligned ? n / W : 0;
    for (u64 i = global_thread(); i < packed; i += global_threads()) {
        const Pack<T, W> in = load_pack<T, W>(from + i * W);
        Pack<float, W> sum = {};
        if (add) sum = load_pack<float, W>(to + i * W);
#pragma unroll
        for (int k = 0; k < W; ++k) sum.v[k] += to_float(in.v[k]);
        store_pack(to + i * W, sum);
    }
    for (u64 i = packed * W + global_thread(); i < n; i += global_threads())
        to[i] = (add ? to[i] : 0.0f) + to_float(from[i]);
}

// to (+)= from over the block's piece. `pieces` are pairs of a first element, a multiple of 8, and a number of elements.
template <typename T> __device__ void settle_gradients(const T *from, float *to, const u32 *pieces, u32 add) {
    constexpr int W = 4; // as many f32 as one load fetches
    const u32 first = pieces[2 * blockIdx.x], count = pieces[2 * blockIdx.x + 1];
    from += first;
    to += first;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < count / W; i += blockDim.x) {
        const Pack<T, W> in = load_pack<T, W>(from + i * W);
        Pack<float, W> out = {};
        if (add) out = load_pack<float, W>(to + i * W);
#pragma unroll
        for (int k = 0; k < W; ++k) out.v[k] += to_float(in.v[k]);
        store_pack(to + i * W, out);
    }
    for (u32 i = count / W * W + threadIdx.x; i < count; i += blockDim.x) to[i] = (add ? to[i] : 0.0f) + to_float(from[i]);
}

// One thread for each output.
template <typename T>
__device__ void conv2d_direct(const T *x, const T *weight, const T *bias, const T *residual, T *y, Geometry g, u64 n) {
    for (u64 at = global_thread(); at < n; at += global_threads()) {
        u64 rest = at;
        u32 o = rest % g.co;
        u32 ox = (rest /= g.co) % g.ow;
        u32 oy = (rest /= g.ow) % g.oh;
        u64 image = rest / g.oh;
        float sum = to_float(bias[o]) + (residual ? to_float(residual[at]) : 0.0f);
        for (u32 ky = 0; ky < g.kernel; ++ky) {
            int iy = (int)(oy * g.stride + ky) - (int)g.pad;
            if (iy < 0 || iy >= (int)g.h) continue;
            for (u32 kx = 0; kx < g.kernel; ++kx) {
                int ix = (int)(ox * g.stride + kx) - (int)g.pad;
                if (ix < 0 || ix >= (int)g.w) continue;
                const T *pixel = x + ((image * g.h + iy) * g.w + ix) * g.ci;
                const T *row = weight + ((u64)(o * g.kernel + ky) * g.kernel + kx) * g.ci;
                for (u32 i = 0; i < g.ci; ++i) sum += to_float(pixel[i]) * to_float(row[i]);
            }
        }
        y[at] = from_float<T>(sum);
    }
}

// One thread for each element of dx: it gathers the outputs it took part in.
template <typename T>
__device__ void conv2d_input_gradient(const T *dy, const T *weight, T *dx, Geometry g, u64 n) {
    for (u64 at = global_thread(); at < n; at += global_threads()) {
        u64 rest = at;
        u32 i = rest % g.ci;
        u32 ix = (rest /= g.ci) % g.w;
        u32 iy = (rest /= g.w) % g.h;
        u64 image = rest / g.h;
        float sum = 0.0f;
        for (u32 ky = 0; ky < g.kernel; ++ky) {
            int sy = (int)(iy + g.pad) - (int)ky;
            if (sy < 0 || sy % (int)g.stride || sy / (int)g.stride >= (int)g.oh) continue;
            for (u32 kx = 0; kx < g.kernel; ++kx) {
                int sx = (int)(ix + g.pad) - (int)kx;
                if (sx < 0 || sx % (int)g.stride || sx / (int)g.stride >= (int)g.ow) continue;
                const T *pixel = dy + ((image * g.oh + sy / g.stride) * g.ow + sx / g.stride) * g.co;
                const T *column = weight + (u64)(ky * g.kernel + kx) * g.ci + i;
                u64 step = (u64)g.kernel * g.kernel * g.ci;
                for (u32 o = 0; o < g.co; ++o) sum += to_float(pixel[o]) * to_float(column[o * step]);
            }
        }
        dx[at] = from_float<T>(sum);
    }
}

// One block for each element of dw: its threads share the pixels.
template <typename T>
__device__ void conv2d_weight_gradient(const T *x, const T *dy, float *dw, Geometry g, u32 add) {
    u64 rest = blockIdx.x;
    u32 i = rest % g.ci;
    u32 kx = (rest /= g.ci) % g.kernel;
    u32 ky = (rest /= g.kernel) % g.kernel;
    u32 o = rest / g.kernel;
    u64 outputs = (u64)g.n * g.oh * g.ow;
    float sum = 0.0f;
    for (u64 at = threadIdx.x; at < outputs; at += blockDim.x) {
        u32 ox = at % g.ow, oy = at / g.ow % g.oh;
        u64 image = at / g.ow / g.oh;
        int iy = (int)(oy * g.stride + ky) - (int)g.pad, ix = (int)(ox * g.stride + kx) - (int)g.pad;
        if (iy < 0 || iy >= (int)g.h || ix < 0 || ix >= (int)g.w) continue;
        sum += to_float(dy[at * g.co + o]) * to_float(x[((image * g.h + iy) * g.w + ix) * g.ci + i]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) dw[blockIdx.x] = (add ? dw[blockIdx.x] : 0.0f) + sum;
}

#define GEOMETRY u32 n, u32 h, u32 w, u32 ci, u32 oh, u32 ow, u32 co, u32 kernel, u32 stride, u32 pad
#define CONV2D(T, S)                                                                                                   \
    extern "C" __global__ void bias_residual_##S(T *y, const T *bias, const T *residual, u64 channels, u64 n) {        \
        bias_residual<T>(y, bias, residual, channels, n);                                                              \
    }                                                                                                                  \
    extern "C" __global__ void accumulate_##S(const T *from, float *to, u32 add, u64 n) {                              \
        accumulate<T>(from, to, add, n);                                                                               \
    }                                                                                                                  \
    extern "C" __global__ void settle_gradients_##S(const T *from, float *to, const u32 *pieces, u32 add) {            \
        settle_gradients<T>(from, to, pieces, add);                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void conv2d_direct_##S(const T *x, const T *weight, const T *bias, const T *residual, T *y,  \
                                                 GEOMETRY, u64 outputs) {                                              \
        conv2d_direct<T>(x, weight, bias, residual, y, {n, h, w, ci, oh, ow, co, kernel, stride, pad}, outputs);       \
    }                                                                                                                  \
    extern "C" __global__ void conv2d_input_gradient_##S(const T *dy, const T *weight, T *dx, GEOMETRY, u64 inputs) {  \
        conv2d_input_gradient<T>(dy, weight, dx, {n, h, w, ci, oh, ow, co, kernel, stride, pad}, inputs);              \
    }                                                                                                                  \
    extern "C" __global__ void conv2d_weight_gradient_##S(const T *x, const T *dy, float *dw, GEOMETRY, u32 add) {     \
        conv2d_weight_gradient<T>(x, dy, dw, {n, h, w, ci, oh, ow, co, kernel, stride, pad}, add);                     \
    }
FOR_EACH_FLOAT(CONV2D)
