//! `ddpm compare`: what two runs differ in: configuration, data, weights, curves. From their files alone.

mod curves;
mod text;

use std::collections::BTreeSet;
use std::path::Path;

use ddpm_run::checkpoint::{self, Claims};
use ddpm_run::{RunState, RunView};
use ddpm_train::config::{Resolved, TrainConfig, diff};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::CompareArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::runs::{names_of, open_run, unreadable};
use curves::{Curves, History};

/// Keys that two runs never share.
const OWN: [&str; 2] = ["run.name", "run.dir"];

/// The result.
#[derive(Serialize)]
struct Comparison {
    runs: [Run; 2],
    config: Vec<Difference>,
    data: Data,
    weights: Option<Weights>,
    curves: Curves,
}

/// One of the runs.
#[derive(Serialize)]
struct Run {
    name: String,
    state: RunState,
    step: u64,
    steps: u64,
    device: String,
    program_version: String,
    git_hash: Option<String>,
    created: String,
    /// Changes that it went on with: `key: old -> new`.
    accepted: Vec<String>,
    images_per_s: Option<f64>,
    data_wait: Option<f64>,
}

/// A key with two values.
#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    key: String,
    a: Value,
    b: Value,
    default: Value,
    /// Whether it can change what is learnt.
    changes_results: bool,
}

/// What is known of the data, from the newest checkpoints.
#[derive(Serialize)]
struct Data {
    /// None where a run has no checkpoint.
    same: Option<bool>,
    a: Option<DataOf>,
    b: Option<DataOf>,
}

/// The data of a run.
#[derive(PartialEq, Serialize)]
struct DataOf {
    fingerprint: String,
    images: Option<u64>,
}

/// The weights at the newest step of which both have a checkpoint.
#[derive(Serialize)]
struct Weights {
    step: u64,
    same: bool,
}

/// Compares the runs.
pub(super) fn run(args: &CompareArgs, output: &Output) -> Result<(), Failure> {
    let views = [open_run(&args.a)?, open_run(&args.b)?];
    let [a, b] = &views;
    let (config_a, config_b) = (load(a)?, load(b)?);
    let (history_a, history_b) = (read(a)?, read(b)?);
    let mut names = names_of(&views).into_iter();
    let mut described = |view: &RunView, config: &Resolved, history: &History| {
        Run::of(view, names.next().unwrap_or_default(), &config.config, history)
    };
    let comparison = Comparison {
        runs: [described(a, &config_a, &history_a), described(b, &config_b, &history_b)],
        config: differences(&config_a, &config_b),
        data: Data::of(a, b),
        weights: Weights::of(a, b),
        curves: Curves::of(&history_a, &history_b),
    };
    output.result(&comparison, || text::of(&comparison))
}

fn load(view: &RunView) -> Result<Resolved, Failure> {
    Ok(Resolved::load_file(&view.paths.config())?)
}

fn read(view: &RunView) -> Result<History, Failure> {
    let path = view.paths.metrics();
    History::read(&path).map_err(|error| unreadable(&path, &error))
}

/// The keys whose values differ; a key that a run's file lacks has its default there.
fn differences(a: &Resolved, b: &Resolved) -> Vec<Difference> {
    let matter: BTreeSet<String> = diff(&a.config, &b.config).into_iter().map(|change| change.key).collect();
    let defaults = json!(TrainConfig::default());
    let default = |key: &str| defaults.pointer(&format!("/{}", key.replace('.', "/"))).cloned().unwrap_or_default();
    let pairs = a.entries().into_iter().zip(b.entries());
    let differ = pairs.filter(|(a, b)| a.value != b.value && !OWN.contains(&a.key.as_str()));
    differ
        .map(|(a, b)| Difference {
            default: default(&a.key),
            changes_results: matter.contains(&a.key),
            key: a.key,
            a: a.value,
            b: b.value,
        })
        .collect()
}

impl Run {
    fn of(view: &RunView, name: String, config: &TrainConfig, history: &History) -> Self {
        let record = &view.record;
        let last = record.restarts.last();
        Self {
            name,
            state: view.state,
            step: view.step(),
            steps: config.train.steps,
            device: last.map_or(&record.device, |restart| &restart.device).clone(),
            program_version: last.map_or(&record.program_version, |restart| &restart.program_version).clone(),
            git_hash: last.map_or(&record.git_hash, |restart| &restart.git_hash).clone(),
            created: record.created.clone(),
            accepted: record.restarts.iter().flat_map(|restart| restart.accepted.clone()).collect(),
            images_per_s: history.images_per_s,
            data_wait: history.data_wait,
        }
    }
}

impl Data {
    fn of(a: &RunView, b: &RunView) -> Self {
        let (a, b) = (DataOf::of(a), DataOf::of(b));
        let same = a.as_ref().zip(b.as_ref()).map(|(a, b)| a.fingerprint == b.fingerprint);
        Self { same, a, b }
    }
}

impl DataOf {
    fn of(view: &RunView) -> Option<Self> {
        let (_, path) = view.checkpoint.as_ref()?;
        let state = claims(path)?.state;
        let images = state.extra.get("data").and_then(|data| data["images"].as_u64());
        Some(Self { fingerprint: state.data_fingerprint, images })
    }
}

impl Weights {
    fn of(a: &RunView, b: &RunView) -> Option<Self> {
        let checkpoints = |view: &RunView| checkpoint::list(&view.paths.checkpoints()).unwrap_or_default();
        let of_b = checkpoints(b);
        checkpoints(a).into_iter().find_map(|(step, path)| {
            let (_, other) = of_b.iter().find(|(other, _)| *other == step)?;
            let (weights, others) = (claims(&path)?.weights?, claims(other)?.weights?);
            Some(Self { step, same: weights == others })
        })
    }
}

/// What a checkpoint says of itself; one that cannot be read is reported and left out.
fn claims(path: &Path) -> Option<Claims> {
    Claims::read(path).inspect_err(|error| tracing::warn!("{error}")).ok()
}
