//! Steps that are not as they should be, and what follows a divergence: a report on the step that ended the training, and a second try from the newest checkpoint with
//! other images.
//!
//! The same steps from the same checkpoint would diverge again: everything random is a function of the step. So a second try
//! passes over all images since that checkpoint, the bad batch included. That is recorded as the [`Origin`] of its steps, so that
//! a kill during the second try repeats it to the bit.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use ddpm_data::{Origin, Source};
use ddpm_kernels::optim::StepState;
use ddpm_run::checkpoint::{NamedTensor, TensorFile, newest_good, tensors};
use ddpm_run::durable::replace_file;
use serde::Serialize;
use serde_json::json;

use super::outcome::StepOutcome;
use super::resume::Beginning;
use super::setup::RunSetup;
use super::trainer::{Diagnosis, LayerGradient, Trainer};
use crate::error::{Error, in_one_line};
use crate::report::pictures::{Layout, encode, grid, write};

/// Steps of the report's history.
const HISTORY: usize = 200;
/// Tensors whose gradient the report names.
const GRADIENTS: usize = 20;

/// A gradient whose norm is more than so many times the usual one is reported.
const SPIKE: f64 = 10.0;
/// Not more often than every so many steps.
const SPIKE_EVERY: u64 = 100;

/// A step of the report's history.
#[derive(Clone, Copy, Debug, Serialize)]
struct Past {
    step: u64,
    loss: f64,
    grad_norm: f64,
    lr: f64,
}

/// The newest steps, for the report.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Past>);

impl History {
    /// Adds a step.
    pub(super) fn add(&mut self, outcome: &StepOutcome) {
        self.0.truncate(HISTORY - 1);
        self.0.push_front(Past {
            step: outcome.step,
            loss: outcome.loss(),
            grad_norm: outcome.state.norm,
            lr: outcome.lr,
        });
    }
}

/// Warns about steps that were skipped, and about gradients that are much larger than usual.
#[derive(Debug)]
pub(super) struct Alarm {
    max_bad_steps: u64,
    /// The first step whose spike is reported.
    next_spike: u64,
}

impl Alarm {
    /// Of a run that skips so many bad steps in a row.
    pub(super) fn new(max_bad_steps: u64) -> Self {
        Self { max_bad_steps, next_spike: 0 }
    }

    /// Looks at a step.
    pub(super) fn tell(&mut self, outcome: &StepOutcome) {
        let StepState { norm, usual_norm, bad_steps, .. } = outcome.state;
        let (step, most) = (outcome.step, self.max_bad_steps);
        if outcome.is_bad() {
            let complaint = outcome.complaint();
            tracing::warn!(
                step,
                bad_steps,
                "step {step} was skipped: {complaint} ({bad_steps} of at most {most} in a row)"
            );
        } else if norm > SPIKE * usual_norm && step >= self.next_spike {
            self.next_spike = step + SPIKE_EVERY;
            tracing::warn!(step, norm, usual_norm, "step {step}: {}", outcome.complaint());
        }
    }
}

/// Reports on the step that ended the training, in `divergence/` of the run directory; returns where. A report that cannot be
/// made is a warning.
pub(super) fn report(setup: &RunSetup<'_>, trainer: &mut Trainer, history: &History, what: &str) -> Option<PathBuf> {
    let made = trainer.diagnose().and_then(|diagnosis| match diagnosis {
        Some(diagnosis) => write_report(setup, &diagnosis, history, what).map(Some),
        None => Ok(None),
    });
    made.unwrap_or_else(|error| {
        tracing::warn!("no report on the divergence: {}", in_one_line(&error));
        None
    })
}

