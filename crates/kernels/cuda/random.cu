// Tensors of random numbers. A thread makes four neighbours of one sample, which share their Philox block; the samples of
// a batch are at neighbouring positions.
#include "philox.cuh"

// Sample and block of a thread's number.
struct Place {
    u64 sample, block;
};
__device__ __forceinline__ Place place(u64 i, u64 blocks) { return {i / blocks, i % blocks}; }

extern "C" __global__ void random_bits(u32 *y, u64 samples, u64 length, u64 key, u64 step, u64 position) {
    const u64 blocks = (length + 3) / 4;
    for (u64 i = global_thread(); i < samples * blocks; i += global_threads()) {
        const Place at = place(i, blocks);
        const Words words = element_block(key, step, position + at.sample, (u32)at.block);
        for (u64 k = 0; k < 4 && 4 * at.block + k < length; ++k) y[at.sample * length + 4 * at.block + k] = words.v[k];
    }
}

template <typename T>
__device__ void random_normals(T *y, u64 samples, u64 length, u64 key, u64 step, u64 position) {
    const u64 blocks = (length + 3) / 4;
    for (u64 i = global_thread(); i < samples * blocks; i += global_threads()) {
        const Place at = place(i, blocks);
        float four[4];
        normals4(element_block(key, step, position + at.sample, (u32)at.block), four);
        for (u64 k = 0; k < 4 && 4 * at.block + k < length; ++k)
            y[at.sample * length + 4 * at.block + k] = from_float<T>(four[k]);
    }
}

#define RANDOM_NORMALS(T, S)                                                                                        \
    extern "C" __global__ void random_normals_##S(T *y, u64 samples, u64 length, u64 key, u64 step, u64 position) { \
        random_normals<T>(y, samples, length, key, step, position);                                                 \
    }
FOR_EACH_FLOAT(RANDOM_NORMALS)
