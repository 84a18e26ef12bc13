// The optimizer over flat buffers: the gradient's norm, which also decides what the step does, and the step itself.
//
// Both are bound by memory. The step reads parameter, gradient, moments and averages once and writes all but the gradient,
// and the parameter once more in the format the network computes in. Gradients that a library wrote in that format are read as
// they are.
#include "optim.cuh"

constexpr double GROWTH = 2.0, BACKOFF = 0.5;
constexpr double GROWTH_INTERVAL = 2000.0;
// Below the first a gradient that is not finite is no fault of the scale; the second ends the growth.
constexpr double LEAST_LOSS_SCALE = 1.0, MOST_LOSS_SCALE = 1073741824.0;
// How much the newest norm counts for the usual one.
constexpr double NEWEST = 0.02;

__device__ __forceinline__ bool is_finite(double v) { return v - v == 0.0; }

// Whether the step may change anything, given its gradient's norm; keeps the loss scale. As StepState::judge on the CPU.
__device__ bool judge_gradient(double norm, const StepSettings *s, StepState *state) {
    if (state->diverged != 0.0) return false;
    state->norm = norm;
    const bool finite = is_finite(norm);
    if (!finite) {
        state->steady_steps = 0.0;
        if (state->scaling != 0.0 && state->loss_scale > LEAST_LOSS_SCALE) {
            state->loss_scale = fmax(state->loss_scale * BACKOFF, LEAST_LOSS_SCALE);
            state->skipped += 1.0;
            return false;
        }
    }
    const bool spike = s->spike_factor > 0.0 && state->usual_norm > 0.0 && norm > s->spike_factor * state->usual_norm &&
                       state->bad_steps < s->max_bad_steps;
    if (!finite || spike) {
        state->bad_steps += 1.0;
        if (state->bad_steps > s->max_bad_steps) state->diverged = s->step;
        else state->skipped += 1.0;
        return false;
    }
    state->bad_steps = 0.0;
    state->usual_norm += (norm - state->usual_norm) * (state->usual_norm == 0.0 ? 1.0 : NEWEST);
    state->steady_steps += 1.0;
    return true;
}

// As Factors::new on the CPU, in double until the end; the step counts only those that changed something.
__device__ void make_factors(const StepSettings *s, const StepState *state, bool apply, Factors *f) {
    double t = s->step - state->skipped;
    double clipping = s->clip > 0.0 && state->norm > s->clip ? s->clip / state->norm : 1.0;
    f->apply = apply ? 1.0f : 0.0f;
    f->beta1 = (float)s->beta1;
    f->rest1 = (float)(1.0 - s->beta1);
    f->beta2 = (float)s->beta2;
    f->rest2 = (float)(1.0 - s->beta2);
    f->gradient_scale = (float)(clipping / state->loss_scale);
    f->keep = (float)(1.0 - s->lr * s->weight_decay);
    f->step_size = (float)(s->lr / (1.0 - pow(s->beta1, t)));
    f->root_correction = (float)(1.0 / sqrt(1.0 - pow(s->beta2, t)));
    f->eps = (float)s->eps;
    for (int i = 0; i < MAX_AVERAGES; ++i) f->rests[i] = (float)(1.0 - s->decays[i]);
}

// A gradient in f32, but where `of_narrow` has a bit for them, eight neighbours of it in T.
template <typename T> struct Gradient {
    const float *wide;
    const T *narrow;
    const u32 *of_narrow; // or none

    // W neighbours from i on, all of the same eight.
    template <int W> __device__ __forceinline__ Pack<float, W> at(u64 i) const {
        if (!of_narrow || !(of_narrow[i / 256] >> (u32)(i / 8 % 32) & 1)) return load_pack<float, W>(wide + i);
        const Pack<T, W> in = load_pack<T, W>(narrow + i);
        Pack<float, W> out;
#pragma unroll
        for (int k = 0; k < W; ++k) out.v[k] = to_float(in.v[k]);
        return out;
    }
};

// The sum of squares in double: squares of f32 neither overflow nor vanish there.
template <typename T> __device__ double sum_of_squares(const Gradient<T> &g, u64 n) {
    double sum = 0.0;
    for (u64 i = 4 * global_thread(); i < n; i += 4 * global_threads()) {
        if (i + 4 <= n) {
            const Pack<float, 4> four = g.template at<4>(i);
            for (int j = 0; j < 4; ++j) sum += (double)four.v[j] * (double)four.v[j];
        } else {
            for (u64 j = i; j < n; ++j) {
                const double v = (double)g.template at<1>(j).v[0];
                sum += v * v;
            }
        }
    }
    return block_sum(sum);
}

