// Sums over the rows of a matrix, a block at a time.
//
// The threads of a block stand in rows of `across` neighbours, a power of two up to 32. A thread takes W neighbouring
// columns, so that a row of threads reads one piece of memory without a gap; the rows of threads share the matrix' rows.
#pragma once
#include "common.cuh"

// Sums each of K numbers over the threads of a column of threads. Then number k of column t is scratch[t * K + k], for every
// thread to read; `scratch` holds (blockDim.x / 32) * across * K floats. All threads of whole warps must call it. The order
// of the additions is a function of blockDim and `across` alone.
template <int K> __device__ __forceinline__ void sum_down(float (&v)[K], float *scratch, u32 across) {
    for (u32 step = across; step < 32; step <<= 1) {
#pragma unroll
        for (int k = 0; k < K; ++k) v[k] += __shfl_xor_sync(0xffffffffu, v[k], step);
    }
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = across * K;
    __syncthreads(); // the last call's readers are done
    if (lane < across) {
#pragma unroll
        for (int k = 0; k < K; ++k) scratch[warp * width + lane * K + k] = v[k];
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (u32 w = 0; w < blockDim.x / 32; ++w) sum += scratch[w * width + i];
        scratch[i] = sum;
    }
    __syncthreads();
}
