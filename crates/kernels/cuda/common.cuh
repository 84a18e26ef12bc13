// What every kernel stands on: number formats, wide loads, sums over a warp and a block.
//
// Kernels compute in f32 whatever their tensors hold. They are instantiated for f32, bf16 and f16 with the suffixes
// _f32, _bf16, _f16 (FOR_EACH_FLOAT), and stay plain enough to run in the emulator (EMULATED), which compiles these
// files for the host: shared memory is declared through DYNAMIC_SHARED, and tensor cores are reached through mma_m16n8k16.
#pragma once

#ifndef EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char name##_raw[]; \
    type *name = reinterpret_cast<type *>(name##_raw)
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef __nv_bfloat16 bf16;
typedef __half f16;

#define FOR_EACH_FLOAT(INSTANTIATE) \
    INSTANTIATE(float, f32)         \
    INSTANTIATE(bf16, bf16)         \
    INSTANTIATE(f16, f16)

// To f32 and back; narrowing rounds to the nearest, ties to even.
__device__ __forceinline__ float to_float(float v) { return v; }
// Spelled out, so that the high half of a loaded word takes one instruction and not two.
__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float((u32)__bfloat16_as_ushort(v) << 16); }
__device__ __forceinline__ float to_float(f16 v) { return __half2float(v); }
template <typename T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16(v); }
template <> __device__ __forceinline__ f16 from_float<f16>(float v) { return __float2half(v); }

// W neighbours, loaded or stored by one instruction. The address must be a multiple of the pack's size.
template <typename T, int W> struct alignas(sizeof(T) * W) Pack {
    T v[W];
};
template <typename T, int W> __device__ __forceinline__ Pack<T, W> load_pack(const T *p) {
    return *reinterpret_cast<const Pack<T, W> *>(p);
}
template <typename T, int W> __device__ __forceinline__ void store_pack(T *p, const Pack<T, W> &pack) {
    *reinterpret_cast<Pack<T, W> *>(p) = pack;
}

// W neighbours as they lie in memory, 32 bits a register. A Pack that is loaded under a condition and used later takes a
// register for each 16 bits, and an instruction to get each there; so loads that are gathered ahead of their use are these.
// Where W is 1, of 16 bits, it is a Pack.
template <typename T, int W, bool WORDS = sizeof(T) * W % 4 == 0> struct Raw {
    Pack<u32, sizeof(T) * W / 4> words;

    __device__ __forceinline__ float at(int k) const {
        constexpr int OF_WORD = 4 / sizeof(T);
        return part_of(words.v[k / OF_WORD], k % OF_WORD, T());
    }
    // Zeroes those whose bit is set.
    __device__ __forceinline__ void clear(u32 bits) {
        constexpr u32 LOW = sizeof(T) == 2 ? 0xffffu : 0xffffffffu, OF_WORD = 4 / sizeof(T);
#pragma unroll
        for (u32 k = 0; k < W; ++k)
            if (bits >> k & 1) words.v[k / OF_WORD] &= ~(LOW << 16 * (k % OF_WORD));
    }
    __device__ static float part_of(u32 word, int, float) { return __uint_as_float(word); }
    __device__ static float part_of(u32 word, int part, bf16) { return __uint_as_float(part ? word & 0xffff0000u : word << 16); }
    __device__ static float part_of(u32 word, int part, f16) { return to_float(__ushort_as_half((unsigned short)(word >> 16 * part))); }
};
template <typename T, int W> struct Raw<T, W, false> {
    Pack<T, W> pack;

    __device__ __forceinline__ float at(int k) const { return to_float(pack.v[k]); }
    __device__ __forceinline__ void clear(u32 bits) {
#pragma unroll
        for (u32 k = 0; k < W; ++k)
            if (bits >> k & 1) pack.v[k] = from_float<T>(0.0f);
    }
};
template <typename T, int W> __device__ __forceinline__ Raw<T, W> load_raw(const T *p) {
    return *reinterpret_cast<const Raw<T, W> *>(p);
}
template <typename T, int W> __device__ __forceinline__ void store_raw(T *p, const Raw<T, W> &raw) {
    *reinterpret_cast<Raw<T, W> *>(p) = raw;
}

// The position of this thread among all threads of the launch, and their number.
__device__ __forceinline__ u64 global_thread() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u64 global_threads() { return (u64)gridDim.x * blockDim.x; }

constexpr float LOG2_E = 1.44269504088896341f;

// 2^x and 1 / x as the hardware has them, within 2 units of the last place, denormal numbers as 0. exp2f and __fdividef
// spend three and two more instructions on those, a third of what a fused normalisation does for an element.
#ifndef EMULATED
__device__ __forceinline__ float exp2_flushed(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_flushed(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
__device__ inline float exp2_flushed(float x) { return exp2f(x); }
__device__ inline float reciprocal_flushed(float x) { return 1.0f / x; }
#endif

__device__ __forceinline__ float sigmoid(float x) { return reciprocal_flushed(1.0f + exp2_flushed(-LOG2_E * x)); }

// The sum over the warp, in every lane.
template <typename A> __device__ __forceinline__ A warp_sum(A v) {
    for (int lane = 16; lane > 0; lane >>= 1) v += __shfl_xor_sync(0xffffffffu, v, lane);
    return v;
}

// The sum over the block, in every thread; all of them must call it, and blockDim.x must be a multiple of 32.
template <typename A> __device__ __forceinline__ A block_sum(A v) {
    __shared__ A partial[32];
    v = warp_sum(v);
    __syncthreads(); // the last call's readers are done
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    A sum = A(0);
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp) sum += partial[warp];
    return sum;
}

// Whether this block is the last of `blocks` to come here: it may then read what the others wrote before, and must finish
// the work in a fixed order, so that the result is the same bits every time. Leaves `counter` at zero for the next launch.
__device__ __forceinline__ bool last_block(u32 *counter, u32 blocks) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        // One thread's fence holds for all the block wrote before the barrier; one of every warp would wait for each.
        __threadfence();
        last = atomicAdd(counter, 1u) == blocks - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}
