//! `ddpm config check`: estimates what a run would need, before it begins.
//!
//! It also works on a machine that has neither the data nor the memory for the run: the data's error comes last, and costs that
//! cannot be measured here are estimated.

use std::time::Duration;

use ddpm_model::ModelError;
use ddpm_model::params::ParamLayout;
use ddpm_model::unet::UNet;
use ddpm_run::RunPaths;
use ddpm_run::memory::format_bytes;
use ddpm_train::config::{Resolved, TrainPlan, Warning};
use ddpm_train::measuring::estimate::{Measured, StepEstimate, estimate_step};
use ddpm_train::training::accept::Accept;
use ddpm_train::training::disk_need::DiskNeed;
use ddpm_train::training::gpu_memory::{GpuEstimate, GpuNeeds};
use ddpm_train::training::metrics_warning;
use ddpm_train::training::resume::would_go_on_from;
use serde::Serialize;

use super::args::CheckArgs;
use super::{Align, Output, Table};
use crate::failure::{Failure, Outcome};
use crate::listen::format_duration;

/// Steps to measure, after two to warm up: some seconds for a model this machine can train.
const MEASURED_STEPS: usize = 3;

/// The document of `config check`.
#[derive(Debug, Serialize)]
struct Needs {
    /// The step that a run in this directory would go on from, if there is one already.
    goes_on_from: Option<u64>,
    /// Number of trainable parameters.
    parameters: u64,
    /// Named tensors in a file.
    tensors: usize,
    /// The peak memory of a step, where the system reports it.
    memory_bytes: Option<u64>,
    /// On a GPU, the value estimated for `memory_bytes`.
    estimated_bytes: Option<u64>,
    /// Memory of a step on a GPU, whether there is one or not.
    gpu: GpuNeeds,
    /// Memory of its activations with gradient checkpointing.
    gpu_checkpointed_bytes: u64,
    /// Size of a checkpoint.
    checkpoint_bytes: u64,
    /// Size of a finished run, with one checkpoint that is being replaced.
    disk_bytes: u64,
    /// Median of some real steps, or an extrapolation from few images.
    step_ms: f64,
    /// Time of all steps of the run, without pictures and checkpoints.
    eta_s: f64,
    /// How `step_ms` and `memory_bytes` were obtained.
    measured: Measured,
    /// Number of images in the source, if it can be opened.
    images: Option<usize>,
    /// How often each image is seen.
    epochs: Option<f64>,
    warnings: Vec<Warning>,
}

/// Checks a configuration and reports what a run would need.
pub(super) fn check(args: &CheckArgs, output: &Output) -> Result<Outcome, Failure> {
    let plan = TrainPlan::new(&Resolved::load(&args.config, &args.settings())?)?;
    let unet = UNet::new(&plan.config().model)?;
    tracing::debug!("measuring a few steps");
    let step = estimate_step(&plan, MEASURED_STEPS)?;
    let mut needs = needs(&plan, unet.layout(), &step)?;
    let mut verdict = verdict(&step);
    let accept = Accept { keys: args.accept.clone(), data: args.accept_data };
    // What `train` would say about the run directory, which may hold a run already.
    let refusal = match (step.data_error, &step.data) {
        (Some(error), _) => Some(Failure::from(error)),
        (None, Some(data)) => match would_go_on_from(&plan, data, &accept) {
            Ok(step) => {
                needs.goes_on_from = step;
                None
            }
            Err(error) => {
                verdict = "a run cannot go on from what is in its directory";
                Some(Failure::from(error))
            }
        },
        (None, None) => None,
    };
    match refusal {
        None => {
            output.result(&needs, || text(&plan, &needs, verdict))?;
            Ok(Outcome::Done)
        }
        Some(failure) => output.result_and_failure(&needs, || text(&plan, &needs, verdict), &failure),
    }
}

fn verdict(step: &StepEstimate) -> &'static str {
    match (&step.data_error, &step.warning) {
        (Some(_), _) => "a run cannot start with this data",
        (None, Some(_)) => "a run would need more memory than there is",
        (None, None) => "a run can start",
    }
}

