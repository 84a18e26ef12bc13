// Column sums of matrices: gradients of biases, and of offsets per channel.
//
// Grid: slices of columns, parts of the rows, matrices. Every block sums its part; where there are several, the last block of
// a slice adds them in order, so that the result is the same bits every time and takes one launch.
#include "columns.cuh"

// The block's column sums over the rows `first`, `first + down`... below `end`, `down` rows of threads side by side.
template <typename T, int W>
__device__ __forceinline__ void sum_rows(const T *x, u64 columns, u64 column, u64 end, u64 first, u32 down, float (&sum)[W]) {
#pragma unroll
    for (int k = 0; k < W; ++k) sum[k] = 0.0f;
    if (column >= columns) return;
    // Rows on their way to a thread: 512 threads of a multiprocessor then wait for 64 KiB at once.
    constexpr int BATCH = 128 / (sizeof(T) * W < 16 ? 16 : sizeof(T) * W);
    const u64 step = down * columns;
    const T *from = x + first * columns + column;
    for (int left = first < end ? (int)(((u32)(end - first) + down - 1) / down) : 0; left > 0; left -= BATCH) {
        Raw<T, W> in[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i, from += step)
            if (i < left) in[i] = load_raw<T, W>(from);
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (i >= left) break;
#pragma unroll
            for (int k = 0; k < W; ++k) sum[k] += in[i].at(k);
        }
    }
}

// `partials` is [matrices, parts, columns]. `out` is [matrices, columns]; `add` to what is there, or overwrite it.
template <typename T, typename O, int W>
__device__ void column_sum(const T *x, O *out, float *partials, u32 *counters, u64 rows, u64 columns, u64 part, u32 across,
                           u32 add, float *scratch) {
    const u32 down = blockDim.x / across, row = threadIdx.x / across, parts = gridDim.y;
    const u64 base = (u64)blockIdx.x * across * W, column = base + threadIdx.x % across * W;
    const u64 start = blockIdx.y * part, end = min(start + part, rows);
    float sum[W];
    sum_rows<T, W>(x + blockIdx.z * rows * columns, columns, column, end, start + row, down, sum);
    sum_down(sum, scratch, across);
    if (parts > 1) {
        float *own = partials + (u64)blockIdx.z * parts * columns;
        for (u64 i = threadIdx.x; i < across * W && base + i < columns; i += blockDim.x)
            own[blockIdx.y * columns + base + i] = scratch[i];
        if (!last_block(counters + blockIdx.z * gridDim.x + blockIdx.x, parts)) return;
        sum_rows<float, W>(own, columns, column, parts, row, down, sum);
        sum_down(sum, scratch, across);
    }
    out += blockIdx.z * columns;
    for (u64 i = threadIdx.x; i < across * W && base + i < columns; i += blockDim.x)
        out[base + i] = from_float<O>(add ? to_float(out[base + i]) + scratch[i] : scratch[i]);
}

// Columns are read in packs of 16 bytes where `width` says so, otherwise one by one.
template <typename T, typename O>
__device__ void column_sum_any(const T *x, O *out, float *partials, u32 *counters, u64 rows, u64 columns, u64 part,
                               u32 across, u32 width, u32 add) {
    DYNAMIC_SHARED(float, scratch);
    if (width > 1)
        column_sum<T, O, 16 / sizeof(T)>(x, out, partials, counters, rows, columns, part, across, add, scratch);
    else
        column_sum<T, O, 1>(x, out, partials, counters, rows, columns, part, across, add, scratch);
}

#define COLUMN_SUM(T, S)                                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                               \
        column_sum_##S(const T *x, float *out, float *partials, u32 *counters, u64 rows, u64 columns, u64 part,        \
                       u32 across, u32 width, u32 add) {                                                               \
        column_sum_any<T, float>(x, out, partials, counters, rows, columns, part, across, width, add);                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                               \
        pixel_sum_##S(const T *x, T *out, float *partials, u32 *counters, u64 rows, u64 columns, u64 part, u32 across, \
                      u32 width, u32 add) {                                                                            \
        column_sum_any<T, T>(x, out, partials, counters, rows, columns, part, across, width, add);                     \
    }
FOR_EACH_FLOAT(COLUMN_SUM)
