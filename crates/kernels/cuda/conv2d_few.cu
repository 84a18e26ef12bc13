// Convolutions of 3x3, stride 1, that keep the size, between an image of few channels, such as a picture, and one of many.
//
// One pixel's nine neighbours in the image of few channels are up to 63 numbers: its patch. Then
//   spread: many[q, m] = bias[m] + sum over k of weight(m, k) patch(q)[k]             (forward of few inputs, dx of few outputs)
//   gather: few[p, i]  = bias[i] + sum over s, m of weight(m, (s, i)) many[p - s, m]  (forward of few outputs, dx of few inputs)
//   gradient: d weight(m, k) = sum over q of many[q, m] patch(q)[k]
// where k = (s, i): s is the way from a pixel of the many to one of the few, i a channel of the few. Each number of the many
// crosses the memory once, in packs of 16 bytes, and everything else is small: so they are bound by memory, which libraries are
// not that pad the few channels to 8 and multiply by tiles of 32 or more outputs.
#include "mma.cuh"

namespace few {

constexpr u32 THREADS = 256, WARPS = THREADS / 32, TAPS = 9;
constexpr u32 TILE = 16; // pixels of a row that a warp takes at once

template <int FEW> struct Geometry {
    static constexpr u32 NUMBERS = TAPS * FEW;                  // of a patch
    static constexpr u32 PRODUCTS = (NUMBERS + 1 + 31) / 32 * 32; // with a one behind it for the bias, in whole tiles

    u32 n, h, w, many;
    // Whether the weight is [few, 3, 3, many], which is so where the few are outputs, or [many, 3, 3, few].
    u32 few_out;

    // Element of the weight for channel m of the many and number k of a patch.
    __device__ __forceinline__ u32 weight(u32 m, u32 k) const {
        const u32 s = k / FEW, i = k % FEW;
        return few_out ? (i * TAPS + TAPS - 1 - s) * many + m : m * NUMBERS + k;
    }
    __device__ __forceinline__ u32 tiles_of_row() const { return (w + TILE - 1) / TILE; }
    __device__ __forceinline__ u32 tiles() const { return n * h * tiles_of_row(); }
};

template <typename T> __device__ __forceinline__ u32 bits_of(T v) { return *reinterpret_cast<const unsigned short *>(&v); }

// Up to 16 pixels of a row.
template <int FEW> struct Tile {
    u32 x;
    u64 first; // pixel, of all images
    u32 rows;  // bits of the taps whose row is inside

    __device__ __forceinline__ Tile(const Geometry<FEW> &g, u32 tile) {
        const u32 row = tile / g.tiles_of_row(), y = row % g.h;
        x = (tile - row * g.tiles_of_row()) * TILE;
        first = (u64)row * g.w + x;
        rows = 0x38 | (y > 0 ? 0x7 : 0) | (y + 1 < g.h ? 0x1c0 : 0);
    }
    // Bits of the taps that are inside for the pixel `at` of the tile, none if it is not there itself.
    __device__ __forceinline__ u32 taps(const Geometry<FEW> &g, u32 at) const {
        const u32 column = x + at;
        const u32 inside = rows & (0x92 | (column > 0 ? 0x49 : 0) | (column + 1 < g.w ? 0x124 : 0));
        return column < g.w ? inside : 0;
    }
};

// A number of a patch, in one register: where it lies from the pixel on, and its tap, of which there is none if it is no number.
struct Place {
    int packed;

