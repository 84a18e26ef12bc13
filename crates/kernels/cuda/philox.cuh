// Random numbers without state, the same as on the CPU (src/philox.rs): Philox4x32-10 (Salmon et al. 2011) of a key and
// a counter, which is a number's place. Every thread makes those it needs in registers.
#pragma once
#include "common.cuh"

// 128 random bits.
struct Words {
    u32 v[4];
};

// The product of two words: one instruction, where that of two 64-bit numbers adds upper halves that are zero.
#ifndef EMULATED
__device__ __forceinline__ u64 wide_product(u32 a, u32 b) {
    u64 product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
}
#else
__device__ inline u64 wide_product(u32 a, u32 b) { return (u64)a * b; }
#endif

// The words at a counter. `key` holds the first key word in its low half.
__device__ __forceinline__ Words philox(u64 key, Words counter) {
    u32 low = (u32)key, high = (u32)(key >> 32);
    Words x = counter;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 a = wide_product(0xD2511F53u, x.v[0]), b = wide_product(0xCD9E8D57u, x.v[2]);
        x = {(u32)(b >> 32) ^ x.v[1] ^ low, (u32)b, (u32)(a >> 32) ^ x.v[3] ^ high, (u32)a};
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    return x;
}

// The words of elements 4 block to 4 block + 3 at (step, position), of which the low 48 bits count.
__device__ __forceinline__ Words element_block(u64 key, u64 step, u64 position, u32 block) {
    const u32 high = ((u32)(step >> 32) & 0xFFFFu) | (((u32)(position >> 32) & 0xFFFFu) << 16);
    return philox(key, {block, (u32)step, (u32)position, high});
}

// Maps 32 bits to the open interval (0, 1), so that its logarithm is finite.
__device__ __forceinline__ double unit_open(u32 bits) { return ((double)bits + 0.5) * (1.0 / 4294967296.0); }

// Two standard normals of two words (Box and Muller 1958), in double as on the CPU: what a run learns must not depend on a
// library's last digit.
__device__ __forceinline__ void box_muller(u32 u, u32 v, float *normals) {
    const double radius = sqrt(-2.0 * log(unit_open(u)));
    // Of multiples of pi: no angle is too large for the fast way, so that there is no slow one with its array in memory.
    double sine, cosine;
    sincospi(2.0 * unit_open(v), &sine, &cosine);
    normals[0] = (float)(radius * cosine);
    normals[1] = (float)(radius * sine);
}

// The four standard normals of a block's words.
__device__ __forceinline__ void normals4(Words words, float *normals) {
    box_muller(words.v[0], words.v[1], normals);
    box_muller(words.v[2], words.v[3], normals + 2);
}
