// A step of a sampler on a batch of images, out of the noise: from the network's output and x_t to the next x_t, in one pass,
// with the step's noise made in registers. Computed in double and rounded once: what a step loses goes through the network
// again at every later one. What the step is and which images these are is read from device memory, so that a captured step
// can be replayed as another.
#include "diffusion.cuh"

// What a step does: the mirror of SamplerConstants in src/ops/diffusion/sampler.rs.
struct SamplerConstants {
    double guidance;                                      // (1 + w) guided - w unguided
    double x_start_x_t, x_start_prediction, clip;         // x_0 as the prediction says; whether it is clamped to [-1, 1]
    double mean_x_start, mean_x_t, mean_prediction, mean_previous; // the next x_t's mean, of what the step knows
    double noise;                                         // whether it adds noise
    double log_variance_lower, log_variance_width;        // of that noise
};

// Images in memory that keeps its place.
template <typename T> struct Batch {
    float *x_t, *x_start;
    T *input;   // x_t as the network is shown it; none where that is x_t itself
    u64 values; // of an image
    u64 n;
};

// Where an image's numbers come from.
struct Noise {
    u64 key, step, position;
};

// x_t where the walk begins: given, or standard normals of step 0.
template <typename T> __device__ void sampler_begin(const float *given, const Noise &noise, const Batch<T> &batch) {
    u64 blocks = (batch.values + 3) / 4;
    for (u64 i = global_thread(); i < batch.n * blocks; i += global_threads()) {
        u64 image = i / blocks, block = i % blocks;
        float four[4];
        if (!given) normals4(element_block(noise.key, noise.step, noise.position + image, (u32)block), four);
        for (u64 k = 0; k < 4 && 4 * block + k < batch.values; ++k) {
            u64 at = image * batch.values + 4 * block + k;
            float x = given ? given[at] : four[k];
            batch.x_t[at] = x;
            if (batch.input) batch.input[at] = from_float<T>(x);
        }
    }
}

// One value's step. A factor of zero leaves out what it would multiply, which may be infinite or nothing yet.
__device__ __forceinline__ double next_value(const SamplerConstants &s, double prediction, double variance_value, double x,
                                             float noise, float *x_start) {
    double x_0 = predicted_x_start(s, x, prediction);
    if (s.clip != 0.0) x_0 = clamped(x_0);
    double next = s.mean_x_start * x_0 + s.mean_x_t * x;
    if (s.mean_prediction != 0.0) next += s.mean_prediction * prediction;
    if (s.mean_previous != 0.0) next += s.mean_previous * (double)*x_start;
    *x_start = (float)x_0;
    if (s.noise == 0.0) return next;
    return next + exp(0.5 * model_log_variance(s, variance_value)) * (double)noise;
}

// `output` has `halves` times `channels` channels, of which the second half is the variance; `unguided` may be none.
template <typename T>
__device__ void sampler_step(const SamplerConstants *constants, const T *output, const T *unguided, u32 channels, u32 halves,
                             const Noise &noise, const Batch<T> &batch) {
    const SamplerConstants s = *constants;
    u64 blocks = (batch.values + 3) / 4;
    for (u64 i = global_thread(); i < batch.n * blocks; i += global_threads()) {
        u64 image = i / blocks, block = i % blocks;
        float four[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (s.noise != 0.0) normals4(element_block(noise.key, noise.step, noise.position + image, (u32)block), four);
        for (u64 k = 0; k < 4 && 4 * block + k < batch.values; ++k) {
            u64 at = image * batch.values + 4 * block + k;
            u64 of_output = place_in_output(at, channels, halves);
            double prediction = (double)to_float(output[of_output]);
            double variance_value = halves == 1 ? -1.0 : (double)to_float(output[of_output + channels]);
            if (unguided)
                prediction = (1.0 + s.guidance) * prediction - s.guidance * (double)to_float(unguided[of_output]);
            double x = (double)batch.x_t[at];
            float next = (float)next_value(s, prediction, variance_value, x, four[k], batch.x_start + at);
            batch.x_t[at] = next;
            if (batch.input) batch.input[at] = from_float<T>(next);
        }
    }
}

// place: low and high half of the step whose noise this is, and of the first image's number.
#define SAMPLER(T, S)                                                                                                 \
    extern "C" __global__ void sampler_begin_##S(const float *given, u64 key, u64 position, float *x_t, T *input,     \
                                                 u64 values, u64 n) {                                                 \
        sampler_begin<T>(given, Noise{key, 0, position}, Batch<T>{x_t, nullptr, input, values, n});                   \
    }                                                                                                                 \
    extern "C" __global__ void sampler_step_##S(const SamplerConstants *constants, const u32 *place, u64 key,         \
                                                const T *output, const T *unguided, u32 channels, u32 halves,         \
                                                float *x_t, float *x_start, T *input, u64 values, u64 n) {            \
        Noise noise = {key, (u64)place[0] | (u64)place[1] << 32, (u64)place[2] | (u64)place[3] << 32};                \
        sampler_step<T>(constants, output, unguided, channels, halves, noise,                                         \
                        Batch<T>{x_t, x_start, input, values, n});                                                    \
    }
FOR_EACH_FLOAT(SAMPLER)
