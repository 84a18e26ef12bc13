//! One command, and how it ends.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::binary::ddpm_binary;
use crate::process::Running;

/// No command of these tests takes longer; one that hangs must fail, not wait.
const LIMIT: Duration = Duration::from_secs(120);

/// A command that has not been run yet.
#[derive(Clone, Debug)]
pub struct Ddpm {
    dir: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(String, String)>,
    /// The command that runs it, with its first arguments; none: itself.
    through: Vec<String>,
}

impl Ddpm {
    pub(crate) fn new<'a>(dir: &Path, args: impl Iterator<Item = &'a str>) -> Self {
        Self {
            dir: dir.to_owned(),
            args: args.map(OsString::from).collect(),
            environment: Vec::new(),
            through: Vec::new(),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// `--set key=value`
    #[must_use]
    pub fn set(self, setting: &str) -> Self {
        self.arg("--set").arg(setting)
    }

    /// `--max-steps N`
    #[must_use]
    pub fn max_steps(self, steps: u64) -> Self {
        self.arg("--max-steps").arg(steps.to_string())
    }

    /// Runs it in a folder of its place.
    #[must_use]
    pub fn in_folder(mut self, folder: &str) -> Self {
        self.dir = self.dir.join(folder);
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it as `nohup` does.
    #[must_use]
    pub fn ignoring_hangups(mut self) -> Self {
        self.through = vec!["nohup".to_owned()];
        self
    }

    /// Starts it so that a hangup ends it even where the tests were started by `nohup`.
    #[must_use]
    pub fn heeds_hangups(mut self) -> Self {
        self.through = vec!["env".to_owned(), "--default-signal=HUP".to_owned()];
        self
    }

    /// Starts it under this umask, such as `077`.
    #[must_use]
    pub fn umask(mut self, mask: &str) -> Self {
        self.through = vec!["sh".to_owned(), "-c".to_owned(), format!("umask {mask}; exec \"$0\" \"$@\"")];
        self
    }

    /// Runs it to its end, with any exit code.
    #[track_caller]
    pub fn run(&self) -> Finished {
        self.spawn().wait(LIMIT)
    }

    /// Runs it and expects exit code 0.
    #[track_caller]
    pub fn succeeds(&self) -> Finished {
        self.run().has_code(0)
    }

    /// Runs it with `--json`, expects exit code 0, and returns the document.
    #[track_caller]
    pub fn json(&self) -> Value {
        self.clone().arg("--json").succeeds().json()
    }

    /// Runs it and expects a failure: this exit code, an error with advice on stderr and nothing on stdout. Runs it once
    /// more with `--json` and expects the same failure as a document on stdout.
    #[track_caller]
    pub fn fails_with(&self, code: i32) -> Finished {
        let failed = self.run().has_code(code).stderr_has("error: ");
        failed.expect(failed.stdout.is_empty(), "nothing on stdout");
        let written = self.clone().arg("--json").run().has_code(code);
        let error = &written.json()["error"];
        written.expect(error["code"] == code, "error.code is the exit code");
        let text = |part: &str| error[part].as_str().unwrap_or_default().lines().next().unwrap_or_default();
        written.expect(!text("message").is_empty(), "error.message");
        failed
            .expect(failed.stderr.contains(text("message")), &format!("error.message on stderr: {}", text("message")));
        let advises = !text("hint").is_empty() || text("message").contains("expected");
        written.expect(advises, "a message that says what was expected, or a hint that says what to do");
        written.expect(error["causes"].is_array(), "error.causes");
        failed
    }

    /// Runs it and expects this exit code of a command that has a result all the same.
    #[track_caller]
    pub fn fails_with_a_result(&self, code: i32) -> Finished {
        self.run().has_code(code).stderr_has("error: ")
    }

    /// Starts it.
    #[track_caller]
    pub fn spawn(&self) -> Running {
        let mut command = match &self.through[..] {
            [] => Command::new(ddpm_binary()),
            [outer, args @ ..] => {
                let mut command = Command::new(outer);
                command.args(args).arg(ddpm_binary());
                command
            }
        };
        command.args(&self.args).current_dir(&self.dir);
        // The environment must not change a result.
        command
            .env_clear()
            .envs(["PATH", "TMPDIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.env("RAYON_NUM_THREADS", "2").env("NO_COLOR", "1").env("HOME", &self.dir);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        Running::start(command, self.to_string(), self.dir.clone())
    }
}

impl fmt::Display for Ddpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.environment {
            write!(f, "{name}={value} ")?;
        }
        write!(f, "ddpm")?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", arg.to_string_lossy()))
    }
}

/// A command that has ended. Each expectation that is not met fails the test and prints all of this.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line as typed.
    pub command: String,
    /// Where it ran.
    pub dir: PathBuf,
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails the test with everything that is known, unless `ok`.
    #[track_caller]
    pub fn expect(&self, ok: bool, expected: &str) {
        let Self { command, dir, code, stdout, stderr } = self;
        let code = code.map_or("none (a signal)".to_owned(), |code| code.to_string());
        let dir = dir.display();
        assert!(
            ok,
            "expected: {expected}\n$ {command}\nin {dir}\nexit code: {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---"
        );
    }

    /// Expects this exit code; with any code, a panic is a bug.
    #[track_caller]
    #[must_use]
    pub fn has_code(self, code: i32) -> Self {
        self.expect(self.code == Some(code), &format!("exit code {code}"));
        for words in ["panicked at", "this is a bug", "RUST_BACKTRACE"] {
            self.expect(!self.stderr.contains(words) && !self.stdout.contains(words), &format!("no `{words}`"));
        }
        self
    }

    /// Expects this text on stderr.
    #[track_caller]
    pub fn stderr_has(self, text: &str) -> Self {
        self.expect(self.stderr.contains(text), &format!("`{text}` on stderr"));
        self
    }

    /// Expects that this text is not on stderr.
    #[track_caller]
    pub fn stderr_lacks(self, text: &str) -> Self {
        self.expect(!self.stderr.contains(text), &format!("no `{text}` on stderr"));
        self
    }

    /// Expects this text on stdout.
    #[track_caller]
    pub fn stdout_has(self, text: &str) -> Self {
        self.expect(self.stdout.contains(text), &format!("`{text}` on stdout"));
        self
    }

    /// Expects that the run resumed from this step.
    #[track_caller]
    pub fn resumes_at(self, step: u64) -> Self {
        self.stderr_has("going on from ").stderr_has(&format!("(step {step}) to step"))
    }

    /// The one JSON document on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        let document = serde_json::from_str(&self.stdout);
        self.expect(document.is_ok(), "one JSON document on stdout");
        document.unwrap_or_default()
    }
}

/// Asserts that a document has all of `fields`, names with a comma and a space between them.
#[track_caller]
pub fn assert_fields(document: &Value, fields: &str) {
    for field in fields.split(", ") {
        assert!(!document[field].is_null(), "no `{field}` in {document}");
    }
}
