//! The command line: every command, option and help text.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};
use ddpm_run::shell::expanded;
use ddpm_train::config::{DeviceChoice, Setting};
use ddpm_train::training::resume::Resume;

mod bench;
mod data;
mod eval;
mod exchange;
mod runs;
mod sample;
mod schedule;

pub use bench::{BenchArgs, BenchKind};
pub use data::{DataCommand, InspectArgs, PackArgs};
pub use eval::{EvalCommand, NllArgs};
pub use exchange::{ExportArgs, ImportArgs, PushArgs};
pub use runs::{CompareArgs, ForkArgs, PlotArgs, PlotScale, RunsArgs, WatchArgs};
pub use sample::{SAMPLE_IMAGES, SampleArgs};
pub use schedule::ScheduleArgs;

/// Trains diffusion models on images, samples from them and looks into them.
#[derive(Debug, Parser)]
#[command(name = "ddpm", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Start here:\n  ddpm config init --preset quickstart --to quickstart.toml\n  ddpm train quickstart.toml"
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Copy, Debug, Args)]
pub struct GlobalArgs {
    /// Print one JSON document on stdout instead of text
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Tell more on stderr
    #[arg(short, long, global = true, help_heading = "Output", action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Tell nothing on stderr but warnings and errors
    #[arg(short, long, global = true, help_heading = "Output", action = ArgAction::Count)]
    pub quiet: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model; the same command goes on where a stopped run was
    Train(TrainArgs),
    /// Train with several processes on this machine
    Launch(LaunchArgs),
    /// List runs: how far they are, and what became of them
    Runs(RunsArgs),
    /// Follow a run in the terminal: loss, speed, time left, pictures, warnings
    #[cfg(feature = "watch")]
    Watch(WatchArgs),
    /// Draw the loss curves of runs, as PNG or SVG
    #[cfg(feature = "plot")]
    Plot(PlotArgs),
    /// Say what two runs differ in: configuration, data, weights, losses
    Compare(CompareArgs),
    /// Begin a branch of a run, from one of its checkpoints on
    Fork(ForkArgs),
    /// Draw images from a trained model
    Sample(SampleArgs),
    /// Judge a trained model
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Look at a data set
    #[command(subcommand)]
    Data(DataCommand),
    /// Write, show or check a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show what this machine has: CPU, GPU, memory, disk, hub
    #[command(after_help = "Example:\n  ddpm doctor")]
    Doctor,
    /// Measure how fast this machine trains, samples and reads
    Bench(BenchArgs),
    /// Show a noise schedule, as a table or as a picture
    Schedule(ScheduleArgs),
    /// Run the network once, in PyTorch's layout, to compare with another implementation
    Forward(ForwardArgs),
    /// Write a model as a folder that diffusers loads
    Export(ExportArgs),
    /// Publish a model on the Hugging Face hub
    Push(PushArgs),
    /// Start a run from a model that diffusers wrote
    Import(ImportArgs),
}

impl Command {
    /// The file of `--trace`, if it was given.
    pub fn trace(&self) -> Option<&Path> {
        match self {
            Self::Train(args) => args.trace.as_deref(),
            Self::Sample(args) => args.trace.as_deref(),
            Self::Eval(EvalCommand::Nll(args)) => args.trace.as_deref(),
            _ => None,
        }
    }
}

/// `ddpm train`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm train configs/quickstart.toml
  ddpm train configs/quickstart.toml --set train.lr=1e-3 --set run.name=faster
  ddpm train configs/quickstart.toml --max-hours 8    # stopped early: exit code 75")]
pub struct TrainArgs {
    /// The configuration (TOML)
    #[arg(value_parser = path())]
    pub config: PathBuf,
    /// Where everything of this run goes [default: run.dir of the configuration, runs/NAME]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub run_dir: Option<PathBuf>,
    /// Where to go on from: the newest good checkpoint, none at all, or this one
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto", value_parser = resume)]
    pub resume: Resume,
    /// Go on with other images than the checkpoint was made with: files were added, removed or repaired
    #[arg(long)]
    pub accept_data: bool,
    /// Set a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Setting>,
    /// Go on although this key has another value than in the checkpoint, from there on; may be repeated
    #[arg(long, value_name = "KEY")]
    pub accept: Vec<String>,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: run.device, auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// End, with a checkpoint, when the run has made N steps in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_steps: Option<u64>,
    /// Save and exit with 75 before H hours have passed
    #[arg(long, value_name = "H", value_parser = positive)]
    pub max_hours: Option<f64>,
    /// One step, one checkpoint, one sample in a temporary directory: does everything work?
    #[arg(long)]
    pub dry_run: bool,
    /// Write where the time goes: a trace that ui.perfetto.dev opens
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub trace: Option<PathBuf>,
}

impl TrainArgs {
    /// The settings from `--set` and from the options that stand for a key.
    pub fn settings(&self) -> Vec<Setting> {
        settings(&self.set, self.device, self.run_dir.as_deref())
    }
}

/// Those of `--set`, and those of the options that stand for a key.
fn settings(set: &[Setting], device: Option<DeviceChoice>, run_dir: Option<&Path>) -> Vec<Setting> {
    let setting = |key: &str, value: String| Setting { key: key.to_owned(), value };
    let device = device.map(|device| setting("run.device", device.to_string()));
    let run_dir = run_dir.map(|dir| setting("run.dir", dir.display().to_string()));
    set.iter().cloned().chain(device).chain(run_dir).collect()
}

