// Tensor cores: products of small matrices of bf16 or f16 that a warp holds in registers, summed in f32.
//
// mma_m16n8k16 adds a [16, 16] b [16, 8] to c [16, 8]. With g = lane / 4 and t = lane % 4, a thread holds of
//   a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8, two neighbours in a word;
//   b: column g at rows 2t and 2t + 8, two neighbours of the column in a word;
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
// So two neighbouring c are one a of the next product, once rounded. Tiles in shared memory have rows of a multiple of 16
// bytes, and 16 bytes more than a multiple of 64, so that eight rows lie in different banks.
#pragma once
#include "common.cuh"

#ifndef EMULATED
#define MMA(T, S)                                                                                                     \
    __device__ __forceinline__ void mma_m16n8k16(float d[4], const u32 a[4], const u32 b[2], const float c[4], T) {   \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." S "." S ".f32 "                                         \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"                            \
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),        \
                       "f"(c[2]), "f"(c[3]));                                                                         \
    }
MMA(bf16, "bf16")
MMA(f16, "f16")

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Four 8x8 matrices, whose rows the lanes point at: lanes 0 to 7 at the first one's, and so on.
__device__ __forceinline__ void load_matrices(u32 v[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 v[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes to shared memory on their way, or zeros where they are not valid: then nothing is read at the address.
__device__ __forceinline__ void copy_16(void *to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
// The same for 8 bytes, and for 4.
__device__ __forceinline__ void copy_8(void *to, const void *from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 8 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_4(void *to, const void *from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0)
                 : "memory");
}
// Ends a group of copies; waits until at most so many groups are in flight.
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS> __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
#else
// The same, element by element from the rows that the lanes point at.
__device__ inline void emulated_matrices(u32 v[4], const void *row, bool transposed) {
    u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (u32 i = 0; i < 4; ++i) {
        v[i] = 0;
        for (u32 h = 0; h < 2; ++h) {
            u32 r = transposed ? 2 * t + h : g, c = transposed ? g : 2 * t + h;
            const u64 address = __shfl_sync(0xffffffffu, (u64)row, 8 * i + r);
            v[i] |= (u32) reinterpret_cast<const unsigned short *>(address)[c] << 16 * h;
        }
    }
}
__device__ inline void load_matrices(u32 v[4], const void *row) { emulated_matrices(v, row, false); }
__device__ inline void load_matrices_transposed(u32 v[4], const void *row) { emulated_matrices(v, row, true); }
__device__ inline void copy_16(void *to, const void *from, bool valid) {
    Pack<u32, 4> zero = {};
    store_pack<u32, 4>((u32 *)to, valid ? load_pack<u32, 4>((const u32 *)from) : zero);
}
__device__ inline void copy_8(void *to, const void *from, bool valid) {
    Pack<u32, 2> zero = {};
    store_pack<u32, 2>((u32 *)to, valid ? load_pack<u32, 2>((const u32 *)from) : zero);
}
__device__ inline void copy_4(void *to, const void *from, bool valid) { *(u32 *)to = valid ? *(const u32 *)from : 0; }
__device__ inline void copies_end() {}
template <int GROUPS> __device__ inline void copies_wait() {}
#endif

// a of 16 rows and columns of a row-major tile, which `tile` points at.
template <typename T> __device__ __forceinline__ void load_a(u32 a[4], const T *tile, u32 stride) {
    u32 lane = threadIdx.x % 32;
    load_matrices(a, tile + (lane % 16) * stride + lane / 16 * 8);
}

// Two neighbouring b (columns 0 to 7, 8 to 15) of a matrix whose columns are the rows of the tile.
template <typename T> __device__ __forceinline__ void load_b_rows(u32 b[2][2], const T *tile, u32 stride) {
    u32 lane = threadIdx.x % 32;
    u32 v[4];
    load_matrices(v, tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = v[i];
}

// Two neighbouring b of a row-major matrix.
template <typename T> __device__ __forceinline__ void load_b(u32 b[2][2], const T *tile, u32 stride) {
    u32 lane = threadIdx.x % 32;
    u32 v[4];
    load_matrices_transposed(v, tile + (lane % 16) * stride + lane / 16 * 8);
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = v[i];
}

// Two neighbours in a word, the first in the low half.
template <typename T> __device__ __forceinline__ u32 pack_two(float low, float high) {
    Pack<T, 2> two = {{from_float<T>(low), from_float<T>(high)}};
    return *reinterpret_cast<const u32 *>(&two);
}

// a of what two neighbouring products left in c.
template <typename T> __device__ __forceinline__ void a_of_c(u32 a[4], const float left[4], const float right[4]) {
    a[0] = pack_two<T>(left[0], left[1]);
    a[1] = pack_two<T>(left[2], left[3]);
    a[2] = pack_two<T>(right[0], right[1]);
    a[3] = pack_two<T>(right[2], right[3]);
}

// c += a b for two neighbouring b.
template <typename T>
__device__ __forceinline__ void mma_two(float c[2][4], const u32 a[4], const u32 b[2][2]) {
    mma_m16n8k16(c[0], a, b[0], c[0], T());
    mma_m16n8k16(c[1], a, b[1], c[1], T());
}
