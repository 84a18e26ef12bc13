//! `ddpm schedule`: the noise schedule as a table, as JSON or as a picture.

use std::path::Path;

use ddpm_data::without_query;
use ddpm_model::diffusion::{DiffusionConfig, DiffusionProcess, Schedule, Spacing, Timestep};
use ddpm_train::config::{MAX_TERMINAL_SIGNAL, Resolved, Setting, TrainConfig};
use ddpm_train::eval::images::{EvalImages, Selection};
use ddpm_train::eval::noising::{self, Noising, ValueStatistics};
use ddpm_train::exchange::{Folder, is_diffusers_folder, locate};
use ddpm_train::report::pictures;
use serde::Serialize;
use serde_json::{Value, json};

use super::args::ScheduleArgs;
use super::places::{Kind, Place, prepare};
use super::schedule_plot::plot;
use super::{Align, Output, Table};
use crate::failure::{ExitCode, Failure};

/// Rows of the table; a schedule of more steps is shown at that many, evenly spread.
const ROWS: usize = 21;
/// The default number of images to noise; at 32x32 they have a million values or more.
const IMAGES: usize = 1000;

/// The document of `schedule`.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    tables: Value,
    #[serde(flatten)]
    noising: Option<&'a Noising>,
}

/// Shows the schedule of a configuration, respaced if steps are given; noises images, if any are given, with the schedule of
/// the training.
pub(super) fn run(args: &ScheduleArgs, output: &Output) -> Result<(), Failure> {
    let config = config_of(&args.config, &args.set)?;
    let trained = Schedule::new(&config.diffusion)?;
    let spacing = args.spacing.clone().unwrap_or_default();
    let kept = spacing.kept_timesteps(args.steps, trained.len())?;
    let visited = trained.respaced(&kept)?;
    let plot_place = args.plot.as_deref().map(|path| Place { option: "--plot", path, kind: Kind::Png });
    let data = args.data.as_deref().unwrap_or(&config.data.source);
    plot_place.map_or(Ok(()), |place| place.refuse_inside(Path::new(data)))?;
    prepare(&plot_place.into_iter().collect::<Vec<_>>())?;
    let noising = args.data.as_deref().map(|source| noise(source, args, &config, output)).transpose()?;
    if let Some(path) = &args.plot {
        let page = plot(&trained, (kept.len() < trained.len()).then_some(&kept))?;
        pictures::write(path, &pictures::encode(&page)?)?;
    }
    let document = Document { tables: tables(&visited, &kept), noising: noising.as_ref() };
    output.result(&document, || {
        let heading = heading(&config.diffusion, &kept, &spacing);
        let mut text = format!("{heading}\n\n{}\n{}", table(&visited, &kept), ending(&trained));
        if let (Some(source), Some(noising)) = (&args.data, &noising) {
            text += &format!("\n\n{}", noising_text(noising, source, &trained));
        }
        if let Some(path) = &args.plot {
            text += &format!("\nplot: {}", path.display());
        }
        text
    })
}

/// Noises the images of `source`.
fn noise(source: &str, args: &ScheduleArgs, config: &TrainConfig, output: &Output) -> Result<Noising, Failure> {
    let process = DiffusionProcess::new(&config.diffusion)?;
    let timesteps = noising::timesteps(process.schedule(), &args.at)?;
    let selection = Selection { source, split: args.split.as_deref(), num: args.num, seed: args.seed };
    let wanted = EvalImages::open(&selection, config)?.without_labels().at_most(args.num.unwrap_or(IMAGES));
    let count = wanted.len();
    let images = noising::affordable(wanted);
    if images.len() < count {
        let (fewer, values) = (images.len(), images.image_len());
        tracing::warn!("{fewer} images are noised instead of {count}, to save memory: each has {values} values");
    }
    let mut counter = output.counter(timesteps.len(), "timesteps");
    Ok(noising::measure(&process, &images, &timesteps, args.seed, &mut |done| counter.set(done as u64, ""))?)
}

fn tables(visited: &Schedule, kept: &[Timestep]) -> Value {
    json!({
        "timesteps": kept.iter().map(|t| t.index()).collect::<Vec<_>>(),
        "betas": visited.betas(),
        "alphas_cumprod": visited.alphas_cumprod(),
        "snr": visited.snr(),
        "posterior_variance": visited.posterior_variance(),
        "posterior_log_variance_clipped": visited.posterior_log_variance_clipped(),
        "posterior_mean_coef1": visited.posterior_mean_coef1(),
        "posterior_mean_coef2": visited.posterior_mean_coef2(),
    })
}

