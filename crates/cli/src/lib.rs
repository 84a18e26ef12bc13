//! The program `ddpm`: from the command line to a result on stdout and an exit code. Only this crate knows arguments,
//! terminals, signals and exit codes.
//!
//! | module | what |
//! | --- | --- |
//! | [`args`] | the whole command line |
//! | [`failure`], `hints` | exit codes; how an error is reported, and what to type about it |
//! | [`output`] | results as text or JSON |
//! | `listen` | the crates' messages, on stderr, in `log.jsonl` and in a trace |
//! | `signals`, `threads` | what signals ask a run for; how many threads compute |
//! | the others | a command each, or a part of one |

pub mod args;
mod bench;
mod check;
mod compare;
mod config;
#[cfg(any(feature = "plot", feature = "watch"))]
#[cfg_attr(not(feature = "plot"), allow(dead_code, reason = "a terminal shows less than a picture"))]
mod curves;
mod data;
mod doctor;
mod eval;
mod exchange;
pub mod failure;
mod fork;
mod forward;
mod hints;
mod invert;
mod launch;
mod listen;
pub mod output;
mod pack;
mod places;
#[cfg(feature = "plot")]
mod plot;
mod push;
mod runs;
mod sample;
mod schedule;
mod schedule_plot;
mod series;
mod signals;
mod threads;
mod train;
mod trajectory;
#[cfg(feature = "watch")]
mod watch;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use clap::Parser as _;
use clap::error::ErrorKind;
use ddpm_run::secrets::masked;

use crate::failure::{ExitCode, Failure, Outcome, after_panic, install_panic_hook};
use crate::listen::screen::Screen;
use crate::listen::{Shown, Trace, listen};
use args::{Cli, Command, ConfigCommand, DataCommand, EvalCommand};
pub use output::{Align, Output, Table};

/// The whole program.
pub fn main() -> std::process::ExitCode {
    install_panic_hook();
    ddpm_run::disk::limit_modes();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_a_command(&error),
    };
    let verbosity = i16::from(cli.global.verbose) - i16::from(cli.global.quiet);
    let (screen, shown) = (Arc::new(Screen::stderr()), Shown::from_environment(verbosity));
    let output = Output::new(cli.global.json, &screen, shown.progress());
    match listened(cli.command, &output, &screen, shown) {
        Ok(outcome) => outcome.into(),
        Err(failure) => {
            output.failure(&failure);
            failure.code.into()
        }
    }
}

/// Runs the command with all its listeners.
fn listened(command: Command, output: &Output, screen: &Arc<Screen>, shown: Shown) -> Result<Outcome, Failure> {
    let trace = Trace::create(command.trace())?;
    listen(screen, shown, &trace);
    // The command's values are not used afterwards, so no half-changed value can be seen.
    let run = || threads::start().and_then(|()| dispatch(command, output));
    let outcome = catch_unwind(AssertUnwindSafe(run));
    trace.finish();
    outcome.unwrap_or_else(|_| Err(after_panic()))
}

fn dispatch(command: Command, output: &Output) -> Result<Outcome, Failure> {
    match command {
        Command::Train(args) => return train::run(&args, output),
        Command::Launch(args) => return launch::run(&args),
        Command::Runs(args) => runs::run(&args, output)?,
        #[cfg(feature = "plot")]
        Command::Plot(args) => plot::run(&args, output)?,
        #[cfg(feature = "watch")]
        Command::Watch(args) => watch::run(&args, output)?,
        Command::Compare(args) => compare::run(&args, output)?,
        Command::Fork(args) => fork::run(&args, output)?,
        Command::Sample(args) => sample::run(&args, output)?,
        Command::Eval(EvalCommand::Nll(args)) => return eval::nll(&args, output),
        Command::Data(DataCommand::Inspect(args)) => return data::inspect(&args, output),
        Command::Data(DataCommand::Pack(args)) => pack::run(&args, output)?,
        Command::Config(ConfigCommand::Init(args)) => config::init(&args, output)?,
        Command::Config(ConfigCommand::Show(args)) => config::show(&args, output)?,
        Command::Config(ConfigCommand::Check(args)) => return check::check(&args, output),
        Command::Doctor => doctor::run(output)?,
        Command::Bench(args) => bench::run(&args, output)?,
        Command::Schedule(args) => schedule::run(&args, output)?,
        Command::Forward(args) => forward::run(&args, output)?,
        Command::Export(args) => exchange::export(&args, output)?,
        Command::Push(args) => push::run(&args, output)?,
        Command::Import(args) => exchange::import(&args, output)?,
    }
    Ok(Outcome::Done)
}

/// Handles `--help` and `--version`, which are no errors, and invalid command lines.
fn not_a_command(error: &clap::Error) -> std::process::ExitCode {
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    // The command line did not parse, so `--json` is looked for by hand.
    let json = std::env::args_os().any(|arg| arg == "--json");
    if json && !asked_for {
        Output::new(true, &Arc::new(Screen::stderr()), false).failure(&usage_failure(error));
    } else {
        match masked(&error.to_string()) {
            // Fails only if the stream is closed.
            Cow::Borrowed(_) => {
                let _ = error.print();
            }
            Cow::Owned(text) => eprint!("{text}"),
        }
    }
    if asked_for { std::process::ExitCode::SUCCESS } else { ExitCode::Usage.into() }
}

fn usage_failure(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim();
    let (message, hint) = text.split_once("\n\n").unwrap_or((text, "ddpm --help"));
    Failure::new(ExitCode::Usage, message).hint(hint.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_becomes_a_failure_with_message_and_hint() {
        let Err(error) = Cli::try_parse_from(["ddpm", "train", "my.toml", "--max-steps", "0"]) else {
            panic!("accepted")
        };
        let failure = usage_failure(&error);
        assert_eq!(failure.code, ExitCode::Usage);
        assert!(failure.message.contains("invalid value '0' for '--max-steps <N>'"), "{failure}");
    }
}