fn needs(plan: &TrainPlan, layout: &ParamLayout, step: &StepEstimate) -> Result<Needs, ModelError> {
    let config = plan.config();
    let parameters = layout.parameters() as u64;
    let disk = DiskNeed::of(plan, layout);
    let metrics = metrics_warning(&config.log.metrics_addr);
    let small_disk = disk.warning(&RunPaths::new(plan.run_dir()));
    let steps = config.train.steps;
    let estimate = GpuEstimate::new(config)?;
    let at_once = plan.at_once();
    let images = step.data.as_ref().map(|data| data.images);
    Ok(Needs {
        goes_on_from: None,
        parameters,
        tensors: layout.specs().iter().map(|spec| spec.file_shapes().len()).sum(),
        memory_bytes: step.peak_bytes,
        estimated_bytes: step.estimated_bytes,
        gpu: estimate.of(at_once),
        gpu_checkpointed_bytes: estimate.checkpointed(at_once).activations_bytes,
        checkpoint_bytes: disk.checkpoint_bytes,
        disk_bytes: disk.run_bytes,
        step_ms: step.step_ms,
        eta_s: steps as f64 * step.step_ms / 1e3,
        measured: step.measured,
        images,
        epochs: images.map(|images| steps as f64 * config.train.batch_size as f64 / images as f64),
        warnings: plan
            .warnings()
            .iter()
            .chain(&step.data_warnings)
            .chain(&step.warning)
            .chain(&small_disk)
            .chain(&metrics)
            .cloned()
            .collect(),
    })
}

fn text(plan: &TrainPlan, needs: &Needs, verdict: &str) -> String {
    let config = plan.config();
    let mut table = Table::new(&[Align::Left, Align::Left]);
    if let Some((images, epochs)) = needs.images.zip(needs.epochs) {
        table.row(&[
            &"images",
            &format!("{images} of {}, each seen {epochs:.1} times", ddpm_data::without_query(&config.data.source)),
        ]);
    }
    table.row(&[&"parameters", &format!("{} in {} tensors", grouped(needs.parameters), needs.tensors)]);
    if let Some(memory) = needs.memory_bytes {
        let estimated = needs.estimated_bytes.map(format_bytes);
        let estimated = estimated.map_or(String::new(), |bytes| format!(", estimated {bytes}"));
        table.row(&[&"memory", &format!("{}{estimated}", format_bytes(memory))]);
    }
    table.row(&[&"on a GPU", &needs.gpu.describe()]);
    if !needs.gpu.gradient_checkpointing {
        let bytes = format_bytes(needs.gpu_checkpointed_bytes);
        table.row(&[&"", &format!("with train.gradient_checkpointing, {bytes} for the images")]);
    }
    let seconds = Duration::try_from_secs_f64(needs.eta_s).unwrap_or(Duration::MAX);
    let steps = config.train.steps;
    table.row(&[&"time", &format!("{} for {steps} steps of {:.0} ms", format_duration(seconds), needs.step_ms)]);
    if needs.measured == Measured::Extrapolated {
        table.row(&[&"", &"memory and time are estimated from steps of 1 and 2 images"]);
    }
    table.row(&[&"checkpoint", &format_bytes(needs.checkpoint_bytes)]);
    if let Some(step) = needs.goes_on_from {
        table.row(&[&"run", &format!("goes on from step {step} in {}", config.run.dir)]);
    }
    table.row(&[&"disk", &format!("{} in {}", format_bytes(needs.disk_bytes), config.run.dir)]);
    let mut text = format!("{}: {verdict}\n\n{}", plan.path().display(), table.render());
    for Warning { key, message } in &needs.warnings {
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
    use std::path::Path;

    use ddpm_train::known_data::KnownData;

    use super::*;

    fn plan(text: &str) -> TrainPlan {
        let text = format!("{text}\n[data]\nsource = \"x\"\n[train]\nsteps = 100\nwarmup_steps = 10\n");
        TrainPlan::new(&Resolved::from_layers(Path::new("my.toml"), &text, [], &[]).unwrap()).unwrap()
    }

    #[test]
    fn a_run_that_is_too_large_for_this_machine_is_not_said_to_start() {
        let plan = plan("[checkpoint]\nevery = 10");
        let warning = Warning { key: "train.micro_batch", message: "too large".to_owned() };
        let step = StepEstimate {
            step_ms: 60_000.0,
            peak_bytes: Some(130 << 30),
            estimated_bytes: None,
            measured: Measured::Extrapolated,
            warning: Some(warning),
            data: Some(KnownData { images: 64, ..KnownData::default() }),
            data_warnings: Vec::new(),
            data_error: None,
        };
        let needs = needs(&plan, UNet::new(&plan.config().model).unwrap().layout(), &step).unwrap();
        let text = text(&plan, &needs, verdict(&step));
        for part in [
            "my.toml: a run would need more memory than there is\n",
            "\nimages      64 of x, each seen 200.0 times\n",
            "\nmemory      130 GiB\n",
            "\ntime        1h40m for 100 steps of 60000 ms\n",
            "\n            memory and time are estimated from steps of 1 and 2 images\n",
            "\nwarning: train.micro_batch: too large\n",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn long_numbers_are_grouped() {
        assert_eq!([grouped(7), grouped(1234), grouped(35_746_307)], ["7", "1,234", "35,746,307"]);
    }
}
