//! Adds to an error what the crates below do not know: what to type about it, and the options that its message is about.

use std::io;
use std::path::Path;

use ddpm_data::DataError;
use ddpm_hub::HubError;
use ddpm_kernels::KernelError;
use ddpm_model::ModelError;
use ddpm_run::checkpoint::CheckpointError;
use ddpm_run::durable::io_help;
use ddpm_run::{RunError, shell};
use ddpm_train::Error;
use ddpm_train::config::{Change, ConfigError, DeviceError, may_be_accepted, presets};
use ddpm_train::training::ranks::CollectiveError;
use serde_json::{Map, Value};

/// What may stand for a model on the command line.
const MODELS: &str = "name a run directory (runs/NAME), a checkpoint (runs/NAME/checkpoints/step-...), \
                      a diffusers folder or hf://owner/name";

/// The message, with the option that it is about.
pub(crate) fn message(error: &Error) -> String {
    let option = match error {
        Error::NotACheckpoint { .. } => "--resume ",
        Error::Taken { .. } | Error::Unwritable { .. } => "--to ",
        Error::NothingToCut { .. } => "--epsilon-only: ",
        Error::Measurements { .. } => "--metrics ",
        Error::Flags { .. } => "--flags: ",
        Error::TooFewImages { .. } => "--num ",
        Error::NoTimestep { .. } => "--at ",
        Error::NoSuchStep { .. } => "--at: ",
        Error::Occupied { run_dir, newest, from } => {
            let resume = from.map_or("never".to_owned(), |step| format!("at step {step}"));
            let run_dir = run_dir.display();
            return format!("{run_dir} holds checkpoints up to step {newest}: --resume {resume} would overwrite them");
        }
        _ => "",
    };
    format!("{option}{error}")
}

/// What to do about it.
pub(crate) fn hint(error: &Error) -> Option<String> {
    let hint = match error {
        Error::Config(error) | Error::ForeignConfig(error) => return config(error),
        Error::Device(error) => device(error),
        Error::Data(error) => return data(error),
        Error::Unfit(error) => return unfit(error),
        Error::Diffusion(error) => return error.help().map(Into::into),
        Error::Model(error) => return model(error),
        Error::Run(error) => return Some(run(error)),
        Error::Checkpoint(error) | Error::Unsaved { cause: error, .. } => return Some(checkpoint(error)),
        Error::Report(error) => return Some(error.help()),
        Error::Hub(error) => return Some(hub(error)),
        Error::Besides { error, .. } => return hint(error),
        Error::Ranks(error) => return Some(ranks(error)),
        Error::Unreadable { advice, .. } => return Some(advice.clone()),
        Error::StepTooLarge { advice, .. } => return advice.clone(),
        Error::Unwritable { path, cause } => return Some(io_help(cause, path)),
        Error::NoTimestep { help, .. } => return help.clone(),
        Error::TooFewImages { there, .. } => return Some(format!("ask for {there} or fewer")),
        Error::WithoutHub { name } => {
            let name = name.trim_start_matches(ddpm_hub::SCHEME);
            return Some(format!("download it (`hf download {name} --local-dir DIR`) and name the folder"));
        }
        Error::ImportLeft { beside, .. } => {
            let beside = beside.display();
            return Some(format!(
                "train the import with --run-dir {beside}; or begin at it elsewhere with --resume \
                 {beside}/checkpoints/step-000000000, or anew with --resume never"
            ));
        }
        Error::Changed { changes, .. } => return Some(changed(changes)),
        Error::NoWeights { pickle, .. } => no_weights(pickle.is_some()),
        Error::NotAModel { path, .. } if path.extension().is_some_and(|end| end == "pt") => {
            "`ddpm import FILE --from improved-diffusion` (or guided-diffusion) reads such a file of theirs"
        }
        other => return simple(other).map(str::to_owned),
    };
    Some(hint.to_owned())
}

/// What to type about an event that names a hint and has these fields.
pub(crate) fn of_event(hint: &str, fields: &Map<String, Value>) -> Option<String> {
    match hint {
        "push-later" => {
            let run = shell::quoted(fields.get("run")?.as_str()?);
            Some(format!("`ddpm push {run}` sends what is left"))
        }
        "starved-reads" => Some(
            "the disk or network is too slow for this: `ddpm data pack` makes small images of large ones, to read one after \
             another; raise data.prefetch if it is only uneven"
                .to_owned(),
        ),
        "starved-decoding" => Some(
            "raise data.workers while there are idle cores; `ddpm data pack` cuts and resizes once what is decoded at every epoch \
             now"
                .to_owned(),
        ),
        _ => None,
    }
}

