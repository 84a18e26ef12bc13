//! Training with several processes: the same result as with one, one that writes, and the end of all where one is lost.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use ddpm_tests::{Ddpm, Finished, Place, Running, assert_same_run, fresh_run, trained_run};
use safetensors::SafeTensors;

const SOON: Duration = Duration::from_secs(60);
const LAST: &str = "runs/tiny/checkpoints/step-000000100";

/// A hundred steps of a batch of four images. The learning rate is not that of a toy: the gradient of a key's bias is nothing but rounding,
/// which AdamW makes as large as any other, so that it goes its own way with every number of ranks, by a part of the rate in each step.
const SETTINGS: [&str; 6] = [
    "train.steps=100",
    "train.lr=1e-4",
    "checkpoint.every=50",
    "sample.every=50",
    "log.every=25",
    "log.params_hash=true",
];

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// `train` as rank `rank` of `world`.
fn rank(train: Ddpm, rank: usize, world: usize, port: &str) -> Ddpm {
    train
        .env("RANK", &rank.to_string())
        .env("LOCAL_RANK", &rank.to_string())
        .env("WORLD_SIZE", &world.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("DDPM_PORT", port)
}

/// Starts all ranks of a run.
fn start(run: &Place, world: usize, with: impl Fn(Ddpm) -> Ddpm) -> Vec<Running> {
    let port = free_port();
    (0..world).map(|number| rank(with(run.train()), number, world, &port).spawn()).collect()
}

/// Trains with so many ranks to the end.
#[track_caller]
fn train(run: &Place, world: usize, with: impl Fn(Ddpm) -> Ddpm) -> Vec<Finished> {
    start(run, world, with).into_iter().map(|rank| rank.wait(SOON).has_code(0)).collect()
}

/// The largest difference between two files of weights.
fn difference(a: &Place, b: &Place, file: &str) -> f32 {
    let (a, b) = (a.read(&format!("{LAST}/{file}")), b.read(&format!("{LAST}/{file}")));
    let (a, b) = (SafeTensors::deserialize(&a).unwrap(), SafeTensors::deserialize(&b).unwrap());
    let numbers = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let mut largest = 0f32;
    for (name, tensor) in a.tensors() {
        let (a, b): (Vec<f32>, Vec<f32>) = (numbers(tensor.data()), numbers(b.tensor(&name).unwrap().data()));
        assert_eq!(a.len(), b.len(), "{name}");
        largest = a.iter().zip(&b).fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
    }
    largest
}

#[test]
fn one_two_and_four_ranks_learn_the_same_and_only_the_first_writes() {
    let alone = trained_run(&SETTINGS);
    for world in [2, 4] {
        let run = fresh_run(&SETTINGS);
        let finished = train(&run, world, |train| train);
        finished[0].expect(finished[0].stdout.contains("done: step 100"), "the result");
        for other in &finished[1..] {
            other.expect(other.stdout.is_empty() && other.stderr.is_empty(), "silence");
        }
        for file in ["model.safetensors", "ema-0.9.safetensors"] {
            let difference = difference(&alone, &run, file);
            assert!(difference < 1e-6, "{world} ranks, {file}: {difference}");
        }
        for folder in ["runs/tiny", "runs/tiny/checkpoints", "runs/tiny/samples"] {
            assert_eq!(run.names(folder), alone.names(folder), "{world} ranks");
        }
        assert_eq!(run.metrics().len(), alone.metrics().len());
        assert_eq!(run.text("runs/tiny/run.json").matches("\"command\"").count(), 1);
    }
}

#[test]
fn two_ranks_twice_are_the_same_to_the_bit() {
    let [a, b] = [(), ()].map(|()| {
        let run = fresh_run(&SETTINGS);
        train(&run, 2, |train| train);
        run
    });
    assert_same_run(&a, &b);
    assert!(a.metrics().iter().all(|line| line.contains("\"params_hash\":\"")), "{:?}", a.metrics());
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let alone = trained_run(&SETTINGS);
    let run = fresh_run(&SETTINGS);
    train(&run, 2, |train| train.max_steps(30));
    run.train().max_steps(60).succeeds().resumes_at(30);
    train(&run, 3, |train| train)[0].clone().resumes_at(60);
    let difference = difference(&alone, &run, "model.safetensors");
    assert!(difference < 1e-6, "{difference}");
}

#[test]
fn importance_sampling_learns_from_the_losses_of_all_ranks() {
    let settings =
        [&SETTINGS[..], &["loss.timestep_sampler=loss_second_moment", "diffusion.num_train_timesteps=4"]].concat();
    let settings = [&settings[..], &["sample.steps=2"]].concat();
    let alone = trained_run(&settings);
    let run = fresh_run(&settings);
    train(&run, 2, |train| train);
    let difference = difference(&alone, &run, "model.safetensors");
    assert!(difference < 1e-4, "{difference}");
}

/// A run without an end, of which every step is said.
fn endless() -> Place {
    fresh_run(&["train.steps=100_000", "log.every=1", "checkpoint.every=5", "sample.every=0", "run.rank_timeout=2"])
}

#[test]
fn a_rank_that_is_killed_ends_all_others_with_76_and_its_name_and_the_run_goes_on() {
    let run = endless();
    let mut ranks = start(&run, 3, |train| train);
    ranks[0].wait_for_stderr("step 7/");
    assert!(ranks.remove(1).kill());
    let killed = Instant::now();
    for other in ranks {
        other.wait(SOON).has_code(76).stderr_has("error: rank 1 (process ").stderr_has("its connection closed");
    }
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    // Rank 0 has saved what all had learnt.
    let newest = run.checkpoints().into_iter().filter_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok()).max();
    train(&run, 2, |train| train.max_steps(newest.unwrap() + 5))[0].clone().resumes_at(newest.unwrap());
}