    __device__ __forceinline__ Place() {}
    template <int FEW> __device__ __forceinline__ Place(const Geometry<FEW> &g, u32 k) {
        const int s = k / FEW, i = k % FEW;
        packed = k < g.NUMBERS ? (((s / 3 - 1) * (int)g.w + s % 3 - 1) * FEW + i) * 16 + s : TAPS;
    }
    template <typename T> __device__ __forceinline__ u32 load(const T *pixel, u32 taps) const {
        return taps >> (packed & 15) & 1 ? *reinterpret_cast<const unsigned short *>(pixel + (packed >> 4)) : 0;
    }
};

// 1 in a half of a word if k is the number behind the last, which is multiplied with the bias.
template <typename T, int FEW> __device__ __forceinline__ u32 one_at(const Geometry<FEW> &g, u32 k, u32 half) {
    return k == g.NUMBERS ? bits_of(from_float<T>(1.0f)) << 16 * half : 0;
}

// Blocks: shares of the tiles, 32 GROUPS channels of the many. A warp holds their weights in registers; the order of columns
// in its products is such that a thread's are 8 neighbours.
template <typename T, int FEW, int GROUPS>
__device__ __forceinline__ void spread(const T *few, const T *weight, const T *bias, T *many, const Geometry<FEW> &g) {
    constexpr u32 PRODUCTS = Geometry<FEW>::PRODUCTS, NUMBERS = Geometry<FEW>::NUMBERS, STEPS = PRODUCTS / 16, STRIDE = PRODUCTS + 2, CHANNELS = 32 * GROUPS;
    DYNAMIC_SHARED(T, weights); // [CHANNELS, STRIDE]
    const u32 base = blockIdx.y * CHANNELS, lane = threadIdx.x % 32, row = lane / 4, t = lane % 4;
    constexpr u32 EACH = CHANNELS * PRODUCTS / THREADS;
    T of_thread[EACH];
#pragma unroll
    for (u32 j = 0; j < EACH; ++j) {
        // Neighbours in memory by neighbouring threads.
        const u32 at = threadIdx.x + j * THREADS, k = g.few_out ? at / CHANNELS : at % PRODUCTS;
        const u32 m = base + (g.few_out ? at % CHANNELS : at / PRODUCTS);
        of_thread[j] = from_float<T>(0.0f);
        if (m < g.many && k < NUMBERS) of_thread[j] = weight[g.weight(m, k)];
        if (m < g.many && k == NUMBERS && bias) of_thread[j] = bias[m];
    }
#pragma unroll
    for (u32 j = 0; j < EACH; ++j) {
        const u32 at = threadIdx.x + j * THREADS, k = g.few_out ? at / CHANNELS : at % PRODUCTS;
        weights[(g.few_out ? at % CHANNELS : at / PRODUCTS) * STRIDE + k] = of_thread[j];
    }
    Place places[STEPS][2][2];
    u32 ones[STEPS][2];
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step)
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            const u32 k = 16 * step + 8 * h + 2 * t;
            places[step][h][0] = Place(g, k);
            places[step][h][1] = Place(g, k + 1);
            ones[step][h] = one_at<T>(g, k, 0) | one_at<T>(g, k + 1, 1);
        }
    __syncthreads();
    u32 b[GROUPS][4][STEPS][2];
#pragma unroll
    for (u32 q = 0; q < GROUPS; ++q)
#pragma unroll
        for (u32 j = 0; j < 4; ++j)
#pragma unroll
            for (u32 step = 0; step < STEPS; ++step)
#pragma unroll
                for (u32 h = 0; h < 2; ++h)
                    b[q][j][step][h] = *reinterpret_cast<const u32 *>(
                        weights + (32 * q + row / 2 * 8 + 2 * j + row % 2) * STRIDE + 16 * step + 8 * h + 2 * t);
    const u32 tiles = g.tiles(), warps = gridDim.x * WARPS;
    for (u32 at = blockIdx.x * WARPS + threadIdx.x / 32; at < tiles; at += warps) {
        const Tile<FEW> tile(g, at);
        u32 a[STEPS][4];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 taps = tile.taps(g, row + 8 * half);
            const T *pixel = few + (tile.first + row + 8 * half) * FEW;
#pragma unroll
            for (u32 step = 0; step < STEPS; ++step)
#pragma unroll
                for (u32 h = 0; h < 2; ++h)
                    a[step][2 * h + half] =
                        places[step][h][0].load(pixel, taps) | places[step][h][1].load(pixel, taps) << 16 | ones[step][h];
        }
#pragma unroll
        for (u32 q = 0; q < GROUPS; ++q) {
            if (base + 32 * q >= g.many) break;
            float c[4][4] = {};
#pragma unroll
            for (u32 step = 0; step < STEPS; ++step)
#pragma unroll
                for (u32 j = 0; j < 4; ++j) mma_m16n8k16(c[j], a[step], b[q][j][step], c[j], T());
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                if (tile.x + row + 8 * half >= g.w) continue;
                Pack<u32, 4> out;
#pragma unroll
                for (u32 j = 0; j < 4; ++j) out.v[j] = pack_two<T>(c[j][2 * half], c[j][2 * half + 1]);
                store_pack(reinterpret_cast<u32 *>(many + (tile.first + row + 8 * half) * g.many + base + 32 * q + 8 * t), out);
            }
        }
    }
}

// The part of an image that a block of `gather` reads, for its outputs from (y, x) on.
struct Region {
    u32 y, x, rows, columns, first_row, first_column;

    __device__ __forceinline__ Region(u32 h, u32 w, u32 y, u32 x, u32 down, u32 across) : y(y), x(x) {
        first_row = y ? y - 1 : 0;
        first_column = x ? x - 1 : 0;
        rows = min(y + down + 1, h) - first_row;
        columns = min(x + across + 1, w) - first_column;
    }
};

