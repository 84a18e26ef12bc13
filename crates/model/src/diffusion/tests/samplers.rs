//! The samplers against the reference implementation, against each other, and their refusals.

use super::*;

fn ddim(eta: f64, steps: Option<usize>) -> SamplerConfig {
    SamplerConfig { sampler: SamplerKind::Ddim, steps, eta, ..Default::default() }
}

/// The input of diffusers' full-loop tests: a ramp of 768 values, `[C, H, W, B]` there.
fn ramp() -> Tensor {
    let ramp = Tensor::arange(0f32, 768.0, &Device::Cpu).unwrap();
    let ramp = (ramp / 768.0).unwrap().reshape((3, 8, 8, 4)).unwrap();
    ramp.permute((3, 1, 2, 0)).unwrap()
}

/// The network of those tests, `x t / (t + 1)`: the visited timesteps, and the sum over the absolute result.
fn full_loop(p: &DiffusionProcess, config: &SamplerConfig) -> (Vec<usize>, f64) {
    let mut visited = vec![];
    let mut denoise = |x_t: &Tensor, t: Timestep| {
        visited.push(t.index());
        let t = t.index() as f64;
        Ok((x_t * (t / (t + 1.0)))?)
    };
    let got = sample::<DiffusionError>(p, config, ramp(), &mut |_| unreachable!("no noise"), &mut denoise);
    let sum = flat(&got.unwrap()).iter().map(|x| x.abs()).sum();
    (visited, sum)
}

/// diffusers' full-loop test of DDIMScheduler: sum 172.0067, mean 0.223967.
#[test]
fn ddim_agrees_with_the_reference_implementation() {
    let (visited, sum) = full_loop(&process(|_| ()), &ddim(0.0, Some(10)));
    assert_eq!(visited, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]);
    assert!((sum - 172.0067).abs() < 2e-3, "{sum}");
    assert!((sum / 768.0 - 0.223967).abs() < 3e-6, "{}", sum / 768.0);
}

/// diffusers 0.42.1's DDIMScheduler in float64, ten steps from `4 ramp - 2` with the network `0.7 tanh(x)` and that start as the noise:
/// the sums over the absolute and the squared result.
#[test]
fn ddim_from_the_clamped_x_start_agrees_with_the_reference_implementation() {
    for (use_clipped_model_output, eta, absolute, squared) in [
        (false, 0.0, 424.4981100781567, 251.4756444272365),
        (true, 0.0, 672.2806387337989, 636.2397646032042),
        (false, 0.5, 722.8379489847878, 706.8565346838537),
        (true, 0.5, 727.8041291486952, 714.6866317248634),
    ] {
        let config = SamplerConfig { use_clipped_model_output, ..ddim(eta, Some(10)) };
        let start = ramp().affine(4.0, -2.0).unwrap();
        let mut denoise = |x_t: &Tensor, _| Ok((x_t.tanh()? * 0.7)?);
        let got = sample::<DiffusionError>(
            &process(|_| ()),
            &config,
            start.clone(),
            &mut |_| Ok(start.clone()),
            &mut denoise,
        );
        let got = flat(&got.unwrap());
        let sums = [got.iter().map(|x| x.abs()).sum::<f64>(), got.iter().map(|x| x * x).sum()];
        assert_close(&sums, &[absolute, squared], 1e-6);
    }
}

/// Where eps is what x_t and x_0 leave for it, clamped or not, both ways are one.
#[test]
fn the_clamped_x_start_changes_nothing_where_nothing_is_clamped_or_x_start_is_predicted() {
    for (clip_sample, prediction_type) in
        [(false, PredictionType::Epsilon), (false, PredictionType::VPrediction), (true, PredictionType::Sample)]
    {
        let p = process(|c| (c.clip_sample, c.prediction_type) = (clip_sample, prediction_type));
        let images = [false, true].map(|use_clipped_model_output| {
            let config = SamplerConfig { use_clipped_model_output, ..ddim(0.0, Some(10)) };
            let denoise = &mut |x_t: &Tensor, _| Ok((x_t.tanh()? * 0.7)?);
            let x_t = normal(&[2, 3, 3, 1], 0);
            flat(&sample::<DiffusionError>(&p, &config, x_t, &mut |_| unreachable!("eta is 0"), denoise).unwrap())
        });
        assert_close(&images[1], &images[0], 1e-5);
    }
}

