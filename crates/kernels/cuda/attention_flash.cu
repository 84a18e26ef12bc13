// Attention in one kernel (Dao et al. 2022, FlashAttention; the split of the work is that of Dao 2023): scores never leave
// the registers. Forward keeps the logarithm of every row's sum; backward makes the probabilities again from it, in one
// kernel over queries (dq) and one over keys (dk, dv), so that no two blocks add to the same number.
//
// Logarithms and exponentials are to the base 2, where the hardware has them.
#include "attention_flash.cuh"

// The softmax of rows that are seen tile by tile: this thread's two rows.
struct RunningRows {
    float max[2], sum[2];
};

// Turns a tile's scores into exp2(scores - max) and rescales what was summed before.
template <int D>
__device__ __forceinline__ void take_scores(float s[TILE / 8][4], RunningRows &rows, float out[D / 8][4], float scale) {
    float higher[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < (int)TILE / 2; ++i) higher[i % 4 / 2] = fmaxf(higher[i % 4 / 2], s[i / 4][i % 4]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float max = fmaxf(rows.max[half], row_max(higher[half]) * scale);
        float factor = exp2_flushed(rows.max[half] - max);
        rows.max[half] = max;
        rows.sum[half] *= factor;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
            out[j][2 * half] *= factor;
            out[j][2 * half + 1] *= factor;
        }
#pragma unroll
        for (int j = 0; j < (int)TILE / 8; ++j) {
            s[j][2 * half] = exp2_flushed(fmaf(s[j][2 * half], scale, -max));
            s[j][2 * half + 1] = exp2_flushed(fmaf(s[j][2 * half + 1], scale, -max));
            rows.sum[half] += s[j][2 * half] + s[j][2 * half + 1];
        }
    }
}

// Scores of keys that are not there must not count; the first of 8 * EIGHTS keys is `first`.
template <int EIGHTS>
__device__ __forceinline__ void mask_scores(float s[EIGHTS][4], u32 first, u32 tokens, float nothing) {
    u32 column = first + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 4 * EIGHTS; ++i)
        if (column + 8 * (i / 4) + i % 2 >= tokens) s[i / 4][i % 4] = nothing;
}

// scale is 1 / sqrt(d) times log2 e. log_sums [N, heads, L] to the base 2.
template <typename T, int D>
__device__ void flash_forward(const T *qkv, T *out, float *log_sums, u32 tokens, u32 heads, u32 d, float scale) {
    DYNAMIC_SHARED(T, tiles); // two stages of keys and values
    const Head h(tokens, heads, d);
    copy_tile<T, D>(tiles, qkv + h.part(0), 3 * h.channels, blockIdx.x * TILE, h);
    copies_end();
    copies_wait<0>();
    __syncthreads();
    u32 queries[D / 16][4];
    load_rows<T, D>(queries, tiles);
    __syncthreads();

    float sums[D / 8][4];
    clear<D>(sums);
    RunningRows rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    copy_keys_and_values<T, D>(tiles, qkv, 0, h);
    copies_end();
    for (u32 first = 0, stage = 0; first < tokens; first += TILE, stage ^= 1) {
        T *keys = tiles + stage * 2 * TILE_SIZE<D>, *next = tiles + (stage ^ 1) * 2 * TILE_SIZE<D>;
        if (first + TILE < tokens) copy_keys_and_values<T, D>(next, qkv, first + TILE, h);
        copies_end();
        copies_wait<1>();
        __syncthreads();
        float s[TILE / 8][4];
#pragma unroll
        for (int j = 0; j < (int)TILE / 16; ++j) rows_by_tile<T, D>(s + 2 * j, queries, keys, j);
        if (first + TILE > tokens) mask_scores<TILE / 8>(s, first, tokens, -INFINITY);
        take_scores<D>(s, rows, sums, scale);
#pragma unroll
        for (int j = 0; j < (int)TILE / 16; ++j) {
            u32 p[4];
            a_of_c<T>(p, s[2 * j], s[2 * j + 1]);
            add_by_tile<T, D>(sums, p, keys + TILE_SIZE<D>, j);
        }
        __syncthreads(); // before the next copy but one overwrites the tile
    }

    u32 mine = blockIdx.x * TILE + threadIdx.x / 32 * 16;
    float factor[2];
    for (int half = 0; half < 2; ++half) {
        float sum = row_sum(rows.sum[half]);
        factor[half] = 1.0f / sum;
        u32 row = mine + threadIdx.x % 32 / 4 + 8 * half;
        if (threadIdx.x % 4 == 0 && row < tokens) log_sums[h.row() + row] = rows.max[half] + log2f(sum);
    }
    store_rows<T, D>(sums, factor, out + h.out(), h.channels, mine, h);
}