/// What to do about ranks that cannot work together.
fn ranks(error: &CollectiveError) -> String {
    match error {
        CollectiveError::Variables { help, .. } => help.clone(),
        CollectiveError::Refused { .. } => {
            "give all ranks the same program, configuration and settings, and end those of an earlier start".to_owned()
        }
        CollectiveError::Place { .. } => {
            "MASTER_ADDR must be the host of rank 0; DDPM_PORT chooses another port".to_owned()
        }
        CollectiveError::Missing { .. } | CollectiveError::Unreachable { .. } => {
            "start every rank, with MASTER_ADDR and MASTER_PORT (or DDPM_PORT) the same for all, and let them reach that port; \
             RANK=0 WORLD_SIZE=1 trains alone"
                .to_owned()
        }
        _ => "start all ranks again with the same command: they go on from the newest checkpoint. The log of that rank says more"
            .to_owned(),
    }
}

/// Hints that do not depend on the error's fields.
fn simple(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::Diverged { .. } => {
            "go on from the newest checkpoint with a lower train.lr (--set train.lr=LR --accept train.lr), or from an older one \
             (ddpm fork RUN --at STEP --to DIR) if its weights are ruined already, or start another run (--run-dir DIR) with a \
             longer train.warmup_steps; the checkpoints so far are as they were"
        }
        Error::NetworkTooLarge { .. } => "make model.block_out_channels narrower, or model.layers_per_block smaller",
        Error::ImagesTooMany { .. } => "draw fewer at a time, each time with another seed",
        Error::OtherData { .. } => {
            "to go on with these images, add --accept-data: weights, averages and the step stay, and run.json records it; or bring \
             the old ones back, or start another run with --run-dir DIR"
        }
        Error::DoesNotFit { .. } => {
            "the checkpoint belongs to another model: point to its own run, or start a new one with --run-dir DIR"
        }
        Error::AllDamaged { .. } => "restore one from a backup, or start another run with --run-dir DIR",
        Error::NoCheckpoint { .. } => "`ddpm train` writes one every checkpoint.every steps and at the end",
        Error::Occupied { .. } => "give another directory with --run-dir DIR, or delete this one yourself",
        Error::NotACheckpoint { .. } => "name a checkpoint: runs/NAME/checkpoints/step-...",
        Error::NotAModel { .. } => MODELS,
        Error::Weights(_) => {
            "expected f32, f16 or bf16 weights as save_pretrained writes them: download the model again, or convert it"
        }
        Error::HubName { .. } => "write hf://owner/name, or hf://owner/name@revision",
        Error::Taken { .. } => "give another directory, or delete this one yourself: nothing is overwritten",
        Error::OtherImages { .. } => "every rank must read the same data set; it may lie elsewhere on each machine",
        Error::Replicas { .. } => {
            "a machine computes wrongly, or the ranks run on different processors: go on from a checkpoint before that step, \
             without that machine"
        }
        Error::NothingToCut { .. } => "leave --epsilon-only out: nothing has to be cut",
        Error::NothingLeft { .. } => "undo the change, or give more steps: --set train.steps=N (and --max-steps)",
        Error::Flags { .. } => "give the MODEL_FLAGS and DIFFUSION_FLAGS that it was trained with, as in their README",
        Error::Measurements { .. } => "expected what `ddpm eval nll MODEL --data SOURCE --json` prints",
        _ => return None,
    })
}

/// What to do about keys that differ from the checkpoint's.
fn changed(changes: &[Change]) -> String {
    let accept = match changes.iter().all(|change| may_be_accepted(&change.key)) {
        true => {
            let options: Vec<_> = changes.iter().map(|change| format!("--accept {}", change.key)).collect();
            format!("accept it from here on with {}, ", options.join(" "))
        }
        false => String::new(),
    };
    format!("undo the change to go on, {accept}or start another run with --run-dir DIR (or --set run.name=NAME)")
}

fn data(error: &DataError) -> Option<String> {
    let help = error.help()?;
    let more = match error {
        DataError::Unreadable { .. } | DataError::TooManyUnreadable { .. } | DataError::NothingReadable { .. } => {
            " (a run that has begun then goes on with --accept-data); `ddpm data inspect` lists every unreadable sample"
        }
        DataError::UnknownClasses { .. } => {
            "; --accept-data takes new ones where model.num_class_embeds has room for them, or where the run is an import that \
             no step has changed"
        }
        _ => "",
    };
    Some(help + more)
}

fn hub(error: &HubError) -> String {
    let help = error.help();
    let more = match error.reason() {
        HubError::Public { .. } => "; or leave --private out",
        HubError::Status { status: 413, .. } => " (--samples)",
        _ if error.is_about_settings() => "\n`ddpm doctor` says which address and which token are used",
        _ => "",
    };
    help + more
}

