//! `ddpm schedule`: the noise schedule as a table, as JSON or as a picture.

use std::path::Path;

use ddpm_model::diffusion::{Schedule, Timestep};
use serde_json::json;

use super::args::ScheduleArgs;
use super::schedule_plot::plot;
use super::{Align, Output, Table};
use crate::config::{ConfigError, Resolved};
use crate::error::Failure;
use crate::report::pictures;

/// Rows of the table; a schedule of more steps is shown at that many, evenly spread.
const ROWS: usize = 21;

/// Shows the schedule of a configuration, respaced where steps are asked for.
pub(super) fn run(args: &ScheduleArgs, output: &Output) -> Result<(), Failure> {
    let config = config_of(&args.config)?.config;
    let trained = Schedule::new(&config.diffusion)?;
    let spacing = args.spacing.clone().unwrap_or_default();
    let kept = spacing.kept_timesteps(args.steps, trained.len())?;
    let visited = trained.respaced(&kept)?;
    if let Some(path) = &args.plot {
        let page = plot(&trained, (kept.len() < trained.len()).then_some(&kept))?;
        pictures::write(path, &pictures::encode(&page)?)?;
    }
    let timesteps: Vec<usize> = kept.iter().map(|t| t.index()).collect();
    let document = json!({
        "timesteps": timesteps,
        "betas": visited.betas(),
        "alphas_cumprod": visited.alphas_cumprod(),
        "snr": visited.snr(),
        "posterior_variance": visited.posterior_variance(),
        "posterior_log_variance_clipped": visited.posterior_log_variance_clipped(),
        "posterior_mean_coef1": visited.posterior_mean_coef1(),
        "posterior_mean_coef2": visited.posterior_mean_coef2(),
    });
    output.result(&document, || {
        let diffusion = &config.diffusion;
        let schedule = json!(diffusion.beta_schedule);
        let name = schedule.as_str().unwrap_or_default();
        let steps = match kept.len() {
            all if all == trained.len() => "all visited".to_owned(),
            some => format!("{some} visited, {spacing}"),
        };
        let plotted = args.plot.as_deref().map_or_else(String::new, |path| format!("\nplot: {}", path.display()));
        format!(
            "{name}, {} timesteps, {steps}\n\n{}\n{}{plotted}",
            trained.len(),
            table(&visited, &kept),
            ending(&trained)
        )
    })
}

/// A config file, with the environment over it; or what a run directory, or a checkpoint in one, was trained with.
fn config_of(path: &Path) -> Result<Resolved, ConfigError> {
    let of_checkpoint = path.join("../../config.toml");
    if !path.is_dir() {
        Resolved::load(path, &[])
    } else if !path.join("config.toml").is_file() && of_checkpoint.is_file() {
        Resolved::load_file(&of_checkpoint)
    } else {
        Resolved::load_file(path)
    }
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

/// Four digits and an exponent, of one width: `1.000e-04`.
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
    format!("x_T holds {:.2} % of the image (sqrt(alpha_bar_T) = {signal:.4}; at most 0.05 is usual)", 100.0 * signal)
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
