//! Where a run starts: anew, or from a checkpoint.

use std::path::Path;

use super::context::RunContext;
use super::step::Trainer;
use super::window::Window;
use crate::cli::args::Resume;
use crate::config::TrainPlan;
use crate::error::{ExitCode, Failure};
use ddpm_run::checkpoint::{Checkpoint, list, newest_good};
use ddpm_run::{RunDir, RunPaths};

/// The checkpoint to go on from, if any, and why newer ones do not count.
///
/// # Errors
/// There are checkpoints but no good one, or going on as asked would overwrite some.
pub(super) fn choose_checkpoint(
    run_dir: &RunDir,
    resume: &Resume,
) -> Result<(Option<Checkpoint>, Vec<String>), Failure> {
    let dir = run_dir.paths().checkpoints();
    let newest = list(&dir)?.first().map(|(step, _)| *step);
    match resume {
        Resume::Auto => {
            let (checkpoint, skipped) = newest_good(&dir)?;
            let skipped: Vec<String> = skipped.iter().map(|skipped| format!("checkpoint {skipped}")).collect();
            if checkpoint.is_none() && !skipped.is_empty() {
                let message = format!("{} holds checkpoints, but none that verifies", dir.display());
                let failure = Failure::new(ExitCode::Checkpoint, message)
                    .hint("restore one from a backup, or start another run with --run-dir DIR");
                return Err(Failure { causes: skipped, ..failure });
            }
            Ok((checkpoint, skipped))
        }
        Resume::Never => match newest {
            None => Ok((None, Vec::new())),
            Some(step) => Err(occupied(run_dir, step, "--resume never would overwrite them")),
        },
        Resume::From(path) => {
            let checkpoint = open_named(path)?;
            match newest.filter(|&step| step > checkpoint.state.step) {
                None => Ok((Some(checkpoint), Vec::new())),
                Some(step) => Err(occupied(
                    run_dir,
                    step,
                    &format!("--resume at step {} would overwrite them", checkpoint.state.step),
                )),
            }
        }
    }
}

/// Refuses to begin anew with a configuration that lies beside imported weights: who trains it means these weights, but
/// a moved directory or another `--run-dir` would leave them behind without a word.
///
/// # Errors
/// Exit code 2.
pub(super) fn refuse_to_leave_an_import(plan: &TrainPlan, resume: &Resume) -> Result<(), Failure> {
    let beside = plan.path().parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // What cannot be listed is told by whoever opens it.
    let newest = |root: &Path| list(&RunPaths::new(root).checkpoints()).ok()?.first().map(|(step, _)| *step);
    let run_dir = plan.run_dir();
    let same = beside.canonicalize().ok().is_some_and(|beside| run_dir.canonicalize().ok() == Some(beside));
    if same || *resume != Resume::Auto || newest(beside) != Some(0) || newest(&run_dir).is_some() {
        return Ok(());
    }
    let (config, beside, run_dir) = (plan.path().display(), beside.display(), run_dir.display());
    let message =
        format!("{config} lies beside imported weights, but run.dir = {run_dir} would start from random ones");
    Err(Failure::new(ExitCode::Usage, message).hint(format!(
        "train the import with --run-dir {beside}; or begin at it elsewhere with --resume {beside}/checkpoints/step-000000000, \
         or anew with --resume never"
    )))
}

/// The checkpoint of `--resume PATH`; what is none is told apart from what is damaged.
fn open_named(path: &Path) -> Result<Checkpoint, Failure> {
    let not_one = |what: &str| {
        Failure::new(ExitCode::Checkpoint, format!("--resume {}: {what}", path.display()))
            .hint("name a checkpoint: runs/NAME/checkpoints/step-...")
    };
    if !path.is_dir() {
        return Err(not_one("no such directory"));
    }
    if RunPaths::new(path).checkpoints().is_dir() {
        return Err(not_one("a run directory, not one of its checkpoints"));
    }
    Ok(Checkpoint::open(path)?)
}

fn occupied(run_dir: &RunDir, newest: u64, why: &str) -> Failure {
    let message = format!("{} holds checkpoints up to step {newest}: {why}", run_dir.paths().root().display());
    Failure::new(ExitCode::Usage, message)
        .hint("give another directory with --run-dir DIR, or delete this one yourself")
}

/// A trainer, fresh or from `checkpoint`, and the means it had begun.
pub(super) fn start_or_go_on(
    context: &RunContext<'_>,
    checkpoint: Option<&Checkpoint>,
) -> Result<(Trainer, Window), Failure> {
    match checkpoint {
        Some(checkpoint) => Trainer::restore(context.plan, context.device, checkpoint, context.source.fingerprint()),
        None => Ok((Trainer::new(context.plan, context.device)?, Window::default())),
    }
}
