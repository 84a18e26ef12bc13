// Dropout: the mask is drawn where it is needed, by the words of src/ops/dropout.rs.
#include "philox.cuh"

// A row of blocks for each sample; a thread takes W elements, whole blocks of four words.
template <typename T, int W>
__device__ void dropout(const T *x, T *y, u64 length, u64 key, u64 step, u64 position, u32 threshold, float keep) {
    const u64 start = blockIdx.y * length;
    for (u64 i = global_thread(); i * W < length; i += global_threads()) {
        Pack<T, W> v = load_pack<T, W>(x + start + i * W);
#pragma unroll
        for (int k = 0; k < W; k += 4) {
            const Words words = element_block(key, step, position + blockIdx.y, (u32)((i * W + k) / 4));
#pragma unroll
            for (int j = 0; j < 4; ++j)
                v.v[k + j] = from_float<T>(words.v[j] < threshold ? 0.0f : keep * to_float(v.v[k + j]));
        }
        store_pack(y + start + i * W, v);
    }
}

// The same for samples whose length is no multiple of W.
template <typename T>
__device__ void dropout_ragged(const T *x, T *y, u64 length, u64 key, u64 step, u64 position, u32 threshold, float keep) {
    const u64 start = blockIdx.y * length;
    for (u64 i = global_thread(); 4 * i < length; i += global_threads()) {
        const Words words = element_block(key, step, position + blockIdx.y, (u32)i);
        for (int j = 0; j < 4 && 4 * i + j < length; ++j) {
            const u64 at = start + 4 * i + j;
            y[at] = from_float<T>(words.v[j] < threshold ? 0.0f : keep * to_float(x[at]));
        }
    }
}

// `step_at`, if given, holds the step's low and high half, so that a captured graph finds another step in each replay.
#define DROPOUT(T, S)                                                                                             \
    extern "C" __global__ void dropout_##S(const T *x, T *y, u64 length, u64 key, const u32 *step_at, u64 step,   \
                                           u64 position, u32 threshold, float keep, u32 width) {                  \
        if (step_at) step = step_at[0] | (u64)step_at[1] << 32;                                                   \
        if (width > 1)                                                                                            \
            dropout<T, 16 / sizeof(T)>(x, y, length, key, step, position, threshold, keep);                       \
        else                                                                                                      \
            dropout_ragged<T>(x, y, length, key, step, position, threshold, keep);                                \
    }
FOR_EACH_FLOAT(DROPOUT)