/// `ddpm launch`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Other launchers start ranks too: torchrun, srun, mpirun.

Example:
  ddpm launch --nproc 2 --max-restarts 3 -- train my.toml")]
pub struct LaunchArgs {
    /// How many processes
    #[arg(long, value_name = "N", value_parser = count)]
    pub nproc: usize,
    /// Start all of them again, so often at most, when one is lost (exit code 76)
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub max_restarts: u64,
    /// What each of them does: train, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `ddpm config`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Write a configuration to start from
    Init(InitArgs),
    /// Show every key with its value and where that comes from
    Show(ShowArgs),
    /// Say what a run would need: parameters, memory, disk, time
    Check(CheckArgs),
}

/// `ddpm config init`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm config init                                       # to the terminal
  ddpm config init --preset emoji32 --to my.toml")]
pub struct InitArgs {
    /// Which one
    #[arg(long, value_name = "NAME", default_value = "quickstart")]
    #[arg(help = format!("Which one: {}", ddpm_train::config::presets::names()))]
    pub preset: String,
    /// The file to write; an existing one is left alone [default: stdout]
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub to: Option<PathBuf>,
}

/// `ddpm config show`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm config show configs/quickstart.toml
  DDPM_TRAIN__LR=1e-3 ddpm config show configs/quickstart.toml --set train.steps=100")]
pub struct ShowArgs {
    /// The configuration (TOML), or a run directory
    #[arg(value_parser = path())]
    pub config: PathBuf,
    /// Set a key; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Setting>,
}

/// `ddpm config check`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  ddpm config check configs/quickstart.toml --set train.batch_size=64")]
pub struct CheckArgs {
    /// The configuration (TOML), or a run directory
    #[arg(value_parser = path())]
    pub config: PathBuf,
    /// The run directory [default: run.dir of the configuration, runs/NAME]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub run_dir: Option<PathBuf>,
    /// Set a key; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Setting>,
    /// As of the training: another value of this key than in the checkpoint is accepted; may be repeated
    #[arg(long, value_name = "KEY")]
    pub accept: Vec<String>,
    /// As of the training: other images than in the checkpoint are accepted
    #[arg(long)]
    pub accept_data: bool,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: run.device, auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
}

impl CheckArgs {
    /// The settings from `--set` and from the option that stands for a key.
    pub fn settings(&self) -> Vec<Setting> {
        settings(&self.set, self.device, self.run_dir.as_deref())
    }
}

/// `ddpm forward`
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "IN holds `sample` f32 [N, C, H, W], `timesteps` i64 [N] and, for a class-conditional model, `class_labels` i64 [N];
OUT gets `output`. With --gradients IN also holds `target`, and OUT gets `loss` and `grad.<key>`.

Example:
  ddpm forward runs/quickstart --input in.safetensors --to out.safetensors"
)]
pub struct ForwardArgs {
    /// A run directory, a checkpoint, a diffusers folder or hf://owner/name
    #[arg(value_parser = path())]
    pub model: PathBuf,
    /// The tensors to read
    #[arg(long, value_name = "IN.safetensors", value_parser = path())]
    pub input: PathBuf,
    /// The tensors to write
    #[arg(long, value_name = "OUT.safetensors", value_parser = path())]
    pub to: PathBuf,
    /// Also the mean squared error and its gradients
    #[arg(long)]
    pub gradients: bool,
    /// Use the weights of the last step instead of their moving average
    #[arg(long)]
    pub raw: bool,
}

/// A path, with `~` and variables at its start as in a configuration.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path| match path.to_str() {
        Some(text) => source(text).map(PathBuf::from),
        None => Ok(path.into()),
    })
}

/// A place of data, likewise. The message names no path, because clap's does.
pub(super) fn source(text: &str) -> Result<String, String> {
    expanded(text).map_err(|error| error.reason())
}

/// Where a run resumes from, which may be a path.
fn resume(text: &str) -> Result<Resume, String> {
    source(text).map(|text| text.as_str().into())
}

/// A number of things: at least 1.
pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "expected a whole number, 1 or more".to_owned())
}

/// A length of time: more than 0.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example_in_its_help() {
        fn check(command: &clap::Command) {
            let leaf = command.get_subcommands().next().is_none();
            let shown = command.get_after_help().is_some_and(|help| help.to_string().contains(" ddpm "));
            assert!(!leaf || shown, "{} has no example", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn what_to_bench_may_be_left_out() {
        for line in ["ddpm bench my.toml", "ddpm bench step my.toml"] {
            let Command::Bench(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("{line}") };
            assert_eq!((args.what, args.config), (BenchKind::Step, "my.toml".into()));
        }
    }

    #[test]
    fn options_of_train_become_settings_of_the_configuration() {
        let line = "ddpm train my.toml --set train.lr=1 --device cuda --run-dir there --resume never";
        let Command::Train(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!() };
        let settings = args.settings();
        let keys: Vec<_> = settings.iter().map(|setting| (setting.key.as_str(), setting.value.as_str())).collect();
        assert_eq!(keys, [("train.lr", "1"), ("run.device", "cuda:0"), ("run.dir", "there")]);
        assert_eq!(args.resume, Resume::Never);
    }
}
