// Doubling and halving images [rows of pixels, pixels, channels]. Each reads its input once.
#include "pointwise.cuh"

// y[2 row + {0, 1}, 2 column + {0, 1}] = factor x[row, column]. A thread takes W channels of one pixel of x.
template <typename T, int W>
__device__ void repeat_pixels(const T *x, T *y, u64 packs, u32 columns, u32 channel_packs, float factor) {
    for (u64 i = global_thread(); i < packs; i += global_threads()) {
        const Divided channel = divide(i, channel_packs), pixel = divide(channel.quotient, columns);
        Pack<T, W> v = load_pack<T, W>(x + i * W);
#pragma unroll
        for (int k = 0; k < W; ++k) v.v[k] = from_float<T>(factor * to_float(v.v[k]));
        const u64 row = 2ull * columns * channel_packs; // of y, in packs
        T *first = y + (2 * pixel.quotient * row + 2ull * pixel.rest * channel_packs + channel.rest) * W;
        store_pack(first, v);
        store_pack(first + (u64)channel_packs * W, v);
        store_pack(first + row * W, v);
        store_pack(first + (row + channel_packs) * W, v);
    }
}

// y[row, column] = factor (the sum of x[2 row + {0, 1}, 2 column + {0, 1}]). `columns` and `packs` are y's.
template <typename T, int W>
__device__ void sum_squares(const T *x, T *y, u64 packs, u32 columns, u32 channel_packs, float factor) {
    for (u64 i = global_thread(); i < packs; i += global_threads()) {
        const Divided channel = divide(i, channel_packs), pixel = divide(channel.quotient, columns);
        const u64 row = 2ull * columns * channel_packs; // of x, in packs
        const T *first = x + (2 * pixel.quotient * row + 2ull * pixel.rest * channel_packs + channel.rest) * W;
        const Pack<T, W> a = load_pack<T, W>(first), b = load_pack<T, W>(first + (u64)channel_packs * W);
        const Pack<T, W> c = load_pack<T, W>(first + row * W), d = load_pack<T, W>(first + (row + channel_packs) * W);
        Pack<T, W> sum;
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const float upper = to_float(a.v[k]) + to_float(b.v[k]), lower = to_float(c.v[k]) + to_float(d.v[k]);
            sum.v[k] = from_float<T>(factor * (upper + lower));
        }
        store_pack(y + i * W, sum);
    }
}

#define RESAMPLE(T, S)                                                                                               \
    extern "C" __global__ void repeat_pixels_##S(const T *x, T *y, u64 packs, u32 columns, u32 channel_packs,        \
                                                 float factor, u32 width) {                                          \
        if (width > 1)                                                                                               \
            repeat_pixels<T, 16 / sizeof(T)>(x, y, packs, columns, channel_packs, factor);                           \
        else                                                                                                         \
            repeat_pixels<T, 1>(x, y, packs, columns, channel_packs, factor);                                        \
    }                                                                                                                \
    extern "C" __global__ void sum_squares_##S(const T *x, T *y, u64 packs, u32 columns, u32 channel_packs,          \
                                               float factor, u32 width) {                                            \
        if (width > 1)                                                                                               \
            sum_squares<T, 16 / sizeof(T)>(x, y, packs, columns, channel_packs, factor);                             \
        else                                                                                                         \
            sum_squares<T, 1>(x, y, packs, columns, channel_packs, factor);                                          \
    }
FOR_EACH_FLOAT(RESAMPLE)