/// The settings of a config file with the environment, or those of a run directory, a checkpoint in one, or a diffusers folder.
fn config_of(named: &Path, settings: &[Setting]) -> Result<TrainConfig, Failure> {
    let path = &locate(named)?.path;
    if path.is_dir() && !settings.is_empty() {
        let message = format!("--set: {} is a trained model, whose schedule is what it is", named.display());
        return Err(Failure::new(ExitCode::Usage, message).hint("name a configuration (TOML) to try other settings"));
    }
    if is_diffusers_folder(path) {
        return Ok(Folder::read(path)?.config);
    }
    let of_checkpoint = path.join("../../config.toml");
    let resolved = if !path.is_dir() {
        Resolved::load(path, settings)?
    } else if !path.join("config.toml").is_file() && of_checkpoint.is_file() {
        Resolved::load_file(&of_checkpoint)?
    } else {
        Resolved::load_file(path)?
    };
    Ok(resolved.config)
}

fn heading(diffusion: &DiffusionConfig, kept: &[Timestep], spacing: &Spacing) -> String {
    let (schedule, all) = (json!(diffusion.beta_schedule), diffusion.num_train_timesteps);
    let name = schedule.as_str().unwrap_or_default();
    let steps = if kept.len() == all { "all visited".to_owned() } else { format!("{} visited, {spacing}", kept.len()) };
    format!("{name}, {all} timesteps, {steps}")
}

fn table(schedule: &Schedule, kept: &[Timestep]) -> String {
    let mut table = Table::new(&[Align::Right; 7]);
    table.row(&[&"t", &"beta", &"alpha_bar", &"image", &"noise", &"SNR", &"post. var."]);
    for row in spread(kept.len()) {
        let bar = schedule.alphas_cumprod()[row];
        table.row(&[
            &kept[row],
            &scientific(schedule.betas()[row]),
            &scientific(bar),
            &format!("{:.4}", bar.sqrt()),
            &format!("{:.4}", (1.0 - bar).sqrt()),
            &scientific(schedule.snr()[row]),
            &scientific(schedule.posterior_variance()[row]),
        ]);
    }
    table.render()
}

/// Up to [`ROWS`] of `0..count`, both ends included.
fn spread(count: usize) -> Vec<usize> {
    let rows = count.min(ROWS);
    (0..rows).map(|row| row * (count - 1) / (rows - 1).max(1)).collect()
}

/// Four digits and an exponent, always of the same width: `1.000e-04`.
fn scientific(value: f64) -> String {
    let text = format!("{value:.3e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

fn ending(trained: &Schedule) -> String {
    let signal = trained.terminal_signal();
    let percent = 100.0 * signal;
    format!(
        "x_T holds {percent:.2} % of the image (sqrt(alpha_bar_T) = {signal:.4}; at most {MAX_TERMINAL_SIGNAL} is usual)"
    )
}

/// The table of the noised images, and the verdict on T.
fn noising_text(noising: &Noising, source: &str, trained: &Schedule) -> String {
    let mut table = Table::new(&[Align::Right; 6]);
    table.row(&[&"t", &"image", &"mean", &"variance", &"neighbour corr.", &"KS distance"]);
    let mut row = |t: &dyn ToString, alpha_bar: f64, values: &ValueStatistics| {
        let decimals = |value: f64| format!("{value:.4}");
        let correlation = values.neighbour_correlation.map_or_else(|| "-".to_owned(), decimals);
        let [signal, mean, variance, distance] =
            [alpha_bar.sqrt(), values.mean, values.variance, values.ks_distance].map(decimals);
        table.row(&[t, &signal, &mean, &variance, &correlation, &distance]);
    };
    row(&"x_0", 1.0, &noising.images_statistics);
    for noised in &noising.noised {
        row(&noised.t, trained.alphas_cumprod()[noised.t], &noised.values);
    }
    let verdict = verdict(noising, trained.len());
    let source = without_query(source);
    format!("x_t of {} images of {source}, beside N(0, 1)\n\n{}\n{verdict}", noising.images, table.render())
}

fn verdict(noising: &Noising, timesteps: usize) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
    for condition in &noising.conditions {
        let (value, relation) = (condition.value, if condition.holds() { "at most" } else { "above" });
        let limit = format!("{relation} {:.5}", condition.limit);
        table.row(&[&format!("  {}", condition.quantity), &format!("{value:.5}"), &limit]);
    }
    let numbers = table.render();
    let numbers = numbers.trim_end();
    if noising.large_enough {
        format!("T = {timesteps} is large enough: x_T is as good as pure noise, with which sampling begins\n{numbers}")
    } else {
        format!(
            "T = {timesteps} is not large enough: sampling begins with pure noise, but x_T is not that\n{numbers}\n\
             raise diffusion.num_train_timesteps or diffusion.beta_end, or set diffusion.beta_schedule = \
             \"squaredcos_cap_v2\", which ends in noise whatever T is"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_schedule_is_shown_from_end_to_end() {
        assert_eq!(spread(1000).len(), ROWS);
        assert_eq!((spread(1000)[0], spread(1000)[ROWS - 1]), (0, 999));
        assert_eq!(spread(3), [0, 1, 2]);
        assert_eq!(spread(1), [0]);
    }

    #[test]
    fn numbers_have_one_width() {
        assert_eq!(scientific(1e-4), "1.000e-04");
        assert_eq!(scientific(9999.0), "9.999e+03");
        assert_eq!(scientific(0.0), "0.000e+00");
    }
}
