// The arithmetic of the diffusion losses, in double as on the CPU: the variational bound's terms and the decoder
// (src/ops/diffusion: cpu.rs, likelihood.rs), and the samples x_0, eps and x_t, computed again where they are needed.
#pragma once
#include "philox.cuh"

// What a sample's t means: the mirror of SampleConstants in src/ops/diffusion/mod.rs.
struct SampleConstants {
    double signal, noise;                  // x_t = signal x_0 + noise eps
    double target_x_start, target_noise;   // what the network should predict
    double mse_weight;                     // of the squared error in the loss
    double scale;                          // of the loss in what is minimised
    double bound;                          // 0: not in the loss, 1: it is, 2: it is and teaches the variance alone
    double bound_weight;                   // per bit and dimension
    double decoder;                        // whether the bound's term is the decoder's (t = 0)
    double x_start_x_t, x_start_prediction; // x_0 as the prediction says
    double mean_coef1, mean_coef2;         // of x_0 and x_t in the posterior's mean
    double posterior_log_variance;
    double log_variance_lower, log_variance_width;
};

// A negative log-likelihood or divergence in nats, with its derivatives by the model's mean and log variance.
struct Nats {
    double value, d_mean, d_log_variance;
};

// The normal CDF at a bin's edge, 0.5 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), and its density.
struct Cdf {
    double z, value, density;
};
__device__ __forceinline__ Cdf cdf_at(double z) {
    const double cubic = 0.044715, scale = 0.79788456080286535588;
    double t = tanh(scale * (z + cubic * (z * z * z)));
    return {z, 0.5 * (1.0 + t), 0.5 * (1.0 - t * t) * scale * (1.0 + 3.0 * cubic * z * z)};
}

// -log p(x) of an 8-bit value x under the discretised N(mean, exp(log_variance)); the outermost bins take the tails.
__device__ inline Nats decoder_nats(double x, double mean, double log_variance) {
    const double half_bin = 1.0 / 255.0, edge = 0.999, least = 1e-12;
    double inverse = exp(-0.5 * log_variance);
    Cdf upper = {0.0, 1.0, 0.0}, lower = {0.0, 0.0, 0.0};
    if (x <= edge) upper = cdf_at((x - mean + half_bin) * inverse);
    if (x >= -edge) lower = cdf_at((x - mean - half_bin) * inverse);
    double probability = upper.value - lower.value;
    if (probability <= least) return {-log(least), 0.0, 0.0};
    return {-log(probability), (upper.density - lower.density) * inverse / probability,
            0.5 * (upper.density * upper.z - lower.density * lower.z) / probability};
}

// KL(N(mean - mean_error, q) || N(mean, p)) of log variances q and p.
__device__ __forceinline__ Nats normal_kl(double mean_error, double q, double p) {
    double precision = exp(-p), ratio = exp(q) * precision, squared = mean_error * mean_error * precision;
    return {0.5 * (p - q - 1.0 + ratio + squared), mean_error * precision, 0.5 * (1.0 - ratio - squared)};
}

// x_0 as the network's prediction says, in double; by the constants of a sample or of a sampler's step.
template <typename Constants>
__device__ __forceinline__ double predicted_x_start(const Constants &s, double x_t, double prediction) {
    return s.x_start_x_t * x_t + s.x_start_prediction * prediction;
}

// x_0 clamped to [-1, 1]. Not by fmin and fmax, which would make a number of what is none.
__device__ __forceinline__ double clamped(double x_start) { return x_start < -1.0 ? -1.0 : x_start > 1.0 ? 1.0 : x_start; }

// The variance that the network's second half of channels stands for; its value has no part where the variance is fixed.
template <typename Constants> __device__ __forceinline__ double model_log_variance(const Constants &s, double variance_value) {
    return s.log_variance_lower + 0.5 * (variance_value + 1.0) * s.log_variance_width;
}

// Where the value `i` of images is in an output of `halves` times as many channels.
__device__ __forceinline__ u64 place_in_output(u64 i, u32 channels, u32 halves) {
    return halves == 1 ? i : i / channels * (halves * channels) + i % channels;
}

// One element's term of the bound for a predicted x_0.
__device__ inline Nats bound_nats(const SampleConstants &s, double x_start, double x_t, double predicted,
                                  double log_variance) {
    if (s.decoder != 0.0) return decoder_nats(x_start, s.mean_coef1 * predicted + s.mean_coef2 * x_t, log_variance);
    // Both means hold the same x_t, so that only the two x_0 differ.
    return normal_kl(s.mean_coef1 * (predicted - x_start), s.posterior_log_variance, log_variance);
}

// The same with its derivatives by the two halves of the network's output.
struct BoundTerm {
    double nats, d_prediction, d_variance_value;
};
__device__ inline BoundTerm bound_term(const SampleConstants &s, double x_start, double x_t, double prediction,
                                       double variance_value) {
    Nats nats = bound_nats(s, x_start, x_t, predicted_x_start(s, x_t, prediction), model_log_variance(s, variance_value));
    return {nats.value, nats.d_mean * (s.mean_coef1 * s.x_start_prediction),
            nats.d_log_variance * 0.5 * s.log_variance_width};
}

// Where the images of a micro-batch and their noise come from.
struct Images {
    const unsigned char *bytes; // [N, values]
    const SampleConstants *samples;
    u64 key;
    const u32 *place; // low and high half of the step whose noise this is, and of the number of the first image of all
    u64 position;     // of the first image here among them
    u64 values;       // of an image
};

// Four neighbours of an image.
struct Four {
    float x_start[4], noise[4], x_t[4];
    u32 count;
};

// The values 4 block to 4 block + 3 of an image. Every product and sum is rounded on its own, as on the CPU.
__device__ __forceinline__ Four four_values(const Images &images, u64 image, u64 block) {
    Four four;
    u64 step = (u64)images.place[0] | (u64)images.place[1] << 32, first = (u64)images.place[2] | (u64)images.place[3] << 32;
    normals4(element_block(images.key, step, first + images.position + image, (u32)block), four.noise);
    const unsigned char *bytes = images.bytes + image * images.values + 4 * block;
    float signal = (float)images.samples[image].signal, noise = (float)images.samples[image].noise;
    u64 left = images.values - 4 * block;
    four.count = left < 4 ? (u32)left : 4;
    for (u32 k = 0; k < 4; ++k) {
        float byte = k < four.count ? (float)bytes[k] : 0.0f;
        four.x_start[k] = __fsub_rn(byte / 127.5f, 1.0f);
        four.x_t[k] = __fadd_rn(__fmul_rn(four.x_start[k], signal), __fmul_rn(four.noise[k], noise));
    }
    return four;
}
