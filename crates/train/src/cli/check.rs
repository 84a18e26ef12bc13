//! `ddpm config check`: what a run would need, before it begins.

use std::time::Duration;

use ddpm_model::params::ParamLayout;
use ddpm_model::unet::UNet;
use serde::Serialize;

use super::args::CheckArgs;
use super::{Align, Output, Table};
use crate::config::{Cadence, Resolved, TrainPlan, Warning};
use crate::error::Failure;
use crate::memory::format_bytes;
use crate::report::progress::format_duration;
use crate::training::measure::{StepMeasurement, measure_step};

/// Steps to measure, after two to warm up: some seconds at most for a model this machine can train.
const MEASURED_STEPS: usize = 3;
/// Bytes of a line of `metrics.jsonl` with its TensorBoard events, and of a picture; rough, and small beside the rest.
const LOG_LINE_BYTES: u64 = 1500;
const PICTURE_BYTES: u64 = 500_000;

/// The document of `config check`.
#[derive(Debug, Serialize)]
struct Needs<'a> {
    /// Numbers that training changes.
    parameters: u64,
    /// Named tensors in a file.
    tensors: usize,
    /// The most memory that a step takes, where the system tells it.
    memory_bytes: Option<u64>,
    /// One checkpoint.
    checkpoint_bytes: u64,
    /// All that a finished run leaves, and one checkpoint that is being replaced.
    disk_bytes: u64,
    /// Median of some real steps.
    step_ms: f64,
    /// All steps of the run; pictures and checkpoints come on top.
    eta_s: f64,
    /// Images of the source.
    images: usize,
    /// How often each image is seen.
    epochs: f64,
    warnings: &'a [Warning],
}

/// Checks a configuration and says what a run would need.
pub(super) fn check(args: &CheckArgs, output: &Output) -> Result<(), Failure> {
    let plan = TrainPlan::new(&Resolved::load(&args.config, &args.set)?)?;
    let source = ddpm_data::open(&plan.config().data.source, &plan.open_options())?;
    let unet = UNet::new(&plan.config().model)?;
    output.detail("measuring a few steps");
    let step = measure_step(&plan, MEASURED_STEPS)?;
    let needs = needs(&plan, unet.layout(), source.len(), &step);
    output.result(&needs, || text(&plan, &needs))
}

fn needs<'a>(plan: &'a TrainPlan, layout: &ParamLayout, images: usize, step: &StepMeasurement) -> Needs<'a> {
    let config = plan.config();
    let parameters = layout.len() as u64;
    // Weights, both moments, and each average, in f32.
    let checkpoint_bytes = parameters * 4 * (3 + config.train.ema_decays.len() as u64);
    let steps = config.train.steps;
    let lines = plan.log_cadence().count(steps).saturating_mul(LOG_LINE_BYTES);
    let pictures = plan.sample_cadence().count(steps).saturating_add(1).saturating_mul(PICTURE_BYTES);
    let checkpoints = checkpoint_bytes.saturating_mul(checkpoints_at_once(plan));
    Needs {
        parameters,
        tensors: layout.specs().iter().map(|spec| spec.file_shapes().len()).sum(),
        memory_bytes: step.peak_bytes,
        checkpoint_bytes,
        disk_bytes: checkpoints.saturating_add(lines).saturating_add(pictures),
        step_ms: step.median_ms,
        eta_s: steps as f64 * step.median_ms / 1e3,
        images,
        epochs: steps as f64 * config.train.batch_size as f64 / images as f64,
        warnings: plan.warnings(),
    }
}

/// The most checkpoints that exist at once: an old one goes only after a newer one was verified.
fn checkpoints_at_once(plan: &TrainPlan) -> u64 {
    let (checkpoint, steps) = (&plan.config().checkpoint, plan.config().train.steps);
    let written = plan.checkpoint_cadence().count(steps).saturating_add(1);
    let kept_for_good = Cadence::new(checkpoint.keep_every).count(steps);
    written.min(kept_for_good.saturating_add(checkpoint.keep_last as u64).saturating_add(1))
}

fn text(plan: &TrainPlan, needs: &Needs<'_>) -> String {
    let config = plan.config();
    let mut table = Table::new(&[Align::Left, Align::Left]);
    table
        .row(&[&"images", &format!("{} of {}, each seen {:.1} times", needs.images, config.data.source, needs.epochs)]);
    table.row(&[&"parameters", &format!("{} in {} tensors", grouped(needs.parameters), needs.tensors)]);
    if let Some(memory) = needs.memory_bytes {
        table.row(&[&"memory", &format_bytes(memory)]);
    }
    let seconds = Duration::try_from_secs_f64(needs.eta_s).unwrap_or(Duration::MAX);
    let steps = config.train.steps;
    table.row(&[&"time", &format!("{} for {steps} steps of {:.0} ms", format_duration(seconds), needs.step_ms)]);
    table.row(&[&"checkpoint", &format_bytes(needs.checkpoint_bytes)]);
    table.row(&[&"disk", &format!("{} in {}", format_bytes(needs.disk_bytes), config.run.dir)]);
    let mut text = format!("{}: a run can start\n\n{}", plan.path().display(), table.render());
    for Warning { key, message } in needs.warnings {
        text += &format!("\nwarning: {key}: {message}\n");
    }
    text
}

/// 1234567 as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::Path;

    fn at_once(text: &str) -> u64 {
        let text = format!("{text}\n[data]\nsource = \"x\"\n[train]\nsteps = 100\n");
        let resolved = Resolved::from_layers(Path::new("my.toml"), &text, [], &[]).unwrap();
        checkpoints_at_once(&TrainPlan::new(&resolved).unwrap())
    }

    #[test]
    fn disk_holds_the_kept_checkpoints_and_one_more() {
        assert_eq!(at_once("[checkpoint]\nevery = 10\nkeep_last = 2"), 3);
        assert_eq!(at_once("[checkpoint]\nevery = 10\nkeep_last = 2\nkeep_every = 50"), 5);
        assert_eq!(at_once("[checkpoint]\nevery = 0"), 1);
    }

    #[test]
    fn long_numbers_are_grouped() {
        assert_eq!([grouped(7), grouped(1234), grouped(35_746_307)], ["7", "1,234", "35,746,307"]);
    }
}