// The sum of out * d_out over this thread's two rows' channels: what the gradient of every score of the row loses.
template <typename T>
__device__ __forceinline__ void row_losses(float losses[2], const T *out, const T *d_out, u32 first, const Head &h) {
    u32 lane = threadIdx.x % 32;
    for (int half = 0; half < 2; ++half) {
        u32 row = first + lane / 4 + 8 * half;
        float sum = 0.0f;
        for (u32 column = lane % 4 * 8; row < h.tokens && column < h.d; column += 32) {
            Pack<T, 8> a = load_pack<T, 8>(out + h.out() + row * h.channels + column);
            Pack<T, 8> b = load_pack<T, 8>(d_out + h.out() + row * h.channels + column);
            for (int j = 0; j < 8; ++j) sum += to_float(a.v[j]) * to_float(b.v[j]);
        }
        losses[half] = row_sum(sum);
    }
}

// dq, and the rows' losses [N, heads, L] for the other kernel.
template <typename T, int D>
__device__ void flash_queries(const T *qkv, const T *out, const T *d_out, const float *log_sums, float *losses, T *dqkv,
                              u32 tokens, u32 heads, u32 d, float scale) {
    DYNAMIC_SHARED(T, tiles); // two stages of keys and values
    const Head h(tokens, heads, d);
    copy_tile<T, D>(tiles, qkv + h.part(0), 3 * h.channels, blockIdx.x * TILE, h);
    copy_tile<T, D>(tiles + TILE_SIZE<D>, d_out + h.out(), h.channels, blockIdx.x * TILE, h);
    copies_end();
    copies_wait<0>();
    __syncthreads();
    u32 queries[D / 16][4], d_outs[D / 16][4];
    load_rows<T, D>(queries, tiles);
    load_rows<T, D>(d_outs, tiles + TILE_SIZE<D>);
    __syncthreads();

    u32 mine = blockIdx.x * TILE + threadIdx.x / 32 * 16;
    float loss[2], log_sum[2];
    row_losses<T>(loss, out, d_out, mine, h);
    for (int half = 0; half < 2; ++half) {
        u32 row = mine + threadIdx.x % 32 / 4 + 8 * half;
        log_sum[half] = row < tokens ? log_sums[h.row() + row] : INFINITY;
        if (threadIdx.x % 4 == 0 && row < tokens) losses[h.row() + row] = loss[half];
    }

    float dq[D / 8][4];
    clear<D>(dq);
    copy_keys_and_values<T, D>(tiles, qkv, 0, h);
    copies_end();
    for (u32 first = 0, stage = 0; first < tokens; first += TILE, stage ^= 1) {
        T *keys = tiles + stage * 2 * TILE_SIZE<D>, *next = tiles + (stage ^ 1) * 2 * TILE_SIZE<D>;
        if (first + TILE < tokens) copy_keys_and_values<T, D>(next, qkv, first + TILE, h);
        copies_end();
        copies_wait<1>();
        __syncthreads();
#pragma unroll
        for (int j = 0; j < (int)TILE / 16; ++j) {
            float s[2][4], dp[2][4];
            rows_by_tile<T, D>(s, queries, keys, j);
            rows_by_tile<T, D>(dp, d_outs, keys + TILE_SIZE<D>, j);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float p = exp2_flushed(fmaf(s[i / 4][i % 4], scale * LOG2_E, -log_sum[i % 4 / 2]));
                s[i / 4][i % 4] = p * (dp[i / 4][i % 4] - loss[i % 4 / 2]);
            }
            if (first + TILE > tokens) mask_scores<2>(s, first + 16 * j, tokens, 0.0f);
            u32 ds[4];
            a_of_c<T>(ds, s[0], s[1]);
            add_by_tile<T, D>(dq, ds, keys, j);
        }
        __syncthreads();
    }
    float factor[2] = {scale, scale};
    store_rows<T, D>(dq, factor, dqkv + h.part(0), 3 * h.channels, mine, h);
}

// A stage of the kernel over keys: queries, gradients, and two numbers of each row.
template <typename T, int D>
__device__ __forceinline__ void copy_queries(T *tile, float *numbers, const T *qkv, const T *d_out, const float *log_sums,
                                             const float *losses, u32 first, const Head &h) {
    copy_tile<T, D>(tile, qkv + h.part(0), 3 * h.channels, first, h);
    copy_tile<T, D>(tile + TILE_SIZE<D>, d_out + h.out(), h.channels, first, h);
    // Of a row that is not there all is zero, also what it adds.
    const u32 row = first + threadIdx.x % TILE;
    const float *from = threadIdx.x < TILE ? log_sums : losses;
    copy_4(numbers + threadIdx.x, from + h.row() + row, row < h.tokens);
}

