//! SIGKILL at any time loses only time: restarted until done, the run ends as if it had never stopped. `scripts/torture` kills more
//! often, and reports what that cost.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_tests::diffusers::files;
use ddpm_tests::{Ddpm, Place, Running, assert_same_run, fresh_run, trained_run};

/// Kills, and the seed of their moments; [`setting`] changes both.
const KILLS: u64 = 30;
const SEED: u64 = 20;
/// A run must not end before its last kill.
const STEPS_PER_KILL: u64 = 8;
/// How long a whole run of many kills may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// A save every other step, of a network with many weights and little to compute, so that a save is going on most of the
/// time.
const SETTINGS: [&str; 7] = [
    "data.image_size=8",
    "model.block_out_channels=[32, 48]",
    "checkpoint.every=2",
    "checkpoint.keep_every=50",
    "sample.every=7",
    "log.every=3",
    "train.lr=1e-4",
];

/// The number in this variable, or the usual one.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

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
    fn drawn(seed: u64, kill: u64) -> Self {
        let philox = Philox::new(seed, Purpose::Sample);
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
                running.wait_for_stderr("to step ");
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

/// The work that a kill threw away: since the newest checkpoint, or since the process began if that was later.
fn lost(run: &Place, began: Instant) -> Duration {
    let saved = run.checkpoints().into_iter().rfind(|name| name.starts_with("step-"));
    let manifest = |name| fs::metadata(run.path(format!("runs/tiny/checkpoints/{name}/MANIFEST.json")));
    let since_save = saved.and_then(|name| manifest(name).ok()?.modified().ok()?.elapsed().ok());
    since_save.map_or(began.elapsed(), |since| since.min(began.elapsed()))
}

#[test]
fn a_run_killed_at_random_moments_equals_one_that_was_not_to_the_bit() {
    let (kills, seed) = (setting("DDPM_TORTURE_KILLS", KILLS), setting("DDPM_TORTURE_SEED", SEED));
    let steps = format!("train.steps={}", STEPS_PER_KILL * kills);
    let run = fresh_run(&SETTINGS).with_setting(&steps);
    let (mut inside_a_save, mut thrown_away) = (0, Vec::new());
    for kill in 0..kills {
        let moment = Moment::drawn(seed, kill);
        let (began, mut running) = (Instant::now(), run.train().spawn());
        moment.wait(&mut running, &run);
        assert!(running.kill(), "the run ended before kill {kill} at {moment:?}: too few steps");
        thrown_away.push(lost(&run, began).as_secs_f64());
        inside_a_save += u64::from(is_saving(&run));
    }
    assert!(inside_a_save >= kills / 4, "only {inside_a_save} of {kills} kills fell into a save");
    run.train().spawn().wait(LIMIT).has_code(0).stdout_has("done");
    assert!(!is_saving(&run), "{:?}", run.checkpoints());
    let whole = fresh_run(&SETTINGS).with_setting(&steps);
    whole.train().spawn().wait(LIMIT).has_code(0).stdout_has("done");
    assert_same_run(&run, &whole);
    assert!(starts(&run.path("runs/tiny/run.json")) > kills as usize / 2);
    let (mean, most) =
        (thrown_away.iter().sum::<f64>() / kills as f64, thrown_away.iter().copied().fold(0.0, f64::max));
    println!(
        "{kills} kills survived (seed {seed}), {inside_a_save} of them inside a save; work lost per kill: {mean:.3} s in the mean, \
         {most:.3} s at most"
    );
}

/// How many starts `run.json` lists: all that came far enough to be recorded.
fn starts(record: &Path) -> usize {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    1 + record["restarts"].as_array().unwrap().len()
}

/// Kills a command at these times after its start, as long as it has not ended.
fn kill_after(command: &Ddpm, delays: impl Iterator<Item = u64>) -> usize {
    delays
        .filter(|delay| {
            let running = command.spawn();
            std::thread::sleep(Duration::from_millis(*delay));
            running.kill()
        })
        .count()
}

#[test]
fn a_killed_export_leaves_no_folder_and_the_same_command_makes_a_whole_one() {
    let run = trained_run(&["train.steps=2", "sample.every=0", "checkpoint.every=0"]);
    run.ddpm("export runs/tiny --to whole --samples 16").succeeds();
    let export = run.ddpm("export runs/tiny --to out --samples 16");
    let mut killed = 0;
    for delay in (0..400).step_by(20) {
        killed += kill_after(&export, [delay].into_iter());
        if run.exists("out") {
            break;
        }
    }
    assert!(killed >= 3, "only {killed} kills");
    if !run.exists("out") {
        export.succeeds();
    }
    let but_card = |folder| {
        let mut files = files(&run, folder);
        files.retain(|(path, _)| path != "README.md");
        files
    };
    assert_eq!(but_card("out"), but_card("whole"));
    let leftovers = run.names("").into_iter().filter(|name| name.starts_with(".tmp")).count();
    assert_eq!(leftovers, 0, "{:?}", run.names(""));
}

#[test]
fn images_are_written_as_they_are_made_and_the_same_command_goes_on() {
    let run = trained_run(&["train.steps=2", "sample.every=0", "checkpoint.every=0"]);
    let sample = |out: &str, seed: u64| {
        run.ddpm(&format!("sample runs/tiny --num 60 --batch-size 2 --steps 20 --seed {seed} --out {out}/"))
    };
    sample("whole", 0).succeeds();
    let is_picture = |name: &&String| name.ends_with(".png") && !name.starts_with('.');
    let pictures = |out: &str| run.names(out).iter().filter(is_picture).count();
    for enough in [4, 20] {
        let mut running = sample("images", 0).spawn();
        assert!(running.wait_until(|| pictures("images") >= enough), "it ended");
        assert!(running.kill());
    }
    let there = pictures("images");
    sample("images", 0).succeeds().stderr_has(&format!("{there} of 60 images are in images/ already"));
    let names =
        |out: &str| run.files(out).into_iter().map(|(path, bytes)| (path.replace(out, ""), bytes)).collect::<Vec<_>>();
    assert!(names("images") == names("whole"), "{:?}", run.names("images"));

    // Images of another command are neither taken for its own nor replaced.
    let mut running = sample("other", 1).spawn();
    assert!(running.wait_until(|| (1..50).contains(&pictures("other"))), "it ended");
    assert!(running.kill());
    let before = names("other");
    sample("other", 2).fails_with(2).stderr_has("is there already");
    assert!(names("other") == before);
    sample("other", 1).succeeds().stderr_has("are in other/ already");
}
