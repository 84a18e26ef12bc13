// What the fused attention kernels share: where a head lies, and its tiles in shared memory.
//
// A block has four warps; each owns 16 of the block's 64 tokens and goes over all the others in tiles of 64, the next of
// which is on its way while this one is computed with. Heads are padded with zeros to D channels.
#pragma once
#include "mma.cuh"

constexpr u32 TILE = 64;
constexpr u32 FLASH_THREADS = 128;

// A head of an image: blockIdx is (tile, head, image).
struct Head {
    u32 tokens, d;
    u64 channels; // of all heads
    u64 first;    // channel of this head

    __device__ Head(u32 tokens, u32 heads, u32 d) : tokens(tokens), d(d), channels((u64)heads * d), first((u64)blockIdx.y * d) {}
    // Of queries (0), keys (1) or values (2) in [N, L, 3C].
    __device__ u64 part(u32 which) const { return (u64)blockIdx.z * tokens * 3 * channels + which * channels + first; }
    // In [N, L, C].
    __device__ u64 out() const { return (u64)blockIdx.z * tokens * channels + first; }
    // In [N, heads, L].
    __device__ u64 row() const { return ((u64)blockIdx.z * gridDim.y + blockIdx.y) * tokens; }
};

template <int D> constexpr u32 TILE_STRIDE = D + 8;
template <int D> constexpr u32 TILE_SIZE = TILE * TILE_STRIDE<D>;

// Begins the copy of rows first to first + 63 of a head; what is beyond its tokens or channels becomes zero.
template <typename T, int D>
__device__ __forceinline__ void copy_tile(T *tile, const T *head, u64 stride, u32 first, const Head &h) {
    // A thread stays in its column: one addition takes it to its next row.
    constexpr u32 ACROSS = D / 8, DOWN = FLASH_THREADS / ACROSS;
    const u32 row = threadIdx.x / ACROSS, column = threadIdx.x % ACROSS * 8;
    const u32 rows = column < h.d && first < h.tokens ? h.tokens - first : 0;
    const T *from = head + (u64)(first + row) * stride + column;
    T *to = tile + row * TILE_STRIDE<D> + column;
#pragma unroll
    for (u32 i = 0; i < TILE; i += DOWN, from += DOWN * stride) copy_16(to + i * TILE_STRIDE<D>, from, row + i < rows);
}

// Begins the copies of a head's keys from row first on to one tile, and of its values to the tile behind.
template <typename T, int D>
__device__ __forceinline__ void copy_keys_and_values(T *tiles, const T *qkv, u32 first, const Head &h) {
    copy_tile<T, D>(tiles, qkv + h.part(1), 3 * h.channels, first, h);
    copy_tile<T, D>(tiles + TILE_SIZE<D>, qkv + h.part(2), 3 * h.channels, first, h);
}

// The a of this warp's 16 rows of a tile.
template <typename T, int D> __device__ __forceinline__ void load_rows(u32 a[D / 16][4], const T *tile) {
    const T *rows = tile + threadIdx.x / 32 * 16 * TILE_STRIDE<D>;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) load_a<T>(a[k], rows + 16 * k, TILE_STRIDE<D>);
}

// c [16, 16] = rows times the transposed of the tile's rows 16 column to 16 column + 15.
template <typename T, int D>
__device__ __forceinline__ void rows_by_tile(float c[2][4], const u32 rows[D / 16][4], const T *tile, u32 column) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        u32 b[2][2];
        load_b_rows<T>(b, tile + 16 * column * TILE_STRIDE<D> + 16 * k, TILE_STRIDE<D>);
        mma_two<T>(c, rows[k], b);
    }
}

// sum [16, D] += a times the tile's rows 16 row to 16 row + 15.
template <typename T, int D>
__device__ __forceinline__ void add_by_tile(float sum[D / 8][4], const u32 a[4], const T *tile, u32 row) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        u32 b[2][2];
        load_b<T>(b, tile + 16 * row * TILE_STRIDE<D> + 16 * k, TILE_STRIDE<D>);
        mma_two<T>(sum + 2 * k, a, b);
    }
}

template <int D> __device__ __forceinline__ void clear(float sum[D / 8][4]) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i) sum[i / 4][i % 4] = 0.0f;
}

// Writes the warp's 16 rows, times a factor for each of this thread's two rows.
template <typename T, int D>
__device__ __forceinline__ void store_rows(const float sum[D / 8][4], const float factor[2], T *head, u64 stride, u32 first,
                                           const Head &h) {
    u32 lane = threadIdx.x % 32;
    for (int half = 0; half < 2; ++half) {
        u32 row = first + lane / 4 + 8 * half;
        if (row >= h.tokens) continue;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
            u32 column = 8 * j + 2 * (lane % 4);
            if (column >= h.d) continue;
            Pack<T, 2> two = {{from_float<T>(sum[j][2 * half] * factor[half]),
                               from_float<T>(sum[j][2 * half + 1] * factor[half])}};
            store_pack<T, 2>(head + row * stride + column, two);
        }
    }
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ float row_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