/// Where a second try begins, if the run has one left and has a checkpoint; `step` of the try from `beginning` diverged because of
/// `what`.
pub(super) fn second_try(
    setup: &RunSetup<'_>,
    beginning: &Beginning,
    step: u64,
    what: &str,
) -> Result<Option<Beginning>, Error> {
    let (done, most) = (setup.rollbacks, setup.plan.config().train.max_rollbacks);
    let newest = newest_good(&setup.run_dir.paths().checkpoints())?.0;
    let Some(checkpoint) = newest.filter(|_| done < most) else { return Ok(None) };
    let to = checkpoint.state.step;
    let rollbacks = done + 1;
    let reason = format!(
        "training diverged at step {step}: {what}; going back to step {to} and on with other images \
         ({rollbacks} of at most {most} times)"
    );
    let origin = Origin { step: to, images: setup.plan.images(step) };
    let plan = setup.plan.starting_at(origin);
    // What was accepted there is accepted again: no checkpoint has it yet.
    let same = beginning.checkpoint.as_ref().is_some_and(|before| before.state.step == to);
    let (accepted, changed_data) =
        if same { (beginning.accepted.clone(), beginning.changed_data.clone()) } else { Default::default() };
    Ok(Some(Beginning {
        accepted,
        changed_data,
        reason: Some(reason),
        ..Beginning::of(plan, Some(checkpoint), rollbacks)
    }))
}

fn write_report(setup: &RunSetup<'_>, diagnosis: &Diagnosis, history: &History, what: &str) -> Result<PathBuf, Error> {
    let Diagnosis { outcome, gradients, images, shape, .. } = diagnosis;
    let dir = free(setup.run_dir.paths().divergence(outcome.step));
    let cannot_write = |error| Error::caused(format!("{} cannot be written", dir.display()))(error);
    std::fs::create_dir_all(&dir).map_err(cannot_write)?;
    let document = json!({
        "step": outcome.step,
        "what": what,
        "bad_steps_in_a_row": outcome.state.bad_steps,
        "lr": outcome.lr,
        "loss": outcome.loss(),
        "grad_norm": outcome.state.norm,
        "usual_grad_norm": outcome.state.usual_norm,
        "images_before": setup.plan.images(outcome.step.saturating_sub(1)),
        "gradients": gradients.iter().take(GRADIENTS).collect::<Vec<&LayerGradient>>(),
        "samples": samples(&*setup.source, diagnosis),
        "steps_before": history.0,
    });
    let text = serde_json::to_vec_pretty(&document).map_err(Error::caused("a report cannot be written as JSON"))?;
    replace_file(&dir.join("report.json"), &text).map_err(cannot_write)?;
    write_batch(&dir.join("batch.safetensors"), diagnosis)?;
    let page = grid(images, *shape, Layout::visible(shape[1], shape[2])).and_then(|page| encode(&page))?;
    write(&dir.join("batch.png"), &page)?;
    Ok(dir)
}

/// `dir`, or a name behind it that is not taken: several tries may diverge at the same step.
fn free(dir: PathBuf) -> PathBuf {
    let numbered = |number: u32| PathBuf::from(format!("{}-{number}", dir.display()));
    if dir.exists() { (2..).map(numbered).find(|dir| !dir.exists()).unwrap_or(dir) } else { dir }
}

/// Each image: its number and name in the source, its timestep and its loss.
fn samples(source: &dyn Source, diagnosis: &Diagnosis) -> Vec<serde_json::Value> {
    let outcome = &diagnosis.outcome;
    let each = diagnosis.ids.iter().zip(&outcome.timesteps).zip(outcome.losses.iter().zip(&outcome.mse));
    each.map(|((&index, t), (loss, mse))| {
        let name = source.read(index as usize).ok().map(|raw| raw.id);
        json!({"index": index, "name": name, "t": t.index(), "loss": loss, "mse": mse})
    })
    .collect()
}

/// The batch as tensors: `images` (0 to 255, `[N, H, W, C]`) and `timesteps` (`[N]`), f32.
fn write_batch(path: &Path, diagnosis: &Diagnosis) -> Result<(), Error> {
    let tensor = |name: &str, shape: &[usize], data| NamedTensor { name: name.into(), shape: shape.into(), data };
    let images = diagnosis.images.iter().map(|&value| f32::from(value)).collect();
    // Of several ranks the first writes, whose images are the first of the batch.
    let own = diagnosis.outcome.timesteps.iter().take(diagnosis.shape[0]);
    let timesteps: Vec<f32> = own.map(|t| t.index() as f32).collect();
    let tensors =
        vec![tensor("images", &diagnosis.shape, images), tensor("timesteps", &[diagnosis.shape[0]], timesteps)];
    let file = TensorFile { name: "batch.safetensors".to_owned(), tensors };
    let bytes = tensors::to_bytes(&file).map_err(Error::other)?;
    replace_file(path, &bytes).map_err(Error::caused(format!("{} cannot be written", path.display())))
}
