// Sums, multiples, SiLU and the other activations, casts. One pass over memory each.
#include "pointwise.cuh"

template <typename T> __device__ void add(const T *a, const T *b, T *y, u64 n) {
    map(y, n, [](float a, float b) { return a + b; }, a, b);
}

template <typename T> __device__ void scale(const T *x, T *y, u64 n, float factor) {
    map(y, n, [=](float x) { return factor * x; }, x);
}

template <typename T> __device__ void silu(const T *x, T *y, u64 n) {
    map(y, n, [](float x) { return x * sigmoid(x); }, x);
}

template <typename T> __device__ void silu_backward(const T *x, const T *dy, T *dx, u64 n) {
    map(
        dx, n,
        [](float x, float dy) {
            const float s = sigmoid(x);
            return dy * s * (1.0f + x * (1.0f - s));
        },
        x, dy);
}

// The functions of src/ops/activation.rs and their derivatives, in its order.
enum Activation { RELU, GELU, MISH };

// tanh(ln(1 + e^x)); from 40 on it is 1.
__device__ __forceinline__ float tanh_softplus(float x) {
    const float e = expf(fminf(x, 40.0f)), n = e * (e + 2.0f);
    return n / (n + 2.0f);
}

__device__ __forceinline__ float activate(u32 which, float x) {
    if (which == RELU) return fmaxf(x, 0.0f);
    if (which == GELU) return x * normcdff(x);
    return x * tanh_softplus(x);
}

__device__ __forceinline__ float activation_slope(u32 which, float x) {
    if (which == RELU) return x > 0.0f ? 1.0f : 0.0f;
    if (which == GELU) return normcdff(x) + x * expf(-0.5f * x * x) * 0.3989422804014327f;
    const float t = tanh_softplus(x);
    return t + x * (1.0f - t * t) / (1.0f + expf(-x));
}

template <typename T> __device__ void activation(const T *x, T *y, u64 n, u32 which) {
    map(y, n, [=](float x) { return activate(which, x); }, x);
}

template <typename T> __device__ void activation_backward(const T *x, const T *dy, T *dx, u64 n, u32 which) {
    map(dx, n, [=](float x, float dy) { return dy * activation_slope(which, x); }, x, dy);
}

#define ELEMENTWISE(T, S)                                                                                          \
    extern "C" __global__ void add_##S(const T *a, const T *b, T *y, u64 n) { add<T>(a, b, y, n); }                \
    extern "C" __global__ void scale_##S(const T *x, T *y, u64 n, float factor) { scale<T>(x, y, n, factor); }     \
    extern "C" __global__ void silu_##S(const T *x, T *y, u64 n) { silu<T>(x, y, n); }                             \
    extern "C" __global__ void silu_backward_##S(const T *x, const T *dy, T *dx, u64 n) {                          \
        silu_backward<T>(x, dy, dx, n);                                                                            \
    }                                                                                                              \
    extern "C" __global__ void activation_##S(const T *x, T *y, u64 n, u32 which) { activation<T>(x, y, n, which); } \
    extern "C" __global__ void activation_backward_##S(const T *x, const T *dy, T *dx, u64 n, u32 which) {         \
        activation_backward<T>(x, dy, dx, n, which);                                                               \
    }
FOR_EACH_FLOAT(ELEMENTWISE)

template <typename A, typename B> __device__ void cast(const A *x, B *y, u64 n) {
    constexpr int W = 4;
    const bool aligned = (u64)x % sizeof(Pack<A, W>) == 0 && (u64)y % sizeof(Pack<B, W>) == 0;
    const u64 packed = aligned ? n / W : 0;
    for (u64 i = global_thread(); i < packed; i += global_threads()) {
        const Pack<A, W> in = load_pack<A, W>(x + i * W);
        Pack<B, W> out;
#pragma unroll
        for (int k = 0; k < W; ++k) out.v[k] = from_float<B>(to_float(in.v[k]));
        store_pack(y + i * W, out);
    }
    for (u64 i = packed * W + global_thread(); i < n; i += global_threads()) y[i] = from_float<B>(to_float(x[i]));
}

#define CAST(A, SA, B, SB) \
    extern "C" __global__ void convert_##SA##_##SB(const A *x, B *y, u64 n) { cast<A, B>(x, y, n); }
CAST(float, f32, bf16, bf16)
CAST(float, f32, f16, f16)
CAST(bf16, bf16, float, f32)
CAST(bf16, bf16, f16, f16)
CAST(f16, f16, float, f32)
CAST(f16, f16, bf16, bf16)
