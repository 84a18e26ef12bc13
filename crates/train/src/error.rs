//! How a command ends when it cannot do what was asked: one [`Failure`] with an exit code, a message, its causes and a hint.
//!
//! Every error type of the workspace becomes a `Failure` at the edge of a command; only here is decided how it looks
//! on a terminal and in JSON, so that all errors look alike. The codes are part of the interface: scripts rely on them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use ddpm_data::DataError;
use ddpm_kernels::KernelError;
use ddpm_model::ModelError;
use ddpm_model::diffusion::DiffusionError;
use ddpm_model::unet::UNetConfigError;
use serde_json::json;

#[cfg(feature = "hub")]
use crate::hub::HubError;
use crate::report::ReportError;
use ddpm_run::RunError;
use ddpm_run::checkpoint::CheckpointError;

/// The exit codes of `ddpm`, apart from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Anything that has no code of its own, and bugs.
    Other = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The data cannot be read.
    Data = 3,
    /// There is no such device, or it ran out of memory.
    Device = 4,
    /// Training diverged: the loss or a gradient is not finite.
    Diverged = 5,
    /// A checkpoint or a model cannot be read or does not fit.
    Checkpoint = 6,
    /// The Hugging Face hub refused or cannot be reached.
    Hub = 7,
    /// Another process holds the run directory.
    Locked = 8,
    /// Stopped early, with a checkpoint written; the same command goes on.
    Stopped = 75,
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        let code = if error.is_setting() { ExitCode::Usage } else { ExitCode::Data };
        Self::from_error(code, &error).maybe_hint(error.help())
    }
}

impl From<DiffusionError> for Failure {
    fn from(error: DiffusionError) -> Self {
        let code = if matches!(error, DiffusionError::Setting { .. }) { ExitCode::Usage } else { ExitCode::Other };
        Self::from_error(code, &error).maybe_hint(error.help())
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::from(ModelError::from(error))
    }
}

impl From<UNetConfigError> for Failure {
    fn from(error: UNetConfigError) -> Self {
        Self::from(ModelError::from(error))
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        match &error {
            ModelError::Config(setting) => Self::from_error(ExitCode::Usage, &error).maybe_hint(setting.help()),
            ModelError::Input { .. } | ModelError::Labels { .. } | ModelError::Class { .. } => {
                Self::from_error(ExitCode::Usage, &error)
            }
            ModelError::NotFinite { .. } => Self::from_error(ExitCode::Diverged, &error),
            ModelError::MissingTensor { .. } | ModelError::TensorShape { .. } => {
                Self::from_error(ExitCode::Checkpoint, &error)
            }
            _ if error.is_out_of_memory() => Self::from_error(ExitCode::Device, &error)
                .of_full_memory()
                .hint("compute fewer images at once: a smaller train.micro_batch or --batch-size"),
            ModelError::Kernel(KernelError::Setting { .. }) => {
                Self::from_error(ExitCode::Usage, &error).hint("several are separated by commas; unset, nothing is off")
            }
            ModelError::Kernel(KernelError::Gpu { .. }) => Self::from_error(ExitCode::Device, &error)
                .hint("`ddpm doctor` shows which of NVIDIA's libraries are there; --device cpu needs none"),
            _ => Self::from_error(ExitCode::Other, &error),
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        Self::from_error(ExitCode::Checkpoint, &error).hint(error.help())
    }
}

#[cfg(feature = "hub")]
impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        // A full disk is not the hub's.
        let code = if matches!(error, HubError::Disk { .. }) { ExitCode::Other } else { ExitCode::Hub };
        Self::from_error(code, &error).hint(error.help())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let code = if matches!(error, RunError::Locked { .. }) { ExitCode::Locked } else { ExitCode::Other };
        Self::from_error(code, &error).hint(error.help())
    }
}

impl From<ReportError> for Failure {
    fn from(error: ReportError) -> Self {
        Self::from_error(ExitCode::Other, &error).hint(error.help())
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// How a command ended that has nothing more to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked is done: exit code 0.
    Done,
    /// Stopped by a signal or a time limit with a checkpoint written: exit code 75.
    Stopped,
    /// There was a result to show, but also a failure, which was told beside it: its exit code.
    Failed(ExitCode),
}

impl From<Outcome> for std::process::ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Stopped => ExitCode::Stopped.into(),
            Outcome::Failed(code) => code.into(),
        }
    }
}

