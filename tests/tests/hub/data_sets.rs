//! `hf://datasets/owner/name` as `data.source`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ddpm_tests::fixtures::{image_folder, png};
use ddpm_tests::hub::{FakeHub, Fault, Route, TOKEN};
use ddpm_tests::{Ddpm, Place, fresh_run};

const DATA: &str = "hf://datasets/me/clothes";
/// As the fake hub calls it.
const REPO: &str = "datasets/me/clothes";

/// A run, the folder `shards` with two tar shards, and a hub with the same.
fn place() -> (Place, FakeHub) {
    let place = fresh_run(&["train.steps=6", "checkpoint.every=3", "sample.every=0", "data.shuffle_window=8"]);
    image_folder(&place, "images", 24);
    place.ddpm("data pack images --size 16 --shard-images 12 --to shards").succeeds();
    let hub = FakeHub::start();
    add(&place, &hub, "images-000000.tar");
    add(&place, &hub, "images-000001.tar");
    (place, hub)
}

fn add(place: &Place, hub: &FakeHub, shard: &str) {
    let bytes = place.read(&format!("shards/{shard}"));
    hub.change(REPO, |repo| repo.add("main", "more", &[(&format!("data/{shard}"), &bytes)]));
}

fn train(place: &Place, hub: &FakeHub, source: &str) -> Ddpm {
    let train = place.train().set(&format!("data.source={source}"));
    hub.environment().iter().fold(train, |train, (name, value)| train.env(name, value))
}

fn weights(place: &Place, run: &str) -> Vec<u8> {
    place.read(&format!("{run}/checkpoints/step-000000006/model.safetensors"))
}

#[test]
fn a_data_set_of_the_hub_trains_as_its_files_on_the_disk() {
    let (place, hub) = place();
    train(&place, &hub, "shards").set("run.dir=runs/near").succeeds();
    for (number, source) in [DATA, "hf://datasets/me/clothes@main/data"].iter().enumerate() {
        let run = format!("runs/far-{number}");
        train(&place, &hub, source).set(&format!("run.dir={run}")).max_steps(3).succeeds();
        train(&place, &hub, source).set(&format!("run.dir={run}")).succeeds().resumes_at(3);
        assert!(weights(&place, &run) == weights(&place, "runs/near"), "{source}");
    }
}

#[test]
fn a_commit_of_other_files_is_other_data() {
    let (place, hub) = place();
    let first = hub.repo(REPO).unwrap().branches["main"].last().unwrap().id.clone();
    train(&place, &hub, DATA).max_steps(3).succeeds();
    hub.change(REPO, |repo| {
        let bytes = repo_bytes(&place);
        repo.add("main", "another", &[("data/images-000001.tar", &bytes)]);
    });
    train(&place, &hub, DATA).fails_with(2).stderr_has("holds other images than then");
    train(&place, &hub, &format!("{DATA}@{first}")).succeeds().resumes_at(3);
}

/// A shard of other pictures.
fn repo_bytes(place: &Place) -> Vec<u8> {
    image_folder(place, "others", 5);
    place.ddpm("data pack others --size 16 --shard-images 12 --to other").succeeds();
    place.read("other/images-000000.tar")
}

#[test]
fn a_private_data_set_needs_the_token_which_is_shown_nowhere() {
    let (place, hub) = place();
    hub.change(REPO, |repo| repo.private = true);
    train(&place, &hub, DATA).fails_with(3).stderr_has("the hub answered 401").stderr_has("HF_TOKEN");
    let done = train(&place, &hub, DATA).env("HF_TOKEN", TOKEN).succeeds();
    let _ = done.stderr_lacks(TOKEN);
    assert!(!place.text("runs/tiny/run.json").contains(TOKEN));
}

#[test]
fn failures_of_the_hub_pass_or_are_named() {
    let (place, hub) = place();
    hub.fails(Fault::status(Route::Resolve, 503).times(3));
    train(&place, &hub, DATA)
        .set("run.dir=runs/first")
        .succeeds()
        .stderr_has("503 Service Unavailable; it is tried again");
    hub.fails(Fault::status(Route::Resolve, 503));
    // One file: of several any may be the first to fail.
    let one = format!("{DATA}/data/images-000000.tar");
    let failed = train(&place, &hub, &one).set("data.retry_for=2").set("data.cache_dir=empty").fails_with(7);
    let _ =
        failed.stderr_has("the data cannot be reached").stderr_has("tries in").stderr_has("503 Service Unavailable");
    hub.recovers();
    train(&place, &hub, DATA).env("HF_HUB_OFFLINE", "1").fails_with(3).stderr_has("HF_HUB_OFFLINE is set");
    train(&place, &hub, "hf://datasets/me/none").env("HF_TOKEN", TOKEN).fails_with(3).stderr_has("404");
    train(&place, &hub, "hf://me/clothes").fails_with(2).stderr_has("write hf://datasets/owner/name");
}

#[test]
fn a_hub_that_stays_away_in_the_middle_of_a_run_costs_no_step() {
    let (place, hub) = place();
    // A request an image, so that a run that has begun still asks.
    let images: Vec<_> = (0..400).map(|number| (format!("a/{number:03}.png"), png(16, number))).collect();
    let files: Vec<_> = images.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    hub.change("datasets/me/photos", |repo| repo.add("main", "photos", &files));
    let long = || {
        let train = train(&place, &hub, "hf://datasets/me/photos").set("train.steps=100_000").set("checkpoint.every=0");
        train.set("log.every=1").set("data.retry_for=2").set("data.cache_bytes=0")
    };
    let mut running = long().spawn();
    running.wait_for_stderr("step 3/");
    hub.fails(Fault::status(Route::Resolve, 503));
    running.wait(Duration::from_secs(60)).has_code(7).stderr_has("the data cannot be reached");
    let saved: u64 = place.checkpoints()[0].strip_prefix("step-").unwrap().parse().unwrap();
    assert!(saved >= 3);
    hub.recovers();
    long().max_steps(saved + 2).succeeds().resumes_at(saved);
}

/// All files below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

#[test]
fn a_signature_in_an_address_is_in_no_file_of_a_run_and_in_no_message() {
    let (place, hub) = place();
    // The hub is a web server too, and looks at no query.
    hub.change("me/web", |repo| repo.add("main", "a shard", &[("x.tar", &place.read("shards/images-000000.tar"))]));
    let address = format!("{}/me/web/resolve/main/x.tar?X-Amz-Signature=a-secret", hub.endpoint());
    let said = [
        train(&place, &hub, &address).max_steps(3).succeeds(),
        train(&place, &hub, &address).succeeds().resumes_at(3),
        place.ddpm("config show tiny.toml").set(&format!("data.source={address}")).succeeds(),
        train(&place, &hub, &address.replace("x.tar", "y.tar")).fails_with(3),
    ];
    let files = below(&place.path("runs/tiny"));
    assert!(files.iter().any(|path| path.ends_with("run.json")));
    let written = files.iter().map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
    let said = said.iter().map(|finished| format!("{}{}", finished.stdout, finished.stderr));
    for text in written.chain(said) {
        assert!(!text.contains("a-secret"), "{text}");
    }
    place.ddpm("export runs/tiny --to out --samples 0").succeeds();
    assert!(
        below(&place.path("out"))
            .iter()
            .all(|path| !String::from_utf8_lossy(&fs::read(path).unwrap()).contains("a-secret"))
    );
}
