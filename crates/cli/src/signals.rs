//! Signals as a run's requests: stop, or save and go on.
//!
//! Launchers send SIGTERM twice (GNU `timeout`, some wrappers), so that only a person, who presses Ctrl-C twice, ends a run
//! without a save. SIGHUP is a closed terminal, SIGUSR1 Slurm's warning before its time limit.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ddpm_train::training::stop::Requests;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::flag;

use crate::failure::{ExitCode, Failure};

/// Installs the handlers; returns the requests that signals set from now on.
///
/// # Errors
/// A signal handler cannot be installed.
pub(crate) fn requests() -> Result<Requests, Failure> {
    let requests = Requests::default();
    let register = |signal, flag: &Arc<AtomicBool>| flag::register(signal, Arc::clone(flag));
    let listen = || {
        // In this order: the second SIGINT finds its flag set and ends the process; the first one sets it.
        let interrupted = Arc::new(AtomicBool::new(false));
        flag::register_conditional_shutdown(SIGINT, i32::from(ExitCode::Other as u8), Arc::clone(&interrupted))?;
        register(SIGINT, &interrupted)?;
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            register(signal, &requests.stop)?;
        }
        if !is_ignored(SIGHUP) {
            register(SIGHUP, &requests.stop)?;
        }
        // A file that may not grow (`ulimit -f`) is then an error of the write, and no end.
        register(SIGXFSZ, &Arc::default())?;
        register(SIGUSR2, &requests.save)
    };
    listen().map_err(|error| Failure::caused_by(ExitCode::Other, "cannot listen for signals", &error))?;
    Ok(requests)
}

/// Whether this process was started with `signal` ignored, as `nohup` does with SIGHUP; not known where there is no /proc.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask & 1 << (signal - 1) != 0
}
