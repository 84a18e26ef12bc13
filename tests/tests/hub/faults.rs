//! Every way in which the hub fails: it ends in success without a second commit, or in an error within its time, and what
//! was not sent can be sent later.

use std::time::{Duration, Instant};

use ddpm_tests::hub::{FakeHub, Fault, Route};
use ddpm_tests::{Finished, Place};

use super::{COMMITS, PUSH, failing_place, spools};

/// No failure takes longer than this: some time-outs, and the pauses between attempts.
const LIMIT: Duration = Duration::from_secs(15);

/// The push succeeds in spite of the fault, with one commit.
#[track_caller]
fn survives(fault: Fault) -> FakeHub {
    let (place, hub) = failing_place();
    hub.fails(fault);
    hub.ddpm(&place, PUSH).succeeds();
    assert_eq!(hub.messages("me/clothes", "main"), COMMITS);
    assert_eq!(spools(&place), [""; 0]);
    hub
}

/// The push fails within its time, and the same command succeeds once the hub is well.
#[track_caller]
fn fails(fault: Fault) -> (Finished, FakeHub) {
    let (place, hub) = failing_place();
    let failed = fails_at(&place, &hub, fault);
    hub.recovers();
    hub.ddpm(&place, PUSH).succeeds().stderr_has("finishing a push that waits in ").stdout_has("me/clothes");
    assert_eq!(hub.messages("me/clothes", "main"), COMMITS);
    assert_eq!(spools(&place), [""; 0]);
    (failed, hub)
}

#[track_caller]
fn fails_at(place: &Place, hub: &FakeHub, fault: Fault) -> Finished {
    hub.fails(fault);
    let start = Instant::now();
    let failed = hub.ddpm(place, PUSH).run().has_code(7).stderr_has("error: ").stderr_has("help: ");
    failed.expect(start.elapsed() < LIMIT, "an end in time");
    let failed = failed.stderr_has(".cache/ddpm/hub/me--clothes waits for the next push");
    assert_eq!(spools(place), ["me--clothes"]);
    failed
}

fn commits(hub: &FakeHub) -> usize {
    hub.requests().iter().filter(|request| request.contains("/commit/")).count()
}

#[test]
fn a_token_that_is_not_accepted_401() {
    for route in [Route::Revision, Route::Commit] {
        let (failed, _) = fails(Fault::status(route, 401));
        let _ = failed.stderr_has("the hub answered 401 (as the test wants)").stderr_has("ddpm doctor");
    }
}

#[test]
fn a_token_that_may_not_write_403() {
    for route in [Route::Create, Route::Preupload, Route::Token, Route::Commit] {
        let (failed, _) = fails(Fault::status(route, 403));
        let _ = failed.stderr_has("the hub answered 403").stderr_has("write access");
    }
}

#[test]
fn a_repository_that_somebody_else_makes_or_changes_meanwhile_409() {
    let (place, hub) = failing_place();
    hub.fails(Fault::status_after(Route::Create, 409).times(1));
    hub.ddpm(&place, PUSH).succeeds();
    assert_eq!(hub.messages("me/clothes", "main"), COMMITS);
    survives(Fault::status(Route::Commit, 409).times(2));
    let (failed, _) = fails(Fault::status(Route::Commit, 409));
    let _ = failed.stderr_has("the hub answered 409").stderr_has("somebody else changes the repository");
}

#[test]
fn a_commit_of_somebody_else_in_between_412() {
    survives(Fault::status(Route::Commit, 412).times(1));
    survives(Fault::status_after(Route::Commit, 412).times(1));
    let _ = fails(Fault::status(Route::Commit, 412)).0.stderr_has("the hub answered 412");
}

#[test]
fn a_commit_that_is_too_large_is_not_sent_again_413() {
    let (failed, hub) = fails(Fault::status(Route::Commit, 413).times(1));
    let _ = failed.stderr_has("the hub answered 413").stderr_has("fewer samples");
    assert_eq!(commits(&hub), 2, "one that failed, one that did not");
}

#[test]
fn a_hub_that_asks_for_patience_gets_it_within_reason_429() {
    let start = Instant::now();
    survives(Fault::busy(Route::Commit, 1).times(1));
    assert!(start.elapsed() > Duration::from_secs(1), "Retry-After was not waited for");
    survives(Fault::busy(Route::Revision, 1).times(1));
    let (failed, _) = fails(Fault::busy(Route::Tree, 3600));
    let _ = failed.stderr_has("the hub answered 429").stderr_has("again in 3600 s");
}

#[test]
fn a_hub_with_a_problem_is_asked_again_503() {
    for route in [Route::Revision, Route::Create, Route::Tree, Route::Batch, Route::Token, Route::Commit] {
        survives(Fault::status(route, 503).times(2));
    }
    let (failed, hub) = fails(Fault::status(Route::Commit, 503));
    let _ = failed.stderr_has("the hub answered 503").stderr_has("again later");
    assert_eq!(commits(&hub), 5, "four that failed, one that did not");
}