// dk and dv. Scores are computed transposed: keys are the rows.
template <typename T, int D>
__device__ void flash_keys(const T *qkv, const T *d_out, const float *log_sums, const float *losses, T *dqkv, u32 tokens,
                           u32 heads, u32 d, float scale) {
    DYNAMIC_SHARED(T, tiles); // keys and values, then two stages of queries and gradients
    __shared__ float numbers[2][2 * TILE];
    const Head h(tokens, heads, d);
    T *stages = tiles + 2 * TILE_SIZE<D>;
    copy_keys_and_values<T, D>(tiles, qkv, blockIdx.x * TILE, h);
    copy_queries<T, D>(stages, numbers[0], qkv, d_out, log_sums, losses, 0, h);
    copies_end();

    float dk[D / 8][4], dv[D / 8][4];
    clear<D>(dk);
    clear<D>(dv);
    for (u32 first = 0, stage = 0; first < tokens; first += TILE, stage ^= 1) {
        T *queries = stages + stage * 2 * TILE_SIZE<D>, *next = stages + (stage ^ 1) * 2 * TILE_SIZE<D>;
        if (first + TILE < tokens)
            copy_queries<T, D>(next, numbers[stage ^ 1], qkv, d_out, log_sums, losses, first + TILE, h);
        copies_end();
        copies_wait<1>();
        __syncthreads();
        u32 keys[D / 16][4], values[D / 16][4];
        load_rows<T, D>(keys, tiles);
        load_rows<T, D>(values, tiles + TILE_SIZE<D>);
        for (int j = 0; j < (int)TILE / 16; ++j) {
            float s[2][4], dp[2][4], p[2][4];
            rows_by_tile<T, D>(s, keys, queries, j);
            rows_by_tile<T, D>(dp, values, queries + TILE_SIZE<D>, j);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                u32 query = 16 * j + 8 * (i / 4) + 2 * (threadIdx.x % 4) + i % 2;
                p[i / 4][i % 4] = exp2_flushed(fmaf(s[i / 4][i % 4], scale * LOG2_E, -numbers[stage][query]));
                s[i / 4][i % 4] = p[i / 4][i % 4] * (dp[i / 4][i % 4] - numbers[stage][TILE + query]);
            }
            u32 a[4];
            a_of_c<T>(a, p[0], p[1]);
            add_by_tile<T, D>(dv, a, queries + TILE_SIZE<D>, j);
            a_of_c<T>(a, s[0], s[1]);
            add_by_tile<T, D>(dk, a, queries, j);
        }
        __syncthreads();
    }
    u32 mine = blockIdx.x * TILE + threadIdx.x / 32 * 16;
    float factor[2] = {scale, scale}, one[2] = {1.0f, 1.0f};
    store_rows<T, D>(dk, factor, dqkv + h.part(1), 3 * h.channels, mine, h);
    store_rows<T, D>(dv, one, dqkv + h.part(2), 3 * h.channels, mine, h);
}

// Blocks of the kernel over queries that a Hopper multiprocessor has shared memory for at 128 channels: without the bound
// the compiler takes the registers of two.
#define QUERIES_BOUNDS(D) __launch_bounds__(128, D == 128 ? 3 : 1)
#define FLASH(T, S, D)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128) attention_flash_forward_##D##_##S(                              \
        const T *qkv, T *out, float *log_sums, u32 tokens, u32 heads, u32 d, float scale) {                           \
        flash_forward<T, D>(qkv, out, log_sums, tokens, heads, d, scale * LOG2_E);                                    \
    }                                                                                                                 \
    extern "C" __global__ void QUERIES_BOUNDS(D) attention_flash_queries_##D##_##S(                                   \
        const T *qkv, const T *out, const T *d_out, const float *log_sums, float *losses, T *dqkv, u32 tokens,        \
        u32 heads, u32 d, float scale) {                                                                              \
        flash_queries<T, D>(qkv, out, d_out, log_sums, losses, dqkv, tokens, heads, d, scale);                        \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_flash_keys_##D##_##S(                                 \
        const T *qkv, const T *d_out, const float *log_sums, const float *losses, T *dqkv, u32 tokens, u32 heads,     \
        u32 d, float scale) {                                                                                         \
        flash_keys<T, D>(qkv, d_out, log_sums, losses, dqkv, tokens, heads, d, scale);                                \
    }
#define FLASH_WIDTHS(T, S) FLASH(T, S, 32) FLASH(T, S, 64) FLASH(T, S, 128)
FLASH_WIDTHS(bf16, bf16)
FLASH_WIDTHS(f16, f16)
