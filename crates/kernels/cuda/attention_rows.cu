// Attention's probabilities, and the gradient of its scores, in one launch each, for heads that are too wide for one kernel that
// does it all (attention_flash.cu): two warps side by side keep whole rows of the product in registers, so they know their sums
// before anything is written. The products with values, keys and queries behind it are the library's.
//
// A block has 64 rows and goes over the head's channels in pieces, the next of which is on its way while this one is computed
// with; its rows may have up to 256 columns. The columns of a product are in such an order that a thread's are 8 neighbours of
// every 32, which it reads and writes as 16 bytes.
#include "attention_flash.cuh"

namespace attention_rows {

constexpr u32 THREADS = 256, DOWN = TILE / 16, ACROSS = THREADS / 32 / DOWN; // warps below and beside each other
constexpr u32 MOST = 256;                                                    // columns
constexpr u32 GROUPS = MOST / ACROSS / 32;                                   // of 32 columns, of a warp
constexpr u32 PIECE = 64;                                                    // channels
constexpr u32 STRIDE = PIECE + 8;

// Where a thread's numbers are: rows `row` and `row + 8`, columns 32 q to 32 q + 7 from `column` on.
struct Place {
    u32 warp_column, row, column;

    __device__ __forceinline__ Place() {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        warp_column = warp / DOWN;
        row = warp % DOWN * 16 + lane / 4;
        column = warp_column * GROUPS * 32 + lane % 4 * 8;
    }
    // Calls f(q) for those groups of columns that are there.
    template <typename F> __device__ __forceinline__ void groups(u32 tokens, F f) const {
#pragma unroll
        for (u32 q = 0; q < GROUPS; ++q)
            if (column + 32 * q < tokens) f(q);
    }
};

// Begins the copy of some channels of rows first to first + rows - 1; what is beyond the tokens or channels becomes zero. Where
// they become columns, of every 32 number 8 t + 2 j + e lies at 8 j + 2 t + e, so that thread t of four has 8 neighbours.
template <typename T, bool COLUMNS>
__device__ __forceinline__ void copy_piece(T *tile, const T *head, u64 stride, u32 first, u32 rows, u32 channel, const Head &h) {
    constexpr u32 WIDE = PIECE / 8, HIGH = THREADS / WIDE;
    const u32 within = threadIdx.x % WIDE * 8;
    for (u32 row = threadIdx.x / WIDE; row < rows; row += HIGH) {
        const u32 at = COLUMNS ? (row & ~31u) + row / 2 % 4 * 8 + row / 8 % 4 * 2 + row % 2 : row;
        copy_16(tile + at * STRIDE + within, head + (u64)(first + row) * stride + channel + within,
                first + row < h.tokens && channel + within < h.d);
    }
}

typedef float Sums[GROUPS][4][4];

// s = this warp's rows of a times the transposed of its columns of b. `meanwhile` is called before the last piece.
template <typename T, typename F>
__device__ __forceinline__ void multiply(Sums s, const T *a, u64 a_stride, const T *b, u64 b_stride, T *tiles, const Head &h,
                                         F meanwhile) {
    const u32 columns = (h.tokens + 31) / 32 * 32, stage_size = (TILE + columns) * STRIDE, warp = threadIdx.x / 32;
    const u32 first = warp / DOWN * GROUPS * 32;
    const auto copy = [&](u32 channel, u32 stage) {
        if (channel < h.d) {
            T *tile = tiles + stage * stage_size;
            copy_piece<T, false>(tile, a, a_stride, blockIdx.x * TILE, TILE, channel, h);
            copy_piece<T, true>(tile + TILE * STRIDE, b, b_stride, 0, columns, channel, h);
        }
        copies_end();
    };
#pragma unroll
    for (u32 i = 0; i < GROUPS * 16; ++i) s[i / 16][i / 4 % 4][i % 4] = 0.0f;
    copy(0, 0);
    for (u32 channel = 0, stage = 0; channel < h.d; channel += PIECE, stage ^= 1) {
        copies_wait<0>();
        __syncthreads(); // all have this piece, and are done with the one before
        copy(channel + PIECE, stage ^ 1);
        if (channel + PIECE >= h.d) meanwhile();
        const T *rows = tiles + stage * stage_size, *others = rows + (TILE + first) * STRIDE;
        rows += warp % DOWN * 16 * STRIDE;
#pragma unroll
        for (u32 k = 0; k < PIECE; k += 16) {
            u32 x[4];
            load_a<T>(x, rows + k, STRIDE);
#pragma unroll
            for (u32 j = 0; j < GROUPS * 2; ++j) {
                if (first + 16 * j >= columns) continue;
                u32 y[2][2];
                load_b_rows<T>(y, others + 16 * j * STRIDE + k, STRIDE);
                mma_two<T>(s[j / 2] + j % 2 * 2, x, y);
            }
        }
    }
    __syncthreads(); // the tiles are free
}

// Eight neighbours of a row, f(column of them).
template <typename T, typename F> __device__ __forceinline__ void store_eight(T *to, F f) {
    Pack<u32, 4> out;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) out.v[j] = pack_two<T>(f(2 * j), f(2 * j + 1));
    store_pack(reinterpret_cast<u32 *>(to), out);
}