#[test]
fn a_rank_that_hangs_ends_all_others_with_76_and_its_name() {
    let run = endless();
    let mut ranks = start(&run, 3, |train| train);
    ranks[0].wait_for_stderr("step 7/");
    ranks[2].signal("STOP");
    let stopped = Instant::now();
    let hung = ranks.pop();
    for other in ranks {
        other.wait(SOON).has_code(76).stderr_has("error: rank 2 (process ").stderr_has("no sign of life");
    }
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
    drop(hung);
}

#[test]
fn the_first_rank_is_named_too_where_it_is_lost() {
    let run = endless();
    let mut ranks = start(&run, 2, |train| train);
    ranks[0].wait_for_stderr("step 3/");
    assert!(ranks.remove(0).kill());
    ranks.remove(0).wait(SOON).has_code(76).stderr_has("error: rank 0 (process ");
}

#[test]
fn a_signal_to_any_rank_stops_all_of_them_at_the_same_step() {
    let run = endless();
    let mut ranks = start(&run, 2, |train| train.arg("--json"));
    ranks[0].wait_for_stderr("step 4/");
    ranks[1].signal("TERM");
    let others = ranks.pop().unwrap();
    let step = ranks.remove(0).wait(SOON).has_code(75).json()["step"].as_u64().unwrap();
    others.wait(SOON).has_code(75).stderr_lacks("error:");
    assert!(run.exists(&format!("runs/tiny/checkpoints/step-{step:09}/MANIFEST.json")), "{:?}", run.checkpoints());
}

#[test]
fn a_rank_with_another_configuration_is_refused_and_the_right_one_still_comes() {
    let run = fresh_run(&SETTINGS);
    let port = free_port();
    let first = rank(run.train(), 0, 2, &port).spawn();
    let other = rank(run.train().set("train.lr=0.5"), 1, 2, &port).run().has_code(2);
    other.stderr_has("refuses rank 1 (process ").stderr_has("its configuration is");
    rank(run.train(), 1, 2, &port).succeeds();
    first.wait(SOON).has_code(0).stderr_has("was refused: its configuration is");
}

#[test]
fn ranks_that_cannot_be_are_refused_before_anything_is_written() {
    let run = fresh_run(&[]);
    let port = free_port();
    let ranks = |number, world| rank(run.train(), number, world, &port);
    ranks(0, 5).fails_with(2).stderr_has("train.batch_size = 4 with 5 ranks: a rank would have no image");
    ranks(2, 2).fails_with(2).stderr_has("RANK = 2, but WORLD_SIZE = 2");
    run.train().env("RANK", "1").fails_with(2).stderr_has("RANK is set, but WORLD_SIZE is not");
    assert!(!run.exists("runs"));
}

/// `launch` with so many ranks of `run`.
fn launch(run: &Place, nproc: usize, options: &str, settings: &[&str]) -> Ddpm {
    let start = run.ddpm(&format!("launch --nproc {nproc} {options} -- train tiny.toml"));
    settings.iter().fold(start, |launch, setting| launch.set(setting))
}

/// Kills the process with this rank in the directory of `run`.
fn kill_rank(run: &Place, rank: usize) {
    let (variable, dir) = (format!("RANK={rank}"), run.path("").canonicalize().unwrap());
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let here = |process: &String| std::fs::read_link(format!("/proc/{process}/cwd")).is_ok_and(|cwd| cwd == dir);
    let is_it = |process: &String| {
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    let found: Vec<String> = processes.filter(here).filter(is_it).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(std::process::Command::new("kill").args(["-KILL", &found[0]]).status().unwrap().success());
}

#[test]
fn launch_starts_ranks_as_another_launcher_does_and_again_when_one_is_lost() {
    let other = fresh_run(&SETTINGS);
    train(&other, 2, |train| train);
    let run = fresh_run(&[]);
    let mut running = launch(&run, 2, "--max-restarts 1", &SETTINGS).spawn();
    running.wait_for_stderr("step 25/");
    kill_rank(&run, 1);
    let finished = running.wait(SOON).has_code(0).stdout_has("done: step 100");
    finished.stderr_has("rank 1 (process ").stderr_has("all are started again (1 of at most 1 times)");
    assert_same_run(&run, &other);
}

#[test]
fn launch_hands_signals_on_and_returns_the_code_of_the_cause() {
    let run = fresh_run(&[]);
    let mut running = launch(&run, 2, "", &["train.steps=100_000", "log.every=1", "sample.every=0"]).spawn();
    running.wait_for_stderr("step 3/");
    running.signal("TERM");
    running.wait(SOON).has_code(75).stdout_has("stopped by a signal");
    launch(&run, 2, "--max-restarts 3", &["data.source=nowhere"]).run().has_code(3).stderr_lacks("started again");
    run.ddpm("launch --nproc 2 -- doctor").run().has_code(2).stderr_has("expected `train`");
}
