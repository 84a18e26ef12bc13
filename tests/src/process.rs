//! A command while it runs.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::command::Finished;

/// The interval between two checks of a condition.
const POLL: Duration = Duration::from_micros(200);

/// See the module. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    dir: PathBuf,
    stdout: Stream,
    stderr: Stream,
}

/// A stream read on a thread of its own, so that neither blocks the other.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let shared = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut piece) {
                shared.lock().unwrap().extend_from_slice(&piece[..count]);
            }
        });
        Self { bytes, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn finish(&mut self) -> String {
        self.reader.take().map(JoinHandle::join);
        self.text()
    }
}

impl Running {
    #[track_caller]
    pub(crate) fn start(mut command: Command, line: String, dir: PathBuf) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, command: line, dir, stdout: Stream::read(stdout), stderr: Stream::read(stderr) }
    }

    /// Waits until `happened`, as long as the command runs; whether it happened.
    pub fn wait_until(&mut self, mut happened: impl FnMut() -> bool) -> bool {
        while !happened() {
            if self.child.try_wait().unwrap().is_some() {
                return happened();
            }
            sleep(POLL);
        }
        true
    }

    /// Waits for text on stderr.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, text: &str) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !self.stderr.text().contains(text) {
            let ended = self.child.try_wait().unwrap().is_some();
            assert!(!ended && Instant::now() < limit, "$ {}: no `{text}` in\n{}", self.command, self.stderr.text());
            sleep(POLL);
        }
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status().unwrap();
        assert!(sent.success(), "kill -{name}");
    }

    /// SIGKILL; false if it had ended before.
    pub fn kill(mut self) -> bool {
        let ended = self.child.try_wait().unwrap().is_some();
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        !ended && status.code().is_none()
    }

    /// Waits for the end; a command that takes longer than `limit` is killed and fails the test.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Finished {
        let start = Instant::now();
        let mut status: Option<ExitStatus> = None;
        while status.is_none() && start.elapsed() < limit {
            status = self.child.try_wait().unwrap();
            sleep(POLL);
        }
        if status.is_none() {
            self.child.kill().unwrap();
        }
        let finished = Finished {
            command: self.command.clone(),
            dir: self.dir.clone(),
            code: status.and_then(|status| status.code()),
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
        };
        finished.expect(status.is_some(), &format!("an end within {limit:?}"));
        finished
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended; an error cannot be reported here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