// Blocks: columns of tiles of outputs, rows of tiles, images. First the products of every pixel of the many with all of its
// weights, into shared memory; then each output takes its nine.
//
// A thread's channels are 8 neighbours of every 32, so that its share of a product's left side is one load; up to 128 channels
// of the next pixels are on their way while these are multiplied.
template <typename T, int FEW>
__device__ __forceinline__ void gather(const T *many, const T *weight, const T *bias, T *few, const Geometry<FEW> &g, u32 down,
                                       u32 across, u32 stride) {
    constexpr u32 NUMBERS = Geometry<FEW>::NUMBERS, COLUMNS = (NUMBERS + 7) / 8, CHANNELS = 128;
    DYNAMIC_SHARED(u32, shared);
    u32 *weights = shared;                                                              // [many / 32, 2, COLUMNS, 32, 2]
    float *products = reinterpret_cast<float *>(shared + g.many / 32 * COLUMNS * 128); // [NUMBERS, stride]
    const u32 lane = threadIdx.x % 32, row = lane / 4, t = lane % 4;
    const Region region(g.h, g.w, blockIdx.y * down, blockIdx.x * across, down, across);
    const u32 pixels = region.rows * region.columns, step_of_warps = blockDim.x / 32 * 16;
    const auto load = [&](Pack<u32, 4> in[4][2], u32 first, u32 channel) {
        if (first >= pixels) return;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 at = min(first + row + 8 * half, pixels - 1), r = at / region.columns;
            const u64 pixel = ((u64)blockIdx.z * g.h + region.first_row + r) * g.w + region.first_column + at - r * region.columns;
            const T *from = many + pixel * g.many + channel + 8 * t;
#pragma unroll
            for (u32 q = 0; q < 4; ++q)
                if (channel + 32 * q < g.many) in[q][half] = load_pack<u32, 4>(reinterpret_cast<const u32 *>(from + 32 * q));
        }
    };
    Pack<u32, 4> next[4][2];
    load(next, threadIdx.x / 32 * 16, 0);
#pragma unroll 4
    for (u32 at = threadIdx.x; at < g.many / 32 * COLUMNS * 128; at += blockDim.x) {
        const u32 h = at % 2, l = at / 2 % 32, column = at / 64 % COLUMNS, step = at / 64 / COLUMNS;
        const u32 m = step / 2 * 32 + l % 4 * 8 + step % 2 * 4 + 2 * h, k = 8 * column + l / 4;
        Pack<T, 2> two = {{from_float<T>(0.0f), from_float<T>(0.0f)}};
        if (k < NUMBERS) two = {{weight[g.weight(m, k)], weight[g.weight(m + 1, k)]}};
        weights[at] = *reinterpret_cast<const u32 *>(&two);
    }
    __syncthreads();
    for (u32 first = threadIdx.x / 32 * 16; first < pixels; first += step_of_warps) {
        float c[COLUMNS][4] = {};
        const u32 *b = weights + 2 * lane;
        for (u32 channel = 0; channel < g.many; channel += CHANNELS) {
            Pack<u32, 4> in[4][2];
#pragma unroll
            for (u32 i = 0; i < 8; ++i) in[i / 2][i % 2] = next[i / 2][i % 2];
            const bool last = channel + CHANNELS >= g.many;
            load(next, last ? first + step_of_warps : first, last ? 0 : channel + CHANNELS);
#pragma unroll
            for (u32 q = 0; q < 4; ++q) {
                if (channel + 32 * q >= g.many) break;
#pragma unroll
                for (u32 step = 0; step < 2; ++step) {
                    const u32 a[4] = {in[q][0].v[2 * step], in[q][1].v[2 * step], in[q][0].v[2 * step + 1], in[q][1].v[2 * step + 1]};
#pragma unroll
                    for (u32 j = 0; j < COLUMNS; ++j, b += 64) {
                        const Pack<u32, 2> two = load_pack<u32, 2>(b);
                        mma_m16n8k16(c[j], a, two.v, c[j], T());
                    }
                }
            }
        }
#pragma unroll
        for (u32 j = 0; j < COLUMNS; ++j)
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 k = 8 * j + 2 * t + i % 2;
                if (k < NUMBERS) products[k * stride + first + row + 8 * (i / 2)] = c[j][i];
            }
    }
    __syncthreads();
    const u32 wide = min(across, g.w - region.x) * FEW, high = min(down, g.h - region.y);
    for (u32 at = threadIdx.x; at < wide * high; at += blockDim.x) {
        const u32 r = at / wide, within = at - r * wide, x = region.x + within / FEW, y = region.y + r, i = within % FEW;
        float sum = bias ? to_float(bias[i]) : 0.0f;
#pragma unroll
        for (u32 s = 0; s < TAPS; ++s) {
            // From the pixel of the many s leads here.
            const u32 qy = y + 1 - s / 3, qx = x + 1 - s % 3;
            if (qy < g.h && qx < g.w)
                sum += products[(s * FEW + i) * stride + (qy - region.first_row) * region.columns + qx - region.first_column];
        }
        few[(((u64)blockIdx.z * g.h + y) * g.w + x) * FEW + i] = from_float<T>(sum);
    }
}

