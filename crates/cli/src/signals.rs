//! SIGTERM and SIGINT: the first asks the run to finish its step, save and end; a second one ends the process at once, for
//! whoever will not wait.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::{ExitCode, Failure};

/// A flag that the first signal from now on sets.
///
/// # Errors
/// The system refuses a signal handler.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let signalled = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the second signal finds the flag set and ends the process; the first one sets it.
        flag::register_conditional_shutdown(signal, i32::from(ExitCode::Other as u8), Arc::clone(&signalled))
            .and_then(|_| flag::register(signal, Arc::clone(&signalled)))
            .map_err(|error| Failure::caused_by(ExitCode::Other, "cannot listen for signals", &error))?;
    }
    Ok(signalled)
}
