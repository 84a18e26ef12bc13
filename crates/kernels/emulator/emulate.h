// What a kernel sees when g++ compiles it for the emulator (-DEMULATED -include emulate.h): the CUDA keywords, the built-in
// variables, shared memory and barriers. Types, arithmetic and warp operations are in device/.
#pragma once
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#define __device__
#define __host__
#define __constant__ static
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __restrict__ __restrict
#define __grid_constant__
#define __maxnreg__(n)
#ifdef EMULATED_REGISTRY // the pass that lists the kernels keeps these two as marks
#define __global__ EMULATED_GLOBAL
#define __launch_bounds__(...) [__VA_ARGS__]
#else
#define __global__ __attribute__((noinline))
#define __launch_bounds__(...)
#endif
// Shared memory is one image per thread of the host, and the emulator fills it with 0xFF before each block.
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emu_dynamic_shared())

#include "device/vectors.h"

struct EmuPlace { // where the running thread is
    uint3 thread, block;
    dim3 block_size, grid_size;
    unsigned lane;
};
extern "C" {
EmuPlace* emu_place();                  // of the running thread of the device; constant for a launch
void* emu_dynamic_shared();             // of the running block
int emu_barrier(int predicate, int op); // __syncthreads; op 0: how many were true, 1: all, 2: any
// Waits for the lanes of `mask`, leaves their `bytes` (at most 64) at [lane][64]; `kind` must agree among them.
const unsigned char* emu_exchange(unsigned mask, const void* value, unsigned bytes, const char* kind);
unsigned emu_active_mask();
[[noreturn]] void emu_trap(const char* what);
}
extern EmuPlace emu_here; // the same as *emu_place(), read directly
#define threadIdx (emu_here.thread)
#define blockIdx (emu_here.block)
#define blockDim (emu_here.block_size)
#define gridDim (emu_here.grid_size)
constexpr int warpSize = 32;

inline void __syncthreads() { emu_barrier(0, 0); }
inline int __syncthreads_count(int p) { return emu_barrier(p != 0, 0); }
inline int __syncthreads_and(int p) { return emu_barrier(p != 0, 1); }
inline int __syncthreads_or(int p) { return emu_barrier(p != 0, 2); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
inline void __trap() { emu_trap("__trap()"); }
inline long long clock64() { return (long long)__builtin_ia32_rdtsc(); }
inline long long clock() { return clock64(); }

#include "device/floats.h"
#include "device/arithmetic.h"
#include "device/atomics.h"
#include "device/warp.h"
