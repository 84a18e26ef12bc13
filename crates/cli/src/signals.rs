//! Signals as a run's requests: stop, or save and go on.
//!
//! Launchers send SIGTERM twice (GNU `timeout`, some wrappers), so that only a person, who presses Ctrl-C twice, ends a run
//! without a save. SIGHUP is a closed terminal, SIGUSR1 Slurm's warning before its time limit.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ddpm_train::training::stop::Requests;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
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
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGUSR1] {
            register(signal, &requests.stop)?;
        }
        register(SIGUSR2, &requests.save)
    };
    listen().map_err(|error| Failure::caused_by(ExitCode::Other, "cannot listen for signals", &error))?;
    Ok(requests)
}