// norm = |g|. With settings it also turns them into the step's factors: the gradient then is the loss scale's multiple of
// what norm and step mean. partials has a number per block.
template <typename T>
__device__ __forceinline__ void gradient_norm(const Gradient<T> &g, u64 n, double *partials, u32 *counter, double *norm,
                                              const StepSettings *settings, StepState *state, Factors *factors) {
    double sum = sum_of_squares(g, n);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
    if (!last_block(counter, gridDim.x)) return;
    double total = 0.0;
    for (u32 block = threadIdx.x; block < gridDim.x; block += blockDim.x) total += partials[block];
    total = sqrt(block_sum(total));
    if (threadIdx.x != 0) return;
    if (norm) *norm = total;
    if (!settings) return;
    bool apply = judge_gradient(total / state->loss_scale, settings, state);
    make_factors(settings, state, apply, factors);
    // The scale grows only now: this step's gradient still has the old one.
    if (apply && state->scaling != 0.0 && state->steady_steps >= GROWTH_INTERVAL) {
        state->loss_scale = fmin(state->loss_scale * GROWTH, MOST_LOSS_SCALE);
        state->steady_steps = 0.0;
    }
}

#define GRADIENT_NORM(T, S)                                                                                            \
    extern "C" __global__ void gradient_norm_##S(const float *g, const T *narrow, const u32 *of_narrow, u64 n,         \
                                                 double *partials, u32 *counter, double *norm,                         \
                                                 const StepSettings *settings, StepState *state, Factors *factors) {   \
        gradient_norm<T>({g, narrow, of_narrow}, n, partials, counter, norm, settings, state, factors);                \
    }
GRADIENT_NORM(bf16, bf16)
GRADIENT_NORM(f16, f16)

template <typename T> struct StepBuffers {
    float *p;
    Gradient<T> g;
    float *m, *v;
    float *averages[MAX_AVERAGES];
    T *compute;
};

// W neighbours' step.
template <typename T, int W> __device__ __forceinline__ void adamw_step(const StepBuffers<T> &b, const Factors &f, u64 i) {
    Pack<float, W> p = load_pack<float, W>(b.p + i), m = load_pack<float, W>(b.m + i), v = load_pack<float, W>(b.v + i);
    Pack<float, W> gradient = b.g.template at<W>(i);
    // Before the first store: the compiler must not move a load before one, as far as it knows they may overlap.
    Pack<float, W> averages[MAX_AVERAGES];
#pragma unroll
    for (int a = 0; a < MAX_AVERAGES; ++a)
        if (b.averages[a]) averages[a] = load_pack<float, W>(b.averages[a] + i);
    for (int j = 0; j < W; ++j) {
        float g = gradient.v[j] * f.gradient_scale;
        m.v[j] = fmaf(f.beta1, m.v[j], f.rest1 * g);
        v.v[j] = fmaf(f.beta2, v.v[j], f.rest2 * g * g);
        float root = fmaf(sqrtf(v.v[j]), f.root_correction, f.eps);
        p.v[j] = fmaf(p.v[j], f.keep, -f.step_size * m.v[j] / root);
    }
    store_pack<float, W>(b.p + i, p);
    store_pack<float, W>(b.m + i, m);
    store_pack<float, W>(b.v + i, v);
#pragma unroll
    for (int a = 0; a < MAX_AVERAGES; ++a) {
        if (!b.averages[a]) continue;
        Pack<float, W> ema = averages[a];
        for (int j = 0; j < W; ++j) ema.v[j] = fmaf(f.rests[a], p.v[j] - ema.v[j], ema.v[j]);
        store_pack<float, W>(b.averages[a] + i, ema);
    }
    if (!b.compute) return;
    Pack<T, W> rounded;
    for (int j = 0; j < W; ++j) rounded.v[j] = from_float<T>(p.v[j]);
    store_pack<T, W>(b.compute + i, rounded);
}

template <typename T> __device__ void adamw(const StepBuffers<T> &b, const Factors *factors, u64 n) {
    const Factors f = *factors;
    if (f.apply == 0.0f) return;
    for (u64 i = 4 * global_thread(); i < n; i += 4 * global_threads()) {
        if (i + 4 <= n) {
            adamw_step<T, 4>(b, f, i);
        } else {
            for (u64 j = i; j < n; ++j) adamw_step<T, 1>(b, f, j);
        }
    }
}

// Averages and the copy for computing may be left out.
#define ADAMW(T, S)                                                                                                   \
    extern "C" __global__ void adamw_##S(float *p, const float *g, const T *narrow, const u32 *of_narrow, float *m,   \
                                         float *v, float *average0, float *average1, float *average2,                 \
                                         float *average3, T *compute, const Factors *factors, u64 n) {                \
        const StepBuffers<T> buffers = {                                                                              \
            p, {g, narrow, of_narrow}, m, v, {average0, average1, average2, average3}, compute};                      \
        adamw<T>(buffers, factors, n);                                                                                \
    }
ADAMW(bf16, bf16)
ADAMW(f16, f16)
