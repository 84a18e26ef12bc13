//! `ddpm schedule`: every table, whole and respaced, against the formulas of the papers, computed here once more; and the
//! verdict on T for real images.
#![allow(clippy::unwrap_used)]

use ddpm_tests::{Place, assert_fields, fresh_run};
use serde_json::Value;

const T: usize = 200;
const ENDS: (f64, f64) = (2e-4, 0.05);

fn betas(schedule: &str) -> Vec<f64> {
    let (start, end) = ENDS;
    let at = |from: f64, to: f64, i: usize| from + (to - from) * i as f64 / (T - 1) as f64;
    let cosine = |i: usize| ((i as f64 / T as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let beta = |i: usize| match schedule {
        "linear" => at(start, end, i),
        "scaled_linear" => at(start.sqrt(), end.sqrt(), i).powi(2),
        "squaredcos_cap_v2" => (1.0 - cosine(i + 1) / cosine(i)).min(0.999),
        _ => start + (end - start) / (1.0 + (-at(-6.0, 6.0, i)).exp()),
    };
    (0..T).map(beta).collect()
}

/// The tables as they are defined, from betas alone.
fn tables(betas: &[f64]) -> Vec<(&'static str, Vec<f64>)> {
    let mut bars = Vec::new();
    for beta in betas {
        bars.push(bars.last().copied().unwrap_or(1.0) * (1.0 - beta));
    }
    let all = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
        (0..betas.len()).map(|t| f(betas[t], bars[t], if t == 0 { 1.0 } else { bars[t - 1] })).collect()
    };
    let variance = all(&|beta, bar, prev| beta * (1.0 - prev) / (1.0 - bar));
    let clipped = variance.iter().enumerate().map(|(t, v)| if t == 0 { variance[1].ln() } else { v.ln() }).collect();
    vec![
        ("snr", all(&|_, bar, _| bar / (1.0 - bar))),
        ("posterior_log_variance_clipped", clipped),
        ("posterior_mean_coef1", all(&|beta, bar, prev| prev.sqrt() * beta / (1.0 - bar))),
        ("posterior_mean_coef2", all(&|beta, bar, prev| (1.0 - beta).sqrt() * (1.0 - prev) / (1.0 - bar))),
        ("posterior_variance", variance),
        ("alphas_cumprod", bars),
        ("betas", betas.to_vec()),
    ]
}

#[track_caller]
fn assert_tables(what: &str, document: &Value, betas: &[f64]) {
    for (name, want) in tables(betas) {
        let got: Vec<f64> = document[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(got.len(), want.len(), "{what}: {name}");
        for (t, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 1e-12 * want.abs().max(1e-3), "{what}: {name}[{t}] = {got:e}, want {want:e}");
        }
    }
}

fn schedule(place: &Place, name: &str, options: &str) -> Value {
    let timesteps = T.to_string();
    let ends = [ENDS.0.to_string(), ENDS.1.to_string()];
    place
        .ddpm(&format!("schedule tiny.toml {options}"))
        .env("DDPM_DIFFUSION__BETA_SCHEDULE", name)
        .env("DDPM_DIFFUSION__NUM_TRAIN_TIMESTEPS", &timesteps)
        .env("DDPM_DIFFUSION__BETA_START", &ends[0])
        .env("DDPM_DIFFUSION__BETA_END", &ends[1])
        .json()
}

#[test]
fn all_tables_of_all_schedules_are_those_of_the_formulas_whole_and_respaced() {
    let place = fresh_run(&[]);
    for name in ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] {
        let whole = betas(name);
        assert_tables(name, &schedule(&place, name, ""), &whole);
        let bars = tables(&whole).into_iter().find(|(name, _)| *name == "alphas_cumprod").unwrap().1;
        for options in [
            "--steps 10",
            "--steps 7 --spacing trailing",
            "--steps 9 --spacing linspace",
            "--spacing 5,10",
            "--spacing ddim25",
        ] {
            let respaced = schedule(&place, name, options);
            let kept: Vec<usize> =
                respaced["timesteps"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as usize).collect();
            let before = |i: usize| if i == 0 { 1.0 } else { bars[kept[i - 1]] };
            let betas: Vec<f64> = kept.iter().enumerate().map(|(i, &t)| 1.0 - bars[t] / before(i)).collect();
            assert_tables(&format!("{name} {options}"), &respaced, &betas);
        }
    }
}

#[test]
fn schedule_noises_real_images_and_says_whether_t_is_large_enough() {
    let place = fresh_run(&[]);
    let schedule = |options: &str| place.ddpm(&format!("schedule tiny.toml {options}"));
    let of_fashion = schedule("--data builtin:fashion10k --num 64");
    let document = of_fashion.json();
    assert_fields(&document, "betas, noised, images_statistics, prior_bits_per_dim, conditions, large_enough, images");
    assert_eq!((&document["images"], &document["large_enough"]), (&64.into(), &true.into()));
    let noised = document["noised"].as_array().unwrap();
    let timesteps: Vec<_> = noised.iter().map(|row| row["t"].as_u64().unwrap()).collect();
    assert_eq!(timesteps, [0, 10, 20, 50, 100, 250, 500, 750, 999]);
    for row in noised.iter().chain([&document["images_statistics"]]) {
        assert_fields(row, "mean, variance, neighbour_correlation, ks_distance");
    }
    // Images are smooth and far from normal; noise is neither.
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    for (key, limit) in [("neighbour_correlation", 0.5), ("ks_distance", 0.1)] {
        assert!(number(&document["images_statistics"], key) > limit && number(&noised[8], key) < limit / 5.0, "{key}");
    }
    of_fashion.succeeds().stdout_has("neighbour corr.").stdout_has("T = 1000 is large enough");

    let short = of_fashion.env("DDPM_DIFFUSION__NUM_TRAIN_TIMESTEPS", "50");
    assert_eq!(short.json()["large_enough"], false);
    short.succeeds().stdout_has("T = 50 is not large enough").stdout_has("raise diffusion.num_train_timesteps");

    // Only pixels matter: labels beyond the model's classes are ignored.
    let few = schedule("--data builtin:fashion10k --num 4 --at 5,3,5 --steps 10");
    let few = few.env("DDPM_MODEL__NUM_CLASS_EMBEDS", "3").json();
    let timesteps: Vec<_> = few["noised"].as_array().unwrap().iter().map(|row| row["t"].as_u64().unwrap()).collect();
    assert_eq!(timesteps, [3, 5, 999], "the last always, and of the schedule of the training");

    assert_eq!(schedule("").json()["noised"], Value::Null);
    schedule("--data builtin:fashion10k --at 1000").fails_with(2).stderr_has("--at 1000").stderr_has("0 to 999");
    schedule("--data builtin:fashion10k --num 0").fails_with(2).stderr_has("1 or more");
    schedule("--data builtin:fashion10k --num 20000").fails_with(2).stderr_has("10000");
    schedule("--num 5").fails_with(2).stderr_has("--data");
    schedule("--data nowhere").fails_with(3).stderr_has("nowhere");
}

#[test]
fn settings_are_tried_on_a_configuration_and_not_on_a_model() {
    let run = ddpm_tests::trained_run(&["train.steps=1", "sample.every=0"]);
    let shown = run.ddpm("schedule tiny.toml --set diffusion.num_train_timesteps=20").json();
    assert_eq!(shown["alphas_cumprod"].as_array().map(Vec::len), Some(20));
    run.ddpm("schedule runs/tiny --set diffusion.num_train_timesteps=20")
        .fails_with(2)
        .stderr_has("--set: runs/tiny is a trained model");
}