/// Why a command failed, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: ExitCode,
    /// What went wrong: the file, the key, what was found, what was expected.
    pub message: String,
    /// What led to it, outermost first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether memory was full, so that less at once may succeed.
    pub full_memory: bool,
}

impl Failure {
    /// A failure with a message and nothing else.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hint: None, full_memory: false }
    }

    /// A failure that says what an error says, with the chain of its sources as causes.
    pub fn from_error(code: ExitCode, error: &(dyn Error + 'static)) -> Self {
        Self { causes: chain(error.source()), ..Self::new(code, error.to_string()) }
    }

    /// A failure with an own message, caused by `error`.
    pub fn caused_by(code: ExitCode, message: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        Self { causes: chain(Some(error)), ..Self::new(code, message) }
    }

    /// The same failure, for want of memory.
    #[must_use]
    pub(crate) fn of_full_memory(self) -> Self {
        Self { full_memory: true, ..self }
    }

    /// The same failure with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure with advice, if there is any.
    #[must_use]
    pub fn maybe_hint(self, hint: Option<impl Into<String>>) -> Self {
        Self { hint: hint.map(Into::into).or(self.hint), ..self }
    }

    /// The document that `--json` prints: `{"error": {"code", "message", "causes", "hint"}}`.
    pub fn document(&self) -> serde_json::Value {
        json!({"error": {
            "code": self.code as u8,
            "message": self.message,
            "causes": self.causes,
            "hint": self.hint,
        }})
    }
}

/// The text for a terminal: `error: ...`, then `cause: ...` and `help: ...` lines, indented.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        let labelled =
            self.causes.iter().map(|cause| ("cause", cause)).chain(self.hint.iter().map(|hint| ("help", hint)));
        for (label, text) in labelled {
            write!(f, "\n  {label}: {}", text.replace('\n', "\n        "))?;
        }
        Ok(())
    }
}

/// An error and what led to it, in one line.
pub(crate) fn in_one_line(error: &(dyn Error + 'static)) -> String {
    chain(Some(error)).join(": ")
}

/// The messages of an error and its sources, outermost first.
///
/// Many libraries repeat the text of the source in their own; such a repetition is left out.
fn chain(first: Option<&(dyn Error + 'static)>) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    let mut next = first;
    while let Some(error) = next {
        let text = error.to_string();
        if causes.last().is_none_or(|last| !last.ends_with(&text)) {
            causes.push(text);
        }
        next = error.source();
    }
    causes
}

/// What the panic hook last heard.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Takes panics off stderr and remembers the last one for [`after_panic`].
///
/// Parsers of other people run where a panic is caught and becomes an ordinary error; the standard message would
/// frighten without reason.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let mut text = panic.to_string();
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            let _ = write!(text, "\n{backtrace}");
        }
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }));
}

/// The failure to show after a panic: always a bug of this program, never of its input.
pub fn after_panic() -> Failure {
    let heard = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let issues = concat!(env!("CARGO_PKG_REPOSITORY"), "/issues");
    Failure {
        causes: heard.into_iter().collect(),
        ..Failure::new(ExitCode::Other, format!("this is a bug in ddpm {}", env!("CARGO_PKG_VERSION")))
            .hint(format!("please report the command and this text at {issues}; RUST_BACKTRACE=1 tells more"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the settings")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_is_printed_with_its_causes_and_help() {
        let error = Outer(std::io::Error::other("disk on fire"));
        let failure = Failure::from_error(ExitCode::Data, &error).hint("call for help");
        let want = "error: cannot read the settings\n  cause: disk on fire\n  help: call for help";
        assert_eq!(failure.to_string(), want);
    }

    #[test]
    fn the_json_document_holds_code_message_causes_and_hint() {
        let error = std::io::Error::other("disk on fire");
        let failure = Failure::caused_by(ExitCode::Locked, "cannot start", &error);
        let want = json!({"error": {"code": 8, "message": "cannot start", "causes": ["disk on fire"], "hint": null}});
        assert_eq!(failure.document(), want);
    }

    #[test]
    fn a_cause_that_repeats_its_source_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading: {0}")]
        struct Repeats(#[source] std::io::Error);
        let error = Repeats(std::io::Error::other("gone"));
        assert_eq!(Failure::caused_by(ExitCode::Other, "no", &error).causes, ["reading: gone"]);
    }
}