// p = softmax(scale q k^T); scale is 1 / sqrt(d) times log2 e.
template <typename T> __device__ void probabilities(const T *qkv, T *p, u32 tokens, u32 heads, u32 d, float scale) {
    DYNAMIC_SHARED(T, tiles);
    const Head h(tokens, heads, d);
    const Place place;
    Sums s;
    multiply(s, qkv + h.part(0), 3 * h.channels, qkv + h.part(1), 3 * h.channels, tiles, h, [] {});
    // Each warp takes the powers relative to its own largest score; the other's share of the row is then scaled.
    float *shared = reinterpret_cast<float *>(tiles); // [2, ACROSS, TILE]
    float max[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        float most = -INFINITY, sum = 0.0f;
        place.groups(tokens, [&](u32 q) {
#pragma unroll
            for (u32 i = 0; i < 8; ++i) most = fmaxf(most, s[q][i / 2][2 * half + i % 2]);
        });
        // Finite where the warp has no column, so that what it adds is 0 times a number.
        max[half] = fmaxf(row_max(most) * scale, -1e30f);
        place.groups(tokens, [&](u32 q) {
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                float &score = s[q][i / 2][2 * half + i % 2];
                sum += score = exp2_flushed(fmaf(score, scale, -max[half]));
            }
        });
        sum = row_sum(sum);
        if (threadIdx.x % 4 == 0) {
            shared[place.warp_column * TILE + place.row + 8 * half] = max[half];
            shared[(ACROSS + place.warp_column) * TILE + place.row + 8 * half] = sum;
        }
    }
    __syncthreads();
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = place.row + 8 * half;
        if (blockIdx.x * TILE + row >= tokens) continue;
        float most = -INFINITY, sum = 0.0f;
#pragma unroll
        for (u32 w = 0; w < ACROSS; ++w) most = fmaxf(most, shared[w * TILE + row]);
#pragma unroll
        for (u32 w = 0; w < ACROSS; ++w) sum += shared[(ACROSS + w) * TILE + row] * exp2_flushed(shared[w * TILE + row] - most);
        const float factor = exp2_flushed(max[half] - most) / sum;
        T *to = p + (h.row() + blockIdx.x * TILE + row) * tokens + place.column;
        place.groups(tokens, [&](u32 q) {
            store_eight(to + 32 * q, [&](u32 i) { return s[q][i / 2][2 * half + i % 2] * factor; });
        });
    }
}

// ds = p (dp - sum p dp) with dp = d_out v^T.
template <typename T>
__device__ void score_gradients(const T *qkv, const T *d_out, const T *p, T *ds, u32 tokens, u32 heads, u32 d) {
    DYNAMIC_SHARED(T, tiles);
    const Head h(tokens, heads, d);
    const Place place;
    const u32 row = blockIdx.x * TILE + place.row;
    const u64 at = (h.row() + row) * tokens + place.column;
    Sums s;
    Raw<T, 8> of_row[2][GROUPS];
    multiply(s, d_out + h.out(), h.channels, qkv + h.part(2), 3 * h.channels, tiles, h, [&] {
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
            if (row + 8 * half < tokens)
                place.groups(tokens, [&](u32 q) { of_row[half][q] = load_raw<T, 8>(p + at + 8 * half * tokens + 32 * q); });
    });
    float *shared = reinterpret_cast<float *>(tiles); // [ACROSS, TILE]
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        float dot = 0.0f;
        if (row + 8 * half < tokens)
            place.groups(tokens, [&](u32 q) {
#pragma unroll
                for (u32 i = 0; i < 8; ++i) dot += of_row[half][q].at(i) * s[q][i / 2][2 * half + i % 2];
            });
        dot = row_sum(dot);
        if (threadIdx.x % 4 == 0) shared[place.warp_column * TILE + place.row + 8 * half] = dot;
    }
    __syncthreads();
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        if (row + 8 * half >= tokens) continue;
        float dot = 0.0f;
#pragma unroll
        for (u32 w = 0; w < ACROSS; ++w) dot += shared[w * TILE + place.row + 8 * half];
        place.groups(tokens, [&](u32 q) {
            store_eight(ds + at + 8 * half * tokens + 32 * q,
                        [&](u32 i) { return of_row[half][q].at(i) * (s[q][i / 2][2 * half + i % 2] - dot); });
        });
    }
}

} // namespace attention_rows

#define ATTENTION_ROWS(T, S)                                                                                           \
    extern "C" __global__ void __launch_bounds__(attention_rows::THREADS, 2)                                           \
        attention_rows_probabilities_##S(const T *qkv, T *p, u32 tokens, u32 heads, u32 d, float scale) {              \
        attention_rows::probabilities<T>(qkv, p, tokens, heads, d, scale * LOG2_E);                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(attention_rows::THREADS, 2)                                           \
        attention_rows_gradients_##S(const T *qkv, const T *d_out, const T *p, T *ds, u32 tokens, u32 heads, u32 d) {  \
        attention_rows::score_gradients<T>(qkv, d_out, p, ds, tokens, heads, d);                                       \
    }
ATTENTION_ROWS(bf16, bf16)
ATTENTION_ROWS(f16, f16)
