//! The Hugging Face hub, both ways: models pushed to it, and `hf://owner/name` wherever a model is taken.
//!
//! | module | what |
//! | --- | --- |
//! | `name` | `owner/name`, `hf://owner/name@revision` |
//! | `settings` | what the environment says: endpoint, token, cache, offline |
//! | `client` | requests with limits, and patience with those that may be made twice |
//! | `remote` | what a repository holds; making one |
//! | `digest` | what proves a file |
//! | `commit` | one commit with everything, and never two |
//! | `spool` | a push on this disk until the hub has it |
//! | `pull` | a model into the cache that Python shares, verified |
//! | `error` | what can go wrong |
//!
//! hf-hub makes the uploads (xet) and the commit; the rest is asked with the HTTP client under it, because hf-hub sets no
//! time limit and does not verify what it downloads. Without the feature `hub` only names and settings are here, and
//! whatever needs the network is refused.

mod name;
mod settings;

#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod commit;
#[cfg(feature = "hub")]
mod digest;
#[cfg(feature = "hub")]
mod error;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod remote;
#[cfg(feature = "hub")]
mod spool;

pub use name::{HubModel, RepoName, Revision, SCHEME};
pub use settings::{DEFAULT_ENDPOINT, Settings, Token};

#[cfg(feature = "hub")]
pub(crate) use error::HubError;
#[cfg(feature = "hub")]
pub use pull::{Pulled, pull};
#[cfg(feature = "hub")]
pub use spool::{Pushed, Spool, Target};

/// Switches off what the upload library would report of each transfer, unless the user has said how he wants it.
///
/// # Safety
/// No other thread may run yet: the library reads this from the environment, and has no other switch.
#[cfg(feature = "hub")]
pub unsafe fn disable_telemetry() {
    const SWITCH: &str = "HF_HUB_DISABLE_TELEMETRY";
    if std::env::var_os(SWITCH).is_none() {
        // SAFETY: the caller has promised that nobody reads the environment meanwhile.
        unsafe { std::env::set_var(SWITCH, "1") };
    }
}
