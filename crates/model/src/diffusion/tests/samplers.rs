//! The samplers against the reference implementation, against each other, and their refusals.

use super::*;

fn ddim(eta: f64, steps: Option<usize>) -> SamplerConfig {
    SamplerConfig { sampler: SamplerKind::Ddim, steps, eta, ..Default::default() }
}

/// diffusers' full-loop test of DDIMScheduler: sum 172.0067, mean 0.223967.
#[test]
fn ddim_agrees_with_the_reference_implementation() {
    let ramp = Tensor::arange(0f32, 768.0, &Device::Cpu).unwrap();
    let ramp = (ramp / 768.0).unwrap().reshape((3, 8, 8, 4)).unwrap(); // [C, H, W, B]
    let x_t = ramp.permute((3, 1, 2, 0)).unwrap();
    let mut visited = vec![];
    let got = sample::<DiffusionError>(
        &process(|_| ()),
        &ddim(0.0, Some(10)),
        x_t,
        &mut |_| unreachable!("eta is 0"),
        &mut |x_t, t| {
            visited.push(t.index());
            let t = t.index() as f64;
            Ok((x_t * (t / (t + 1.0)))?)
        },
    );
    let got = flat(&got.unwrap());
    assert_eq!(visited, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]);
    let sum: f64 = got.iter().map(|x| x.abs()).sum();
    assert!((sum - 172.0067).abs() < 2e-3, "{sum}");
    assert!((sum / 768.0 - 0.223967).abs() < 3e-6, "{}", sum / 768.0);
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
    for sampler in [SamplerKind::Ddpm, SamplerKind::Ddim] {
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
    assert!(refusal(ddim(0.0, Some(1001))).contains("1 to 1000"));
}

#[test]
fn samplers_are_read_by_name_and_a_missing_one_says_so() {
    assert_eq!("ddim".parse::<SamplerKind>().unwrap(), SamplerKind::Ddim);
    assert_eq!(serde_json::to_value(SamplerKind::Ddpm).unwrap(), "ddpm");
    let dpm = serde_json::from_str::<SamplerKind>("\"dpm\"").unwrap_err().to_string();
    assert!(dpm.contains("does not have DPM-Solver++ yet"), "{dpm}");
    assert!("euler".parse::<SamplerKind>().unwrap_err().to_string().contains("expected ddpm or ddim"));
}