#[test]
fn a_commit_that_was_applied_and_then_refused_is_not_made_twice() {
    assert_eq!(commits(&survives(Fault::status_after(Route::Commit, 503).times(1))), 1);
}

#[test]
fn a_connection_that_breaks_after_the_commit_is_no_second_commit() {
    assert_eq!(commits(&survives(Fault::drop_after(Route::Commit).times(1))), 1);
    assert_eq!(commits(&survives(Fault::stall_after(Route::Commit).times(1))), 1);
}

#[test]
fn a_connection_that_breaks_before_the_commit_is_tried_again() {
    assert_eq!(commits(&survives(Fault::drop(Route::Commit).times(1))), 2);
    survives(Fault::drop(Route::Revision).times(2));
    let _ = fails(Fault::drop(Route::Commit)).0.stderr_has("the connection broke");
}

#[test]
fn a_commit_nobody_knows_of_is_found_by_the_next_push() {
    let (place, hub) = failing_place();
    // The request is served, but neither the answer nor a later query of the repository comes through.
    hub.fails(Fault::drop_after(Route::Commit)).fails(Fault::status(Route::Revision, 503).after_first(2));
    hub.ddpm(&place, PUSH).run().has_code(7).stderr_has("the connection broke");
    assert_eq!(spools(&place), ["me--clothes"]);
    hub.recovers();
    hub.ddpm(&place, PUSH).succeeds().stdout_has("was there already");
    assert_eq!((hub.messages("me/clothes", "main").len(), commits(&hub)), (2, 1));
    assert_eq!(spools(&place), [""; 0]);
}

#[test]
fn a_silent_hub_is_given_up_wherever_it_falls_silent() {
    let routes =
        [Route::Create, Route::Revision, Route::Tree, Route::Preupload, Route::Batch, Route::Token, Route::Commit];
    std::thread::scope(|scope| {
        for route in routes {
            scope.spawn(move || fails(Fault::stall(route)).0.stderr_has("the hub was silent for "));
        }
    });
}

#[test]
fn a_storage_of_large_files_that_is_silent_or_away_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for storage in [silent.local_addr().unwrap(), away] {
        let (place, hub) = failing_place();
        hub.stores_at(Some(&format!("http://{storage}")));
        let start = Instant::now();
        hub.ddpm(&place, PUSH).run().has_code(7).stderr_has("help: ");
        assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
        assert_eq!((spools(&place).len(), commits(&hub)), (1, 0));
        hub.stores_at(None);
        hub.ddpm(&place, PUSH).succeeds();
        assert_eq!(hub.messages("me/clothes", "main"), COMMITS);
    }
}

#[test]
fn no_hub_at_all() {
    let (place, hub) = failing_place();
    let gone = hub.endpoint();
    drop(hub);
    let failed = place.ddpm(PUSH).env("HF_ENDPOINT", &gone).env("HF_TOKEN", "hf_x").env("DDPM_HUB_TIMEOUT", "0.5");
    failed.fails_with(7).stderr_has("the hub cannot be reached").stderr_has("HF_ENDPOINT");
    assert_eq!(spools(&place), ["me--clothes"]);
}

#[test]
fn what_is_no_hub_is_told() {
    let (place, hub) = failing_place();
    let failed = hub.ddpm(&place, PUSH).env("HF_ENDPOINT", &format!("{}/nowhere", hub.endpoint()));
    failed.fails_with(7).stderr_has("the hub answered 501").stderr_has("later");
}

#[test]
fn a_damaged_spool_is_made_anew() {
    let (place, hub) = failing_place();
    fails_at(&place, &hub, Fault::status(Route::Commit, 413));
    hub.recovers();
    place.write(".cache/ddpm/hub/me--clothes/files/README.md", "half of");
    hub.ddpm(&place, PUSH).succeeds().stderr_lacks("finishing");
    let card = hub.files("me/clothes").into_iter().find(|(path, _)| path == "README.md").unwrap();
    assert!(card.1.starts_with(b"---\nlibrary_name: diffusers"));
}

#[test]
fn a_push_killed_at_any_moment_is_finished_by_the_same_command_with_one_commit() {
    let (place, hub) = failing_place();
    let mut killed = 0;
    for delay in (0..240).step_by(12) {
        let running = hub.ddpm(&place, PUSH).spawn();
        std::thread::sleep(Duration::from_millis(delay));
        killed += u32::from(running.kill());
    }
    assert!(killed >= 5, "only {killed} kills");
    hub.ddpm(&place, PUSH).succeeds().stdout_has("me/clothes");
    assert_eq!(hub.messages("me/clothes", "main"), COMMITS);
    assert_eq!(spools(&place), [""; 0]);
}
