// Functions of one element: every thread takes 16 bytes at a time where the operands allow it.
#pragma once
#include "common.cuh"

// y[i] = f(x[i]...) for n elements, all of one type; f computes in f32.
template <typename T, typename F, typename... X> __device__ __forceinline__ void map(T *y, u64 n, F f, const X *...x) {
    constexpr int W = 16 / sizeof(T);
    const bool aligned = ((u64)y | ... | (u64)x) % 16 == 0;
    const u64 packed = aligned ? n / W : 0;
    for (u64 i = global_thread(); i < packed; i += global_threads()) {
        // All operands are loaded before the first is used.
        [&](const Pack<X, W> &...in) {
            Pack<T, W> out;
#pragma unroll
            for (int k = 0; k < W; ++k) out.v[k] = from_float<T>(f(to_float(in.v[k])...));
            store_pack(y + i * W, out);
        }(load_pack<X, W>(x + i * W)...);
    }
    for (u64 i = packed * W + global_thread(); i < n; i += global_threads()) y[i] = from_float<T>(f(to_float(x[i])...));
}

// Quotient and remainder; dividing 32 bits takes a quarter of the instructions.
struct Divided {
    u64 quotient;
    u32 rest;
};
__device__ __forceinline__ Divided divide(u64 i, u32 by) {
    if (i >> 32) return {i / by, (u32)(i % by)};
    return {(u32)i / by, (u32)i % by};
}
