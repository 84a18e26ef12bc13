//! Models to and from the Hugging Face hub, against a hub on this machine and its failures.
#![allow(clippy::unwrap_used)]

mod data_sets;
mod faults;
mod pull;
mod push;
mod secrets;
mod training;

use ddpm_tests::Place;
use ddpm_tests::diffusers::published;
use ddpm_tests::hub::FakeHub;

/// Pushes the model of [`place`], without the time for samples.
const PUSH: &str = "push theirs --repo me/clothes --samples 0";

/// What a push of it commits, after the hub's own commit.
const COMMITS: [&str; 2] = ["initial commit", "a model (ddpm 0.1.0)"];

/// A directory with the model `theirs`, and a hub.
fn place() -> (Place, FakeHub) {
    (published(), FakeHub::start())
}

/// The same with a hub that is about to fail.
fn failing_place() -> (Place, FakeHub) {
    let (place, hub) = place();
    (place, hub.impatient())
}

/// The waiting pushes of models that belong to no run.
fn spools(place: &Place) -> Vec<String> {
    let mut names = place.names(".cache/ddpm/hub");
    names.retain(|name| name != "LOCK");
    names
}
