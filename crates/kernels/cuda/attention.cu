// The softmax of attention's scores and its gradient, where the products around them are the library's.
//
// A row belongs to a warp, which goes over it twice: the second time it comes from the cache.
#include "common.cuh"

__device__ __forceinline__ float warp_max(float v) {
    for (int lane = 16; lane > 0; lane >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, lane));
    return v;
}

// exp(v - max), and 0 where there was nothing yet (both are -inf).
__device__ __forceinline__ float exp_below(float v, float max) { return v == -INFINITY ? 0.0f : __expf(v - max); }

// x = softmax(x) for one row of length l, W neighbours at a time.
template <typename T, int W> __device__ void softmax_row(T *x, u32 l) {
    u32 lane = threadIdx.x % 32;
    float max = -INFINITY, sum = 0.0f;
    for (u32 i = lane * W; i < l; i += 32 * W) {
        Pack<T, W> pack = load_pack<T, W>(x + i);
        float higher = max;
        for (int j = 0; j < W; ++j) higher = fmaxf(higher, to_float(pack.v[j]));
        sum *= exp_below(max, higher);
        for (int j = 0; j < W; ++j) sum += __expf(to_float(pack.v[j]) - higher);
        max = higher;
    }
    float row_max = warp_max(max);
    float inverse = 1.0f / warp_sum(sum * exp_below(max, row_max));
    for (u32 i = lane * W; i < l; i += 32 * W) {
        Pack<T, W> pack = load_pack<T, W>(x + i);
        for (int j = 0; j < W; ++j) pack.v[j] = from_float<T>(__expf(to_float(pack.v[j]) - row_max) * inverse);
        store_pack<T, W>(x + i, pack);
    }
}

// dp = p (dp - sum p dp) for one row of length l.
template <typename T, int W> __device__ void softmax_gradient_row(const T *p, T *dp, u32 l) {
    u32 lane = threadIdx.x % 32;
    float dot = 0.0f;
    for (u32 i = lane * W; i < l; i += 32 * W) {
        Pack<T, W> a = load_pack<T, W>(p + i), b = load_pack<T, W>(dp + i);
        for (int j = 0; j < W; ++j) dot += to_float(a.v[j]) * to_float(b.v[j]);
    }
    dot = warp_sum(dot);
    for (u32 i = lane * W; i < l; i += 32 * W) {
        Pack<T, W> a = load_pack<T, W>(p + i), b = load_pack<T, W>(dp + i);
        for (int j = 0; j < W; ++j) b.v[j] = from_float<T>(to_float(a.v[j]) * (to_float(b.v[j]) - dot));
        store_pack<T, W>(dp + i, b);
    }
}

// Rows start at multiples of 16 bytes where their length is a multiple of the wide pack.
template <typename T> __device__ void softmax(T *x, u64 rows, u32 l) {
    constexpr int WIDE = 16 / sizeof(T);
    for (u64 row = global_thread() / 32; row < rows; row += global_threads() / 32) {
        if (l % WIDE == 0) {
            softmax_row<T, WIDE>(x + row * l, l);
        } else {
            softmax_row<T, 1>(x + row * l, l);
        }
    }
}

template <typename T> __device__ void softmax_gradient(const T *p, T *dp, u64 rows, u32 l) {
    constexpr int WIDE = 16 / sizeof(T);
    for (u64 row = global_thread() / 32; row < rows; row += global_threads() / 32) {
        if (l % WIDE == 0) {
            softmax_gradient_row<T, WIDE>(p + row * l, dp + row * l, l);
        } else {
            softmax_gradient_row<T, 1>(p + row * l, dp + row * l, l);
        }
    }
}

#define SOFTMAX(T, S)                                                                                               \
    extern "C" __global__ void attention_softmax_##S(T *x, u64 rows, u32 l) { softmax<T>(x, rows, l); }             \
    extern "C" __global__ void attention_softmax_gradient_##S(const T *p, T *dp, u64 rows, u32 l) {                 \
        softmax_gradient<T>(p, dp, rows, l);                                                                        \
    }
FOR_EACH_FLOAT(SOFTMAX)
