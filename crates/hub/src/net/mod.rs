//! What needs the network.

mod client;
mod commit;
mod digest;
mod pull;
mod remote;
mod spool;
mod told;

pub use pull::pull;
pub use spool::Spool;
