// Attention's probabilities, and the gradient of its scores, in one launch each, for heads that are too wide for one kernel that
// does it all (attention_flash.cu): a warp keeps whole rows of the product in registers, so it knows their sums before anything
// is written. The products with values, keys and queries behind it are the library's.
//
// A block has 64 rows and goes over the head's channels in pieces, the next of which is on its way while this one is computed
// with; its rows may have up to 256 columns.
#include "attention_flash.cuh"

namespace attention_rows {

constexpr u32 MOST = 256;  // columns
constexpr u32 PIECE = 64;  // channels
constexpr u32 STRIDE = PIECE + 8;

// Begins the copy of some channels of rows first to first + rows - 1; what is beyond the tokens or channels becomes zero.
template <typename T>
__device__ __forceinline__ void copy_piece(T *tile, const T *head, u64 stride, u32 first, u32 rows, u32 channel, const Head &h) {
    constexpr u32 ACROSS = PIECE / 8, DOWN = FLASH_THREADS / ACROSS;
    const u32 within = threadIdx.x % ACROSS * 8;
    for (u32 row = threadIdx.x / ACROSS; row < rows; row += DOWN)
        copy_16(tile + row * STRIDE + within, head + (u64)(first + row) * stride + channel + within,
                first + row < h.tokens && channel + within < h.d);
}

// s [16, 256] = this warp's rows of a times the transposed of b.
template <typename T>
__device__ __forceinline__ void multiply(float s[MOST / 8][4], const T *a, u64 a_stride, const T *b, u64 b_stride, T *tiles,
                                         const Head &h) {
    const u32 columns = (h.tokens + 15) / 16 * 16, stage_size = (TILE + columns) * STRIDE;
    const auto copy = [&](u32 channel, u32 stage) {
        T *tile = tiles + stage * stage_size;
        copy_piece(tile, a, a_stride, blockIdx.x * TILE, TILE, channel, h);
        copy_piece(tile + TILE * STRIDE, b, b_stride, 0, columns, channel, h);
    };
    clear<MOST>(s);
    copy(0, 0);
    copies_end();
    for (u32 channel = 0, stage = 0; channel < h.d; channel += PIECE, stage ^= 1) {
        if (channel + PIECE < h.d) copy(channel + PIECE, stage ^ 1);
        copies_end();
        copies_wait<1>();
        __syncthreads();
        const T *rows = tiles + stage * stage_size, *others = rows + TILE * STRIDE;
        rows += threadIdx.x / 32 * 16 * STRIDE;
        for (u32 k = 0; k < PIECE; k += 16) {
            u32 x[4];
            load_a<T>(x, rows + k, STRIDE);
#pragma unroll
            for (int j = 0; j < (int)MOST / 16; ++j) {
                if (16 * j >= columns) continue;
                u32 y[2][2];
                load_b_rows<T>(y, others + 16 * j * STRIDE + k, STRIDE);
                mma_two<T>(s + 2 * j, x, y);
            }
        }
        __syncthreads(); // before the next copy but one overwrites the stage
    }
}

// Calls f(j, column) for the thread's pairs of neighbours in a row of which all are there.
template <typename F> __device__ __forceinline__ void pairs(u32 tokens, F f) {
#pragma unroll
    for (int j = 0; j < (int)MOST / 8; ++j) {
        const u32 column = 8 * j + 2 * (threadIdx.x % 4);
        if (column < tokens) f(j, column);
    }
}

// p = softmax(scale q k^T); scale is 1 / sqrt(d) times log2 e.
template <typename T> __device__ void probabilities(const T *qkv, T *p, u32 tokens, u32 heads, u32 d, float scale) {
    DYNAMIC_SHARED(T, tiles);
    const Head h(tokens, heads, d);
    float s[MOST / 8][4];
    multiply(s, qkv + h.part(0), 3 * h.channels, qkv + h.part(1), 3 * h.channels, tiles, h);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 row = blockIdx.x * TILE + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half;
        float max = -INFINITY, sum = 0.0f;
        pairs(tokens, [&](int j, u32) { max = fmaxf(max, fmaxf(s[j][2 * half], s[j][2 * half + 1])); });
        max = row_max(max) * scale;
        pairs(tokens, [&](int j, u32) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) sum += s[j][i] = exp2_flushed(fmaf(s[j][i], scale, -max));
        });
        const float factor = 1.0f / row_sum(sum);
        if (row >= tokens) continue;
        T *to = p + (h.row() + row) * tokens;
        pairs(tokens, [&](int j, u32 column) {
            *reinterpret_cast<u32 *>(to + column) = pack_two<T>(s[j][2 * half] * factor, s[j][2 * half + 1] * factor);
        });
    }
}

// ds = p (dp - sum p dp) with dp = d_out v^T.
template <typename T>
__device__ void score_gradients(const T *qkv, const T *d_out, const T *p, T *ds, u32 tokens, u32 heads, u32 d) {
    DYNAMIC_SHARED(T, tiles);
    const Head h(tokens, heads, d);
    float s[MOST / 8][4];
    multiply(s, d_out + h.out(), h.channels, qkv + h.part(2), 3 * h.channels, tiles, h);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 row = blockIdx.x * TILE + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half;
        const u64 at = (h.row() + row) * tokens;
        const bool there = row < tokens;
        Raw<T, 2> of_row[MOST / 8];
        float dot = 0.0f;
        if (there)
            pairs(tokens, [&](int j, u32 column) {
                of_row[j] = load_raw<T, 2>(p + at + column);
                dot += of_row[j].at(0) * s[j][2 * half] + of_row[j].at(1) * s[j][2 * half + 1];
            });
        dot = row_sum(dot);
        if (there)
            pairs(tokens, [&](int j, u32 column) {
                *reinterpret_cast<u32 *>(ds + at + column) = pack_two<T>(of_row[j].at(0) * (s[j][2 * half] - dot),
                                                                         of_row[j].at(1) * (s[j][2 * half + 1] - dot));
            });
    }
}

} // namespace attention_rows

#define ATTENTION_ROWS(T, S)                                                                                           \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS, 2)                                                     \
        attention_rows_probabilities_##S(const T *qkv, T *p, u32 tokens, u32 heads, u32 d, float scale) {              \
        attention_rows::probabilities<T>(qkv, p, tokens, heads, d, scale * LOG2_E);                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS, 2)                                                     \
        attention_rows_gradients_##S(const T *qkv, const T *d_out, const T *p, T *ds, u32 tokens, u32 heads, u32 d) {  \
        attention_rows::score_gradients<T>(qkv, d_out, p, ds, tokens, heads, d);                                       \
    }
ATTENTION_ROWS(bf16, bf16)
ATTENTION_ROWS(f16, f16)