fn checkpoint(error: &CheckpointError) -> String {
    let more = match error {
        CheckpointError::NoManifest { .. } => "; `ddpm runs` lists the runs",
        error if error.is_damaged() => " (--resume auto takes the newest good one)",
        _ => "",
    };
    error.help() + more
}

fn run(error: &RunError) -> String {
    let option = if matches!(error, RunError::Locked { .. }) { " with --run-dir" } else { "" };
    error.help() + option
}

fn config(error: &ConfigError) -> Option<String> {
    const INIT: &str = "`ddpm config init` writes a config that works, to start from";
    match error {
        ConfigError::Read { path, source } => Some(missing(path, source)),
        error => error.help().map(str::to_owned).or_else(|| error.is_malformed().then(|| INIT.to_owned())),
    }
}

/// What to do about a config file that could not be read.
fn missing(path: &Path, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound && path.file_name().is_some_and(|name| name == "config.toml") {
        return "name a config file, or a run directory, which has a config.toml".to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match (error.kind(), presets::find(&stem)) {
        (io::ErrorKind::NotFound, Some(preset)) => {
            let path = shell::quoted(&path.display().to_string());
            format!("`ddpm config init --preset {} --to {path}` writes it", preset.name)
        }
        (io::ErrorKind::NotFound, None) => {
            "check the path; `ddpm config init --to my.toml` writes a config to start from".to_owned()
        }
        _ => "check that it is a text file and that you may read it".to_owned(),
    }
}

fn device(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::WithoutCuda { .. } => {
            "build with --features cuda (docs/cuda.md), or use --device cpu or --device auto"
        }
        DeviceError::Setting(_) => SWITCHES,
        _ => "`ddpm doctor` shows what is there; --device cpu needs no GPU",
    }
}

const SWITCHES: &str = "several are separated by commas; unset, nothing is off";

fn model(error: &ModelError) -> Option<String> {
    let hint = match error {
        ModelError::Config(setting) => return setting.help(),
        _ if error.is_out_of_memory() => "compute fewer images at once: a smaller train.micro_batch or --batch-size",
        ModelError::Kernel(KernelError::Setting { .. }) => SWITCHES,
        ModelError::Kernel(KernelError::Gpu { .. }) => {
            "`ddpm doctor` shows which of NVIDIA's libraries are there; --device cpu needs none"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The hints for a command that measures and does not train.
fn unfit(error: &DataError) -> Option<String> {
    let hint = match error {
        DataError::Unreadable { .. } => "repair it or take it out: an image cannot be judged by another in its place",
        DataError::UnknownClasses { .. } => "give the classes the model's names, or leave these out",
        DataError::NoLabels { .. }
        | DataError::LabelMissing { .. }
        | DataError::Unlabelled { .. }
        | DataError::LabelOutOfRange { .. } => {
            "the model is class-conditional: give images with the labels it was trained with (a sub-folder per class)"
        }
        other => return other.help(),
    };
    Some(hint.to_owned())
}

fn no_weights(has_pickle: bool) -> &'static str {
    if has_pickle {
        "look for a revision with safetensors (hf://owner/name@refs/pr/1), or convert it where you trust it"
    } else {
        "name a repository of an unconditional or class-conditional UNet2DModel, such as google/ddpm-cifar10-32"
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_message_names_the_option_it_is_about_and_the_hint_another_way() {
        let error = Error::Occupied { run_dir: PathBuf::from("runs/a"), newest: 30, from: None };
        let want = "runs/a holds checkpoints up to step 30: --resume never would overwrite them";
        assert_eq!(message(&error), want);
        assert!(hint(&error).is_some_and(|hint| hint.contains("--run-dir DIR")));
        let error = Error::NotACheckpoint { path: PathBuf::from("runs"), what: "no such directory" };
        assert_eq!(message(&error), "--resume runs: no such directory");
    }

    #[test]
    fn an_event_names_its_hint_and_what_it_is_about() {
        let fields = Map::from_iter([("run".to_owned(), "runs/my run".into())]);
        assert_eq!(of_event("push-later", &fields).as_deref(), Some("`ddpm push 'runs/my run'` sends what is left"));
        assert_eq!(of_event("unheard-of", &fields), None);
    }

    #[test]
    fn a_hint_survives_what_went_wrong_besides() {
        let first = Error::Diverged { step: 1, what: "the loss is NaN".to_owned(), report: None };
        let wanted = hint(&first);
        let both = Error::Besides { error: Box::new(first), besides: "a full disk".to_owned() };
        assert!(wanted.is_some() && hint(&both) == wanted);
    }
}