__device__ __forceinline__ u32 low_halves(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
__device__ __forceinline__ u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }

// Blocks: shares of the tiles, 8 WIDTH channels of the many. `partials` is [shares, 9 few many], what each adds to the weight's
// gradient, in its order, and behind it [shares, outputs], the same for the bias.
//
// Pixels are what is summed over, so two of them stand in a word: the many's words are made of those of two pixels. A thread
// computes with what it has copied itself, so nothing waits for a barrier.
template <typename T, int FEW, int WIDTH, int STAGES>
__device__ __forceinline__ void gradient(const T *few, const T *many, float *partials, const Geometry<FEW> &g) {
    constexpr u32 NUMBERS = Geometry<FEW>::NUMBERS, DOWN = Geometry<FEW>::PRODUCTS / 16, WORDS = WIDTH / 2, COUNT = DOWN * WIDTH * 4;
    DYNAMIC_SHARED(float, shared); // copies on their way, and later [WARPS, COUNT, 32]
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, t = lane % 4;
    const u32 channel = blockIdx.y * 8 * WIDTH + row * WIDTH;
    const u32 tiles = g.tiles(), step = gridDim.x * WARPS;
    T *ring = reinterpret_cast<T *>(shared) + warp * STAGES * 4 * 32 * WIDTH + lane * WIDTH;
    const auto pixel_of = [&](u32 i) { return 2 * t + i % 2 + 8 * (i / 2); };
    const auto copy = [&](u32 at, u32 stage) {
        if (at < tiles) {
            const Tile<FEW> tile(g, at);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const bool there = tile.x + pixel_of(i) < g.w && channel < g.many;
                const T *from = many + (there ? (tile.first + pixel_of(i)) * g.many + channel : 0);
                if (WIDTH == 8)
                    copy_16(ring + (stage * 4 + i) * 32 * WIDTH, from, there);
                else
                    copy_8(ring + (stage * 4 + i) * 32 * WIDTH, from, there);
            }
        }
        copies_end();
    };
    u32 at = blockIdx.x * WARPS + warp, stage = 0;
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; ++s) copy(at + s * step, s);
    Place places[DOWN][2];
    u32 behind[DOWN][2];
    const u32 one = bits_of(from_float<T>(1.0f)), ones[2] = {one | one << 16, one | one << 16};
#pragma unroll
    for (u32 r = 0; r < DOWN; ++r)
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 k = 16 * r + row + 8 * half;
            places[r][half] = Place(g, k);
            // Ones, whose sums are those of the many.
            behind[r][half] = k == NUMBERS ? ones[0] : 0;
        }
    float c[DOWN][WIDTH][4] = {}, sums[DOWN][4] = {};
    const bool sum_few = g.few_out && blockIdx.y == 0;
    for (; at < tiles; at += step, stage = stage + 1 < STAGES ? stage + 1 : 0) {
        const Tile<FEW> tile(g, at);
        u32 a[DOWN][4];
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            const u32 left = tile.taps(g, 2 * t + 8 * h), right = tile.taps(g, 2 * t + 8 * h + 1);
            const T *pixel = few + (tile.first + 2 * t + 8 * h) * FEW;
#pragma unroll
            for (u32 r = 0; r < DOWN; ++r)
#pragma unroll
                for (u32 half = 0; half < 2; ++half)
                    a[r][2 * h + half] = places[r][half].load(pixel, left) | places[r][half].load(pixel + FEW, right) << 16 |
                                         behind[r][half];
        }
        copy(at + (STAGES - 1) * step, stage > 0 ? stage - 1 : STAGES - 1);
        copies_wait<STAGES - 1>();
        Pack<u32, WORDS> in[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) in[i] = load_pack<u32, WORDS>(reinterpret_cast<const u32 *>(ring + (stage * 4 + i) * 32 * WIDTH));
