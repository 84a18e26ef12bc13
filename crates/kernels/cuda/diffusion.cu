// The diffusion process on a batch of 8-bit images: the noisy images a network sees, the loss of what it makes of them with
// its gradient, and the sinusoids of time.
//
// Noise is never stored: the loss makes it again from its place. What depends on the step is read from device memory.
// (The bound alone, for a model that is judged and not trained, is the same without a gradient.)
#include "diffusion.cuh"
#include "pointwise.cuh"

template <typename T> __device__ void q_sample(const Images &images, T *x_t, u64 n) {
    const u32 blocks = (u32)((images.values + 3) / 4); // fits, as the place of a random number
    for (u64 i = global_thread(); i < n * blocks; i += global_threads()) {
        const Divided at = divide(i, blocks);
        Four four = four_values(images, at.quotient, at.rest);
        T *out = x_t + at.quotient * images.values + 4ull * at.rest;
        if (images.values % 4 == 0) {
            Pack<T, 4> pack;
#pragma unroll
            for (int k = 0; k < 4; ++k) pack.v[k] = from_float<T>(four.x_t[k]);
            store_pack<T, 4>(out, pack);
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k)
                if (k < (int)four.count) out[k] = from_float<T>(four.x_t[k]);
        }
    }
}

// v[k], chosen among registers: an index that is not known beforehand would need an array in memory.
__device__ __forceinline__ float pick(const float v[4], u32 k) { return k < 2 ? (k < 1 ? v[0] : v[1]) : (k < 3 ? v[2] : v[3]); }

// Sums over an image: squared errors, and nats of the bound.
struct Sums {
    double squares, nats;
};

// What the threads of all blocks of an image have summed, its blocks one after the other, known to one thread of them, which
// is told so. partials [N, gridDim.x], counters [N].
__device__ bool image_sums(Sums mine, u64 image, Sums *partials, u32 *counters, Sums *total) {
    mine = {block_sum(mine.squares), block_sum(mine.nats)};
    Sums *of_blocks = partials + image * gridDim.x;
    if (threadIdx.x == 0) of_blocks[blockIdx.x] = mine;
    if (!last_block(counters + image, gridDim.x) || threadIdx.x != 0) return false;
    *total = {0.0, 0.0};
    for (u32 block = 0; block < gridDim.x; ++block) {
        total->squares += of_blocks[block].squares;
        total->nats += of_blocks[block].nats;
    }
    return true;
}

// Nats of an image of so many values as bits of each.
__device__ __forceinline__ double bits_per_value(double nats, double values) {
    return nats / (values * 0.69314718055994530942);
}

// One element's share of both sums; its gradient is written. `at` is its place in the output's first half.
template <typename T>
__device__ __forceinline__ void element_loss(const SampleConstants &s, double loss_scale, double values, u32 channels,
                                             float x_start, float noise, float x_t, const T *output, T *grad, u64 at,
                                             Sums &sums) {
    double prediction = (double)to_float(output[at]);
    double error = prediction - (s.target_x_start * (double)x_start + s.target_noise * (double)noise);
    sums.squares += error * error;
    double scale = s.scale * loss_scale;
    float gradient = (float)(2.0 * scale * s.mse_weight / values * error);
    if (s.bound != 0.0) {
        double variance_value = (double)to_float(output[at + channels]);
        BoundTerm term = bound_term(s, (double)x_start, (double)x_t, prediction, variance_value);
        sums.nats += term.nats;
        double of_nats = bits_per_value(scale * s.bound_weight, values);
        if (s.bound == 1.0) gradient += (float)(of_nats * term.d_prediction);
        grad[at + channels] = from_float<T>((float)(of_nats * term.d_variance_value));
    }
    grad[at] = from_float<T>(gradient);
}

// gridDim.y images of `halves` times `channels` output channels. loss_scale may be none. partials [N, gridDim.x],
// counters [N], results [N, 3].
template <typename T>
__device__ void diffusion_loss(const Images &images, const T *output, u32 channels, u32 halves, const double *loss_scale,
                               T *grad, Sums *partials, u32 *counters, double *results) {
    u64 image = blockIdx.y, values = images.values;
    const SampleConstants s = images.samples[image];
    double scale = loss_scale ? *loss_scale : 1.0;
    const T *of_image = output + image * values * halves;
    T *grad_of_image = grad + image * values * halves;
    Sums sums = {0.0, 0.0};
    for (u64 block = global_thread(); 4 * block < values; block += global_threads()) {
        Four four = four_values(images, image, block);
        for (u32 k = 0; k < four.count; ++k) {
            u64 i = 4 * block + k;
            u64 at = place_in_output(i, channels, halves);
            element_loss<T>(s, scale, (double)values, channels, pick(four.x_start, k), pick(four.noise, k),
                            pick(four.x_t, k), of_image, grad_of_image, at, sums);
            // A variance that the loss does not use has no gradient.
            if (halves == 2 && s.bound == 0.0) grad_of_image[at + channels] = from_float<T>(0.0f);
        }
    }
    Sums total;
    if (!image_sums(sums, image, partials, counters, &total)) return;
    double mse = total.squares / (double)values, bits = bits_per_value(total.nats, (double)values);
    double *of_results = results + 3 * image;
    of_results[0] = s.mse_weight * mse + (s.bound != 0.0 ? s.bound_weight * bits : 0.0);
    of_results[1] = mse;
    of_results[2] = bits;
}

