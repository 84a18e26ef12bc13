//! How a command ends when it cannot do what was asked: one [`Failure`] with an exit code, a message, its causes and a hint.
//!
//! Every error of the crates below becomes a `Failure` at the edge of a command: its kind becomes an exit code, its text the
//! message, and `hints` adds what to type. Only this module decides how it looks on a terminal and in JSON, so that all errors
//! look alike. The codes are part of the interface: scripts rely on them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use ddpm_data::DataError;
use ddpm_hub::HubError;
use ddpm_kernels::KernelError;
use ddpm_model::ModelError;
use ddpm_model::diffusion::DiffusionError;
use ddpm_model::unet::UNetConfigError;
use ddpm_run::secrets::masked;
use ddpm_train::config::{ConfigError, DeviceError};
use ddpm_train::error::chain;
use ddpm_train::report::ReportError;
use ddpm_train::{Error as TrainError, Kind};
use serde_json::json;

use crate::hints;

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
    /// The run did not go on, and its configuration asks for an end then (`run.exit_on_stall`); the same command goes on from
    /// the newest checkpoint. Or one of several ranks was lost, which ends all of them.
    Stalled = 76,
}

impl ExitCode {
    /// The code that another process of ours ended with.
    pub(crate) fn of(code: i32) -> Self {
        use ExitCode::{Checkpoint, Data, Device, Diverged, Hub, Locked, Other, Stalled, Stopped, Usage};
        let all = [Usage, Data, Device, Diverged, Checkpoint, Hub, Locked, Stopped, Stalled];
        all.into_iter().find(|known| *known as i32 == code).unwrap_or(Other)
    }
}

impl From<Kind> for ExitCode {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Setting => Self::Usage,
            Kind::Data => Self::Data,
            Kind::Device | Kind::Memory => Self::Device,
            Kind::Diverged => Self::Diverged,
            Kind::Model => Self::Checkpoint,
            Kind::Hub => Self::Hub,
            Kind::Held => Self::Locked,
            Kind::Lost => Self::Stalled,
            _ => Self::Other,
        }
    }
}

impl From<&TrainError> for Failure {
    fn from(error: &TrainError) -> Self {
        Self {
            code: error.kind().into(),
            message: hints::message(error),
            causes: error.causes(),
            hint: hints::hint(error),
        }
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        Self::from(&error)
    }
}

/// An error of any of the crates below.
macro_rules! from_errors {
    ($($error:ty),+) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                TrainError::from(error).into()
            }
        }
    )+};
}
from_errors!(
    ConfigError,
    DataError,
    DeviceError,
    DiffusionError,
    HubError,
    KernelError,
    ModelError,
    ReportError,
    UNetConfigError
);

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// How a command ended that has no failure left to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command succeeded: exit code 0.
    Done,
    /// Stopped by a signal or a time limit with a checkpoint written: exit code 75.
    Stopped,
    /// There was a result, and also a failure that was reported with it: its exit code.
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
    /// Its causes, outermost first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with a message and nothing else.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hint: None }
    }

    /// A failure with its own message, caused by `error`.
    pub fn caused_by(code: ExitCode, message: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        Self { causes: chain(Some(error)), ..Self::new(code, message) }
    }

    /// The same failure with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The document that `--json` prints: `{"error": {"code", "message", "causes", "hint"}}`.
    pub fn document(&self) -> serde_json::Value {
        json!({"error": {
            "code": self.code as u8,
            "message": masked(&self.message),
            "causes": self.causes.iter().map(|cause| masked(cause)).collect::<Vec<_>>(),
            "hint": self.hint.as_deref().map(masked),
        }})
    }
}

/// Secrets are masked here and in the document, at the one edge that every error passes. The text for a terminal: `error: ...`, then `cause: ...` and `help: ...` lines, indented.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", masked(&self.message))?;
        let labelled =
            self.causes.iter().map(|cause| ("cause", cause)).chain(self.hint.iter().map(|hint| ("help", hint)));
        for (label, text) in labelled {
            write!(f, "\n  {label}: {}", masked(text).replace('\n', "\n        "))?;
        }
        Ok(())
    }
}

/// The last panic that the hook recorded.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Stops panics from printing to stderr and records the last one for [`after_panic`].
///
/// Third-party parsers run where a panic is caught and becomes an ordinary error; the standard message would alarm for no
/// reason.
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
    Failure {
        causes: heard.into_iter().collect(),
        ..Failure::new(ExitCode::Other, format!("this is a bug in ddpm {}", env!("CARGO_PKG_VERSION")))
            .hint("please report the command and this text; RUST_BACKTRACE=1 tells more")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_printed_with_its_causes_and_help() {
        let error = std::io::Error::other("disk on fire");
        let failure = Failure::caused_by(ExitCode::Data, "cannot read the settings", &error).hint("call for help");
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
}
