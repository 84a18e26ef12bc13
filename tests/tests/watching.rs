//! `ddpm watch`: one look as text, and the view that follows a run in a terminal.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ddpm_tests::{Place, assert_fields, ddpm_binary, fresh_run, trained_run};
use serde_json::json;

/// A run that does nothing but train: another phase would be seen in between, and of the next one only the letters that differ.
const TRAINING: [&str; 4] = ["train.steps=100_000", "log.every=1", "checkpoint.every=0", "sample.every=0"];

const SOON: Duration = Duration::from_secs(30);

#[test]
fn one_look_at_a_finished_run_is_plain_text_with_all_that_matters() {
    let run = trained_run(&["log.every=1"]);
    let seen = run.ddpm("watch runs/tiny --once").succeeds();
    seen.expect(!seen.stdout.contains('\x1b'), "no escape codes");
    seen.expect(seen.stdout.lines().count() <= 30, "a page");
    let seen = seen.stdout_has("tiny  done").stdout_has("step 40/40, 100%").stdout_has("step-000000040");
    seen.stdout_has("loss 0.").stdout_has("images/s ").stdout_has("lr 0.001").stdout_has("gradient ").stdout_has("⠉");
    let document = run.ddpm("watch runs/tiny").json();
    assert_fields(
        &document,
        "name, state, step, steps, loss, lr, grad_norm, images_per_s, data_wait, sample, warnings",
    );
    assert_eq!((&document["state"], &document["step"]), (&json!("done"), &json!(40)));
    run.ddpm("watch nowhere").fails_with(2).stderr_has("nowhere: there is no run");
}

#[test]
fn without_a_terminal_it_looks_once() {
    let run = trained_run(&["train.steps=4"]);
    run.ddpm("watch runs/tiny").succeeds().stdout_has("tiny  done");
}

#[test]
fn a_run_is_seen_while_it_goes_on_and_after_it_was_killed() {
    let run = fresh_run(&TRAINING);
    let mut running = run.train().spawn();
    running.wait_for_stderr("step 12/");
    // Its status is written every few seconds.
    let look = || run.ddpm("watch runs/tiny --once").succeeds();
    assert!(running.wait_until(|| look().stdout.contains(" left")), "the run ended");
    let _ = look().stdout_has("tiny  training").stdout_has("process ");
    assert!(running.kill());
    run.ddpm("watch runs/tiny --once").succeeds().stdout_has("tiny  killed");
}

#[test]
fn why_a_run_failed_and_its_warnings_are_shown() {
    let run = fresh_run(&["train.lr=1e30", "train.max_bad_steps=0"]);
    run.train().fails_with(5);
    run.ddpm("watch runs/tiny --once")
        .succeeds()
        .stdout_has("tiny  failed")
        .stdout_has("nothing logged yet")
        .stdout_has("training diverged")
        .stdout_has("last warnings");
}

#[test]
fn escape_codes_in_names_and_messages_are_shown_and_not_obeyed() {
    let run = trained_run(&["train.steps=4"]);
    std::fs::rename(run.path("runs/tiny"), run.path("runs/a\x1b[2Jb")).unwrap();
    let evil =
        json!({"time": "2026-11-27T09:12:44.310Z\x1b[1A", "level": "warning", "step": 3, "message": "x\x1b]0;y\x07"});
    run.write("runs/a\x1b[2Jb/log.jsonl", evil.to_string() + "\n");
    let seen = run.ddpm("watch --once").arg("runs/a\x1b[2Jb").succeeds();
    seen.expect(!seen.stdout.contains('\x1b') && !seen.stdout.contains('\x07'), "no control characters");
    let _ = seen.stdout_has("a\\u{1b}[2Jb").stdout_has("x\\u{1b}]0;y");
}

/// `ddpm watch runs/tiny` in a terminal of its own, which `script` makes; what it writes goes to the file `seen`.
struct InTerminal<'a> {
    place: &'a Place,
    script: Child,
}

impl<'a> InTerminal<'a> {
    fn start(place: &'a Place) -> Self {
        // Those of an earlier one.
        for file in ["seen", "pid"] {
            let _ = std::fs::remove_file(place.path(file));
        }
        let line = "stty cols 100 rows 30; echo $$ > pid; exec \"$DDPM\" watch runs/tiny";
        let script = Command::new("script")
            .args(["-qfec", line, "seen"])
            .env("DDPM", ddpm_binary())
            .env("TERM", "xterm")
            .env("COLORTERM", "truecolor")
            .env_remove("NO_COLOR")
            .env("SHELL", "/bin/sh")
            .current_dir(place.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { place, script };
        started.wait_until("the first frame", |seen| seen.contains("\x1b[?1049h") && seen.contains("tiny"));
        started
    }

    fn seen(&self) -> String {
        std::fs::read(self.place.path("seen"))
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into())
    }

    #[track_caller]
    fn wait_until(&self, what: &str, happened: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !happened(&self.seen()) {
            assert!(start.elapsed() < SOON, "no {what} in {:?}", self.seen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn types(&mut self, keys: &[u8]) {
        self.script.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    fn pid(&self) -> String {
        self.place.text("pid").trim().to_owned()
    }

    /// The exit code of the command; by then the terminal must be as it was.
    fn ends(mut self) -> Option<i32> {
        self.wait_until("way back", |seen| seen.contains("\x1b[?1049l") && seen.contains("\x1b[?25h"));
        drop(self.script.stdin.take());
        let start = Instant::now();
        while start.elapsed() < SOON {
            if let Some(status) = self.script.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it has given the terminal back and does not end");
    }
}

impl Drop for InTerminal<'_> {
    fn drop(&mut self) {
        // It has usually ended; an error cannot be reported here.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

#[test]
fn a_terminal_shows_colours_and_is_given_back_when_a_key_or_a_signal_ends_it() {
    let run = trained_run(&["train.steps=4", "log.every=1"]);
    let mut typed = InTerminal::start(&run);
    typed.wait_until("picture", |seen| seen.contains("▀") && seen.contains(";38;2;"));
    typed.types(b"q");
    assert_eq!(typed.ends(), Some(0));
    let mut interrupted = InTerminal::start(&run);
    interrupted.types(b"\x03");
    assert_eq!(interrupted.ends(), Some(0));
    let signalled = InTerminal::start(&run);
    Command::new("kill").args(["-TERM", &signalled.pid()]).status().unwrap();
    assert_eq!(signalled.ends(), Some(0));
}

#[test]
fn a_terminal_that_is_closed_ends_the_watch() {
    let run = trained_run(&["train.steps=4"]);
    let mut closed = InTerminal::start(&run);
    let process = format!("/proc/{}", closed.pid());
    closed.script.kill().unwrap();
    closed.script.wait().unwrap();
    let start = Instant::now();
    while std::path::Path::new(&process).exists() {
        assert!(start.elapsed() < SOON, "it goes on without a terminal");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_terminal_follows_a_run_that_goes_on() {
    let run = fresh_run(&TRAINING);
    let mut running = run.train().spawn();
    running.wait_for_stderr("step 12/");
    let mut watch = InTerminal::start(&run);
    watch.wait_until("phase", |seen| seen.contains("training"));
    assert!(running.kill());
    watch.wait_until("end of the run", |seen| seen.contains("killed"));
    watch.types(b"q");
    assert_eq!(watch.ends(), Some(0));
}
