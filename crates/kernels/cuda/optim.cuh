// What a step's settings, state and factors look like in device memory: the mirror of src/optim/judged.rs.
#pragma once
#include "common.cuh"

constexpr int MAX_AVERAGES = 4;

// Uploaded before every step.
struct StepSettings {
    double lr, beta1, beta2, eps, weight_decay;
    double clip; // largest norm of the gradient; 0: no clipping
    double step; // from 1, of steps tried
    double max_bad_steps; // so many bad steps in a row are skipped
    double spike_factor;  // a norm of more than so many times the usual one is bad; 0: none is
    double decays[MAX_AVERAGES];
};

// Goes on from step to step; only kernels write it.
struct StepState {
    double loss_scale;   // what the loss was multiplied by
    double scaling;      // whether the loss scale is dynamic
    double steady_steps; // since the scale changed
    double skipped;      // steps that changed nothing
    double diverged;     // the step that was one bad step too many, 0: none; no step changes anything any more
    double norm;         // of the last gradient, before clipping
    double bad_steps;    // in a row
    double usual_norm;   // moving average over the steps that changed something
};

// What the update of a single number needs.
struct Factors {
    float apply; // 0: change nothing
    float beta1, rest1, beta2, rest2;
    float gradient_scale, keep, step_size, root_correction, eps;
    float rests[MAX_AVERAGES]; // 1 - decay
};
