//! What needs the network.

mod client;
mod commit;
mod convert;
mod digest;
mod pull;
mod remote;
mod spool;

pub use pull::pull;
pub use spool::Spool;
