// Sums over the rows of many matrices in one launch: what the layers' backward passes leave for the gradients of weights and
// biases of normalisations, and of biases.
//
// If the last block of each layer's own launch summed them, the rest of the GPU would wait.
#include "common.cuh"

namespace settle {

constexpr u32 COLUMNS = 32; // of a piece at most

// As src/buffer/deferred_sums.rs writes them.
struct Piece {
    u64 from; // the address of the first row's first number
    u32 rows, apart, columns;
    u32 to; // the first element of the sums
    u32 add, unused;
};

} // namespace settle

// A block for each piece: to (+)= sum over rows of from. Threads side by side take columns, warps share the rows; the order of
// the additions depends on the sizes alone.
extern "C" __global__ void settle_sums(const u32 *pieces, float *to) {
    __shared__ float partial[8][settle::COLUMNS];
    const settle::Piece p = reinterpret_cast<const settle::Piece *>(pieces)[blockIdx.x];
    const u32 column = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const float *from = reinterpret_cast<const float *>(p.from) + column;
    float sum = 0.0f;
    if (column < p.columns) {
#pragma unroll 8
        for (u32 row = warp; row < p.rows; row += warps) sum += from[(u64)row * p.apart];
    }
    partial[warp][column] = sum;
    __syncthreads();
    if (warp > 0 || column >= p.columns) return;
    for (u32 other = 1; other < warps; ++other) sum += partial[other][column];
    to[p.to + column] = p.add ? to[p.to + column] + sum : sum;
}
