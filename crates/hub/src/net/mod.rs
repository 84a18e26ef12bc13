//! What needs the network.

mod client;
mod commit;
mod digest;
mod pull;
mod remote;
mod spool;
mod told;

pub use pull::{Pulled, pull};
pub use spool::{Content, Pushed, Spool, Target};

/// Switches off what the upload library would report of each transfer, unless the user has said how he wants it.
///
/// # Safety
/// No other thread may run yet: the library reads this from the environment, and has no other switch.
pub unsafe fn disable_telemetry() {
    const SWITCH: &str = "HF_HUB_DISABLE_TELEMETRY";
    if std::env::var_os(SWITCH).is_none() {
        // SAFETY: the caller has promised that nobody reads the environment meanwhile.
        unsafe { std::env::set_var(SWITCH, "1") };
    }
}
