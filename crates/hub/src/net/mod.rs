//! What needs the network.

mod client;
mod commit;
mod convert;
mod data_set;
mod digest;
mod pull;
mod remote;
mod spool;

pub use data_set::open_data_set;
pub use pull::pull;
pub use spool::Spool;
