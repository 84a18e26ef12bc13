//! `ddpm fork`.

use ddpm_run::shell;
use ddpm_train::training::fork::fork;
use serde_json::json;

use super::args::ForkArgs;
use super::output::Output;
use super::places::{Kind, Place, data_of_root};
use crate::failure::Failure;
use crate::train::this_command;

/// Makes the branch, and says how to go on.
pub(super) fn run(args: &ForkArgs, output: &Output) -> Result<(), Failure> {
    // Where there is no run, the fork says so.
    if let Some(data) = data_of_root(&args.run) {
        Place { option: "--to", path: &args.to, kind: Kind::Folder }.refuse_inside(&data)?;
    }
    let (checkpoint, step) = fork(&args.run, args.at, &args.to, this_command())?;
    let document = json!({"run_dir": args.to, "checkpoint": checkpoint, "step": step});
    output.result(&document, || {
        let (run, to) = (args.run.display(), args.to.display().to_string());
        let quoted = shell::quoted(&to);
        format!("{to}: a branch of {run} from step {step} on\nnext:\n  ddpm train {quoted}")
    })
}