// gridDim.y images, as above: the bound's term in bits, and the squared error of x_0, which is clamped to [-1, 1] in both.
// results [N, 2].
template <typename T>
__device__ void diffusion_bound(const Images &images, const T *output, u32 channels, u32 halves, Sums *partials,
                                u32 *counters, double *results) {
    u64 image = blockIdx.y, values = images.values;
    const SampleConstants s = images.samples[image];
    const T *of_image = output + image * values * halves;
    Sums sums = {0.0, 0.0};
    for (u64 block = global_thread(); 4 * block < values; block += global_threads()) {
        Four four = four_values(images, image, block);
        for (u32 k = 0; k < four.count; ++k) {
            u64 at = place_in_output(4 * block + k, channels, halves);
            double x_start = (double)pick(four.x_start, k), x_t = (double)pick(four.x_t, k);
            double predicted = clamped(predicted_x_start(s, x_t, (double)to_float(of_image[at])));
            double variance_value = halves == 1 ? -1.0 : (double)to_float(of_image[at + channels]);
            sums.nats += bound_nats(s, x_start, x_t, predicted, model_log_variance(s, variance_value)).value;
            sums.squares += (predicted - x_start) * (predicted - x_start);
        }
    }
    Sums total;
    if (!image_sums(sums, image, partials, counters, &total)) return;
    results[2 * image] = bits_per_value(total.nats, (double)values);
    results[2 * image + 1] = total.squares / (double)values;
}

// [N, 2 half]: sin(t f_i), cos(t f_i) with f_i = 10000^(-i / (half - shift)), or the cosines first. In f32 as PyTorch has
// it, every function rounded from double: at t = 1000 a digit of f is four of the angle's.
template <typename T>
__device__ void sinusoids(const float *numbers, T *y, u64 n, u64 half, u32 flip, float ln, float divisor) {
    for (u64 i = global_thread(); i < n * half; i += global_threads()) {
        u64 row = i / half, column = i % half;
        float frequency = (float)exp((double)(__fmul_rn(ln, (float)column) / divisor));
        double angle = (double)__fmul_rn(numbers[row], frequency);
        T *of_row = y + row * 2 * half;
        of_row[column + (flip ? half : 0)] = from_float<T>((float)sin(angle));
        of_row[column + (flip ? 0 : half)] = from_float<T>((float)cos(angle));
    }
}

#define DIFFUSION(T, S)                                                                                               \
    extern "C" __global__ void diffusion_q_sample_##S(const unsigned char *bytes, const SampleConstants *samples,     \
                                                      u64 key, const u32 *place, u64 position, u64 values, T *x_t,    \
                                                      u64 n) {                                                        \
        q_sample<T>(Images{bytes, samples, key, place, position, values}, x_t, n);                                    \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                              \
        diffusion_loss_##S(const unsigned char *bytes, const SampleConstants *samples, u64 key, const u32 *place,     \
                           u64 position, u64 values, const T *output, u32 channels, u32 halves,                       \
                           const double *loss_scale, T *grad, Sums *partials, u32 *counters, double *results) {       \
        diffusion_loss<T>(Images{bytes, samples, key, place, position, values}, output, channels, halves, loss_scale, \
                          grad, partials, counters, results);                                                         \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                              \
        diffusion_bound_##S(const unsigned char *bytes, const SampleConstants *samples, u64 key, const u32 *place,    \
                            u64 position, u64 values, const T *output, u32 channels, u32 halves, Sums *partials,      \
                            u32 *counters, double *results) {                                                         \
        diffusion_bound<T>(Images{bytes, samples, key, place, position, values}, output, channels, halves, partials,  \
                           counters, results);                                                                        \
    }                                                                                                                 \
    extern "C" __global__ void diffusion_sinusoids_##S(const float *numbers, T *y, u64 n, u64 half, u32 flip,         \
                                                       float ln, float divisor) {                                     \
        sinusoids<T>(numbers, y, n, half, flip, ln, divisor);                                                         \
    }
FOR_EACH_FLOAT(DIFFUSION)
