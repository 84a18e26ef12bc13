//! The whole suite again, with narrower vector instructions than this processor has.

use std::process::Command;

use ddpm_kernels::simd::{Level, level};

const VARIABLE: &str = "DDPM_SIMD";
const LOWERED: [(&str, Level); 2] = [("baseline", Level::Baseline), ("avx2", Level::V3)];

/// The level is chosen once per process, so each gets a process of its own.
#[test]
fn every_level_below_the_best_passes_this_suite() {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    for (name, _) in LOWERED.into_iter().filter(|(_, lowered)| *lowered < level()) {
        let suite = std::env::current_exe().unwrap();
        let output = Command::new(suite).env(VARIABLE, name).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{VARIABLE}={name}\n{out}\n{err}");
    }
}

#[test]
fn the_level_is_no_higher_than_asked_for() {
    let asked = std::env::var(VARIABLE).unwrap_or_default();
    if let Some((name, limit)) = LOWERED.into_iter().find(|(name, _)| *name == asked) {
        assert!(level() <= limit, "{VARIABLE}={name}, yet {}", level().name());
    }
}
