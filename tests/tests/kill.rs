//! SIGKILL at any time loses only time: restarted until done, the run ends as if it had never stopped.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_tests::{Place, Running, assert_same_run, fresh_run, trained_run};

const KILLS: u64 = 20;

/// A save every other step, of a network with many weights and little to compute, so that a save is going on most of the
/// time.
const SETTINGS: [&str; 8] = [
    "data.image_size=8",
    "model.block_out_channels=[32, 48]",
    "train.steps=160",
    "checkpoint.every=2",
    "checkpoint.keep_every=50",
    "sample.every=7",
    "log.every=3",
    "train.lr=1e-4",
];

/// When to kill. Steps are counted in the metrics, not in time, so that the test is the same on a fast and on a slow machine,
/// and the run cannot end before the last kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// After this time from the start, which may be before the first step.
    Starting(Duration),
    /// After this time from so many steps (in threes, as logged).
    Stepping(usize, Duration),
    /// After this time from the start of a save.
    Saving(Duration),
}

impl Moment {
    /// The moments are random, but the same in every run of the test.
    fn drawn(kill: u64) -> Self {
        let philox = Philox::new(20, Purpose::Sample);
        let below = |position, bound: u64| philox.below(kill, position, bound);
        let micros = |position, bound: u64| Duration::from_micros(below(position, bound));
        match kill % 4 {
            0 => Self::Starting(micros(0, 80_000)),
            1 => Self::Stepping(below(1, 4) as usize, micros(0, 8_000)),
            _ => Self::Saving(micros(0, 5_000)),
        }
    }

    fn wait(self, running: &mut Running, run: &Place) {
        let first = lines_logged(run);
        let delay = match self {
            Self::Starting(delay) => delay,
            Self::Stepping(lines, delay) => {
                running.wait_until(|| lines_logged(run) > first + lines);
                delay
            }
            Self::Saving(delay) => {
                // A leftover of an earlier kill is removed at the start: only a directory that appears later is a save.
                running.wait_for_stderr("to step 160");
                running.wait_until(|| is_saving(run));
                delay
            }
        };
        std::thread::sleep(delay);
    }
}

fn lines_logged(run: &Place) -> usize {
    let text = fs::read(run.path("runs/tiny/metrics.jsonl")).unwrap_or_default();
    text.iter().filter(|&&byte| byte == b'\n').count()
}

/// Whether a checkpoint is half written (or half deleted).
fn is_saving(run: &Place) -> bool {
    run.checkpoints().iter().any(|name| name.starts_with(".tmp-step-"))
}

#[test]
fn a_run_killed_at_twenty_random_moments_equals_one_that_was_not_to_the_bit() {
    let run = fresh_run(&SETTINGS);
    let mut inside_a_save = 0;
    for kill in 0..KILLS {
        let moment = Moment::drawn(kill);
        let mut running = run.train().spawn();
        moment.wait(&mut running, &run);
        assert!(running.kill(), "the run ended before kill {kill} at {moment:?}: too few steps");
        inside_a_save += u64::from(is_saving(&run));
    }
    assert!(inside_a_save >= 5, "only {inside_a_save} of {KILLS} kills fell into a save");
    run.train().succeeds();
    assert!(!is_saving(&run), "{:?}", run.checkpoints());
    assert_same_run(&run, &trained_run(&SETTINGS));
    assert!(starts(&run.path("runs/tiny/run.json")) > KILLS as usize / 2);
}

/// How many starts `run.json` lists: all that came far enough to be recorded.
fn starts(record: &Path) -> usize {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    1 + record["restarts"].as_array().unwrap().len()
}