#pragma unroll
        for (u32 j = 0; j < WORDS; ++j) {
            const u32 even[2] = {low_halves(in[0].v[j], in[1].v[j]), low_halves(in[2].v[j], in[3].v[j])};
            const u32 odd[2] = {high_halves(in[0].v[j], in[1].v[j]), high_halves(in[2].v[j], in[3].v[j])};
#pragma unroll
            for (u32 r = 0; r < DOWN; ++r) {
                mma_m16n8k16(c[r][2 * j], a[r], even, c[r][2 * j], T());
                mma_m16n8k16(c[r][2 * j + 1], a[r], odd, c[r][2 * j + 1], T());
            }
        }
        if (sum_few) {
#pragma unroll
            for (u32 r = 0; r < DOWN; ++r)
                if (16 * r < 5 * FEW && 16 * r + 16 > 4 * FEW) mma_m16n8k16(sums[r], a[r], ones, sums[r], T());
        }
    }
    copies_wait<0>();
    __syncthreads();
    // The sums of all warps, in their order.
    const u32 size = NUMBERS * g.many, outputs = g.few_out ? FEW : g.many;
    float *out = partials + (u64)blockIdx.x * size, *of_bias = partials + (u64)gridDim.x * size + blockIdx.x * outputs;
    const auto add_up = [&](u32 count, auto f) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < count * 32; i += THREADS) {
            float sum = 0.0f;
#pragma unroll
            for (u32 other = 0; other < WARPS; ++other) sum += shared[other * count * 32 + i];
            f(i / 32, i % 32, sum);
        }
    };
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) shared[(warp * COUNT + i) * 32 + lane] = c[i / 4 / WIDTH][i / 4 % WIDTH][i % 4];
    add_up(COUNT, [&](u32 i, u32 of, float sum) {
        const u32 k = i / 4 / WIDTH * 16 + of / 4 + i % 4 / 2 * 8;
        const u32 m = blockIdx.y * 8 * WIDTH + (of % 4 * 2 + i % 2) * WIDTH + i / 4 % WIDTH;
        if (m >= g.many) return;
        if (k < NUMBERS) out[g.weight(m, k)] = sum;
        if (k == NUMBERS && !g.few_out) of_bias[m] = sum;
    });
    if (!sum_few) return;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < DOWN * 4; ++i) shared[(warp * DOWN * 4 + i) * 32 + lane] = sums[i / 4][i % 4];
    add_up(DOWN * 4, [&](u32 i, u32 of, float sum) {
        const u32 k = i / 4 * 16 + of / 4 + i % 4 / 2 * 8;
        if (i % 2 == 0 && of % 4 == 0 && k >= 4 * FEW && k < 5 * FEW) of_bias[k - 4 * FEW] = sum;
    });
}

} // namespace few

#define FEW_SIZES u32 n, u32 h, u32 w, u32 many, u32 few_out
#define FEW_GEOMETRY {n, h, w, many, few_out}
#define CONV2D_FEW(T, S, FEW, GROUPS, WIDTH, STAGES)                                                                             \
    extern "C" __global__ void __launch_bounds__(few::THREADS, 2)                                                                \
        conv2d_spread_##FEW##_##S(const T *from, const T *weight, const T *bias, T *to, FEW_SIZES) {                             \
        few::spread<T, FEW, GROUPS>(from, weight, bias, to, FEW_GEOMETRY);                                                       \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(few::THREADS, 2)                                                                \
        conv2d_gather_##FEW##_##S(const T *from, const T *weight, const T *bias, T *to, FEW_SIZES, u32 down, u32 across,         \
                                  u32 stride) {                                                                                  \
        few::gather<T, FEW>(from, weight, bias, to, FEW_GEOMETRY, down, across, stride);                                         \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(few::THREADS, FEW < 4 ? 2 : 1)                                                  \
        conv2d_few_gradient_##FEW##_##S(const T *few_image, const T *many_image, float *partials, FEW_SIZES) {                   \
        few::gradient<T, FEW, WIDTH, STAGES>(few_image, many_image, partials, FEW_GEOMETRY);                                     \
    }
#define CONV2D_FEW_ALL(T, S)     \
    CONV2D_FEW(T, S, 1, 4, 8, 4) \
    CONV2D_FEW(T, S, 3, 4, 8, 4) \
    CONV2D_FEW(T, S, 4, 2, 4, 8) \
    CONV2D_FEW(T, S, 6, 1, 4, 8)
CONV2D_FEW_ALL(bf16, bf16)
CONV2D_FEW_ALL(f16, f16)