/// The same loop through diffusers 0.42.1's DPMSolverMultistepScheduler in float64 (algorithm_type "dpmsolver++",
/// solver_order 2, timestep_spacing "trailing", final_sigmas_type "zero"), which does not clamp.
#[test]
fn dpm_agrees_with_the_reference_implementation() {
    let p = process(|c| c.clip_sample = false);
    for (steps, want) in [(10, 185.26483995157267), (20, 194.82936112913217)] {
        let spacing = SamplerKind::Dpm.default_spacing();
        let config = SamplerConfig { sampler: SamplerKind::Dpm, steps: Some(steps), spacing, ..Default::default() };
        let (visited, sum) = full_loop(&p, &config);
        assert_eq!((visited[0], visited[steps - 1]), (999, 1000 / steps - 1));
        assert!((sum - want).abs() < 2e-3, "{steps} steps: {sum}, want {want}");
    }
}

/// Song et al. 2020, section 4.1: at eta = 1 DDIM is the ancestral sampler with the posterior's variance.
#[test]
fn ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance() {
    let p = process(|c| (c.clip_sample, c.num_train_timesteps) = (false, 100));
    let dims = [2, 3, 3, 1];
    let run = |config: &SamplerConfig| {
        let mut noise_steps = vec![];
        let images = sample::<DiffusionError>(
            &p,
            config,
            normal(&dims, 0),
            &mut |step| {
                noise_steps.push(step);
                Ok(normal(&dims, 1 + step as u64))
            },
            &mut |x_t, _| Ok((x_t * 0.8)?.tanh()?),
        );
        (flat(&images.unwrap()), noise_steps)
    };
    let (ancestral, noise_steps) = run(&SamplerConfig { steps: Some(20), ..Default::default() });
    assert_eq!(noise_steps, (0..19).collect::<Vec<_>>(), "noise at every step but the last");
    assert_close(&run(&ddim(1.0, Some(20))).0, &ancestral, 2e-4);
}

#[test]
fn clipping_keeps_the_images_in_range() {
    for sampler in [SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Dpm] {
        let config = SamplerConfig { sampler, steps: Some(5), ..Default::default() };
        let run = |clip_sample| {
            let p = process(|c| (c.clip_sample, c.prediction_type) = (clip_sample, PredictionType::Sample));
            let x_t = normal(&[1, 4, 4, 1], 0);
            let images = sample::<DiffusionError>(&p, &config, x_t.clone(), &mut |_| Ok(x_t.clone()), &mut |x_t, _| {
                Ok((x_t.ones_like()? * 3.0)?)
            });
            flat(&images.unwrap())
        };
        assert_close(&run(true), &[1.0; 16], 1e-6);
        assert_close(&run(false), &[3.0; 16], 1e-6);
    }
}

#[test]
fn an_error_of_the_network_ends_sampling_with_that_error() {
    let mut steps = 0;
    let got = sample::<DiffusionError>(
        &process(|_| ()),
        &ddim(0.0, Some(10)),
        normal(&[1, 2, 2, 1], 0),
        &mut |_| unreachable!("eta is 0"),
        &mut |x_t, _| {
            steps += 1;
            if steps == 3 { Err(candle_core::Error::Msg("out of memory".into()).into()) } else { Ok(x_t.clone()) }
        },
    );
    assert_eq!(got.unwrap_err().to_string(), "out of memory");
    assert_eq!(steps, 3);
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let refusal = |config: SamplerConfig| config.kept_timesteps(1000).unwrap_err().to_string();
    assert_eq!(refusal(ddim(1.5, None)), "eta = 1.5: expected a number from 0 to 1");
    assert!(refusal(ddim(f64::NAN, None)).contains("eta"));
    assert!(refusal(SamplerConfig { eta: 0.5, ..Default::default() }).contains("eta = 0.5: expected 0 with the ddpm"));
    let dpm = SamplerConfig { sampler: SamplerKind::Dpm, ..ddim(0.5, None) };
    assert!(refusal(dpm).contains("expected 0 with the dpm sampler, which adds no noise"));
    let clipped = SamplerConfig { use_clipped_model_output: true, ..Default::default() };
    assert!(refusal(clipped).contains("use_clipped_model_output = true: expected false with the ddpm sampler"));
    assert!(refusal(ddim(0.0, Some(1001))).contains("1 to 1000"));
}

#[test]
fn samplers_are_read_by_name() {
    for (name, kind) in [("ddpm", SamplerKind::Ddpm), ("ddim", SamplerKind::Ddim), ("dpm", SamplerKind::Dpm)] {
        assert_eq!(name.parse::<SamplerKind>().unwrap(), kind);
        assert_eq!(serde_json::to_value(kind).unwrap(), name);
    }
    assert!("euler".parse::<SamplerKind>().unwrap_err().to_string().contains("expected ddpm, ddim or dpm"));
}

