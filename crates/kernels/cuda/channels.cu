// What treats the channels of [rows, C] apart: offsets per channel, concatenation, rows of a table.
//
// `width` neighbours are taken at once; all sizes that say `packs` count those.
#include "pointwise.cuh"

// y[n, p, c] = x[n, p, c] + offset[n, c]; a row of blocks for each image, which has `packs` in all.
template <typename T, int W>
__device__ void add_channels(const T *x, const T *offset, T *y, u64 packs, u32 channel_packs) {
    const u64 start = blockIdx.y * packs * W;
    offset += (u64)blockIdx.y * channel_packs * W;
    for (u64 i = global_thread(); i < packs; i += global_threads()) {
        const Pack<T, W> o = load_pack<T, W>(offset + (u64)divide(i, channel_packs).rest * W);
        Pack<T, W> v = load_pack<T, W>(x + start + i * W);
#pragma unroll
        for (int k = 0; k < W; ++k) v.v[k] = from_float<T>(to_float(v.v[k]) + to_float(o.v[k]));
        store_pack(y + start + i * W, v);
    }
}

// Between joined rows y [rows, A + B] and the parts a [rows, A], b [rows, B]: copies to y, or from it.
template <typename T, int W, bool JOIN>
__device__ void concat(T *a, T *b, T *y, u64 packs, u32 a_packs, u32 b_packs) {
    for (u64 i = global_thread(); i < packs; i += global_threads()) {
        const Divided at = divide(i, a_packs + b_packs);
        T *part = at.rest < a_packs ? a + (at.quotient * a_packs + at.rest) * W
                                    : b + (at.quotient * b_packs + at.rest - a_packs) * W;
        if (JOIN)
            store_pack(y + i * W, load_pack<T, W>(part));
        else
            store_pack(part, load_pack<T, W>(y + i * W));
    }
}

#define CHANNELS(T, S)                                                                                                \
    extern "C" __global__ void add_channels_##S(const T *x, const T *offset, T *y, u64 packs, u32 channel_packs,      \
                                                u32 width) {                                                          \
        if (width > 1)                                                                                                \
            add_channels<T, 16 / sizeof(T)>(x, offset, y, packs, channel_packs);                                      \
        else                                                                                                          \
            add_channels<T, 1>(x, offset, y, packs, channel_packs);                                                   \
    }                                                                                                                 \
    extern "C" __global__ void concat_##S(T *a, T *b, T *y, u64 packs, u32 a_packs, u32 b_packs, u32 width) {         \
        if (width > 1)                                                                                                \
            concat<T, 16 / sizeof(T), true>(a, b, y, packs, a_packs, b_packs);                                        \
        else                                                                                                          \
            concat<T, 1, true>(a, b, y, packs, a_packs, b_packs);                                                     \
    }                                                                                                                 \
    extern "C" __global__ void concat_backward_##S(T *a, T *b, T *y, u64 packs, u32 a_packs, u32 b_packs,             \
                                                   u32 width) {                                                       \
        if (width > 1)                                                                                                \
            concat<T, 16 / sizeof(T), false>(a, b, y, packs, a_packs, b_packs);                                       \
        else                                                                                                          \
            concat<T, 1, false>(a, b, y, packs, a_packs, b_packs);                                                    \
    }
FOR_EACH_FLOAT(CHANNELS)

// y[n, c] = table[indices[n], c]; NaN where there is no such row.
template <typename T, typename O>
__device__ void embedding(const T *table, const u32 *indices, O *y, u64 elements, u32 rows, u32 columns) {
    for (u64 i = global_thread(); i < elements; i += global_threads()) {
        const Divided at = divide(i, columns);
        const u32 row = indices[at.quotient];
        y[i] = from_float<O>(row < rows ? to_float(table[(u64)row * columns + at.rest]) : nanf(""));
    }
}

// The gradient of row blockIdx.x of the table: each thread has a column, and adds the samples that took this row in order.
template <typename T>
__device__ void embedding_backward(const T *dy, const u32 *indices, float *dtable, u32 samples, u32 columns, u32 add) {
    __shared__ u32 taken[256]; // as many as the block has threads
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    float *out = dtable + (u64)blockIdx.x * columns + column;
    float sum = add && column < columns ? *out : 0.0f;
    for (u32 first = 0; first < samples; first += blockDim.x) {
        __syncthreads(); // the last indices have been read
        if (first + threadIdx.x < samples) taken[threadIdx.x] = indices[first + threadIdx.x];
        __syncthreads();
        for (u32 n = 0; n < blockDim.x && first + n < samples; ++n)
            if (taken[n] == blockIdx.x && column < columns) sum += to_float(dy[(u64)(first + n) * columns + column]);
    }
    if (column < columns) *out = sum;
}

#define EMBEDDING(T, S, O, SO)                                                                                         \
    extern "C" __global__ void embedding_##S##_##SO(const T *table, const u32 *indices, O *y, u64 elements, u32 rows, \
                                                    u32 columns) {                                                     \
        embedding<T, O>(table, indices, y, elements, rows, columns);                                                   \
    }
#define EMBEDDING_TO(O, S)           \
    EMBEDDING(float, f32, O, S)      \
    EMBEDDING(bf16, bf16, O, S)      \
    EMBEDDING(f16, f16, O, S)        \
    extern "C" __global__ void embedding_backward_##S(const O *dy, const u32 *indices, float *dtable, u32 samples, \
                                                      u32 columns, u32 add) {                                      \
        embedding_backward<O>(dy, indices, dtable, samples, columns, add);                                         \
    }
FOR_EACH_FLOAT(EMBEDDING_TO)
