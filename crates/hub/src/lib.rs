//! The Hugging Face hub, both ways: folders pushed to it, and the files of `hf://owner/name` fetched from it. What is in them
//! is up to the caller.
//!
//! | module | what |
//! | --- | --- |
//! | `name` | `owner/name`, `hf://owner/name@revision` |
//! | `settings` | what the environment says: endpoint, token, cache, offline |
//! | `parcel` | what a push and a pull are about, without the files |
//! | `error` | what can go wrong |
//! | `net` | what needs the network; without the feature `net` all of it is refused |
//! | `net::client` | requests with time limits; those that may be made twice are repeated |
//! | `net::remote` | what a repository holds; making one |
//! | `net::convert` | errors of the libraries and the disk, as ours |
//! | `net::digest` | what proves a file |
//! | `net::commit` | one commit with everything, and never two |
//! | `net::spool` | a push that stays on this disk until the hub has it |
//! | `net::pull` | a model into the cache that Python shares, verified |
//! | `net::data_set` | which files a data set has, and where they are read |
//!
//! A push is the commit and, before it, the transfer of large files (xet); hf-hub does both. All other requests go through the
//! HTTP client under it, because hf-hub sets no time limit and does not verify what it downloads.

mod error;
mod name;
#[cfg_attr(not(feature = "net"), path = "without.rs")]
mod net;
mod parcel;
mod settings;

pub use error::HubError;
pub use name::{HubDataSet, HubModel, RepoName, Revision, SCHEME};
pub use net::{Spool, open_data_set, pull};
pub use parcel::{Content, DataSet, DataSetFile, Pulled, Pushed, Target};
pub use settings::{DEFAULT_ENDPOINT, Settings, Token, disable_telemetry};