/// One step of second order is the first-order one: with one prediction alone DPM-Solver++ is deterministic DDIM.
#[test]
fn the_first_step_of_dpm_is_that_of_ddim() {
    let p = process(|c| c.clip_sample = false);
    let after_one_step = |sampler| {
        let config = SamplerConfig { sampler, steps: Some(5), ..Default::default() };
        let mut seen = vec![];
        let denoise = &mut |x_t: &Tensor, _| {
            seen.push(x_t.clone());
            Ok((x_t * 0.3)?)
        };
        sample::<DiffusionError>(&p, &config, normal(&[2, 3, 3, 1], 0), &mut |_| unreachable!(), denoise).unwrap();
        flat(&seen[1])
    };
    assert_close(&after_one_step(SamplerKind::Dpm), &after_one_step(SamplerKind::Ddim), 1e-5);
}

#[test]
fn an_onlooker_sees_every_predicted_image_and_the_last_is_the_result() {
    for sampler in [SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Dpm] {
        let config = SamplerConfig { sampler, steps: Some(4), ..Default::default() };
        let x_t = normal(&[1, 4, 4, 1], 0);
        let mut seen = vec![];
        let images = sample_observed::<DiffusionError>(
            &process(|_| ()),
            &config,
            x_t.clone(),
            &mut |_| Ok(x_t.clone()),
            &mut |x_t, _| Ok((x_t * 0.5)?),
            &mut |t, x_start| {
                seen.push((t.index(), flat(x_start)));
                Ok(())
            },
        );
        assert_eq!(seen.iter().map(|(t, _)| *t).collect::<Vec<_>>(), [750, 500, 250, 0]);
        assert!(seen.iter().flat_map(|(_, x)| x).all(|x| (-1.0..=1.0).contains(x)), "{sampler}: not clamped");
        assert_close(&flat(&images.unwrap()), &seen[3].1, 1e-5);
    }
}

/// Inverts and draws again; each refinement brings the latent nearer to the one that gives the image exactly.
#[test]
fn an_inversion_leads_back_to_its_image() {
    let p = process(|c| c.clip_sample = false);
    let mut denoise = |x_t: &Tensor, t: Timestep| Ok((x_t.tanh()? * (0.5 + t.index() as f64 / 2000.0))?);
    let x_start = (normal(&[2, 4, 4, 1], 0) * 0.5).unwrap();
    let errors = [0, 1, 4].map(|refinements| {
        let config = ddim(0.0, Some(20));
        let latent = invert::<DiffusionError>(&p, &config, x_start.clone(), refinements, &mut denoise).unwrap();
        let mut no_noise = |_| unreachable!("eta is 0");
        let back = sample::<DiffusionError>(&p, &config, latent, &mut no_noise, &mut denoise).unwrap();
        flat(&back).iter().zip(flat(&x_start)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    });
    assert!(errors[0] < 1.0 && errors[1] < 0.3 * errors[0] && errors[2] < 0.03 * errors[1], "{errors:?}");
}

#[test]
fn only_a_deterministic_walk_can_be_inverted() {
    for config in [ddim(0.5, Some(5)), SamplerConfig { sampler: SamplerKind::Dpm, ..ddim(0.0, Some(5)) }] {
        let x = normal(&[1, 2, 2, 1], 0);
        let refused = invert::<DiffusionError>(&process(|_| ()), &config, x, 0, &mut |x, _| Ok(x.clone()));
        assert!(refused.unwrap_err().to_string().contains("expected ddim with eta = 0"));
    }
}

#[test]
fn between_two_latents_lie_latents_of_their_length() {
    let (a, b) = (normal(&[2, 16, 16, 1], 1), normal(&[2, 16, 16, 1], 2));
    assert_close(&flat(&slerp(&a, &b, 0.0).unwrap()), &flat(&a), 1e-6);
    assert_close(&flat(&slerp(&a, &b, 1.0).unwrap()), &flat(&b), 1e-6);
    let (_, variance) = mean_and_variance(&flat(&slerp(&a, &b, 0.5).unwrap()));
    assert!((variance - 1.0).abs() < 0.15, "{variance}: a straight line would give 0.5");
    assert_close(&flat(&slerp(&a, &a, 0.3).unwrap()), &flat(&a), 1e-6);
}

#[test]
fn only_a_fixed_variance_can_be_another_one() {
    let p = process(|_| ());
    let large = p.with_fixed_variance(VarianceType::FixedLarge).unwrap();
    assert_eq!(large.config().variance_type, VarianceType::FixedLarge);
    assert!(p.with_fixed_variance(VarianceType::LearnedRange).is_err());
    let learned = process(|c| c.variance_type = VarianceType::LearnedRange);
    let refused = learned.with_fixed_variance(VarianceType::FixedSmall).unwrap_err().to_string();
    assert!(refused.starts_with("variance = fixed_small: expected"), "{refused}");
}
