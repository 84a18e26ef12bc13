//! A hub on this machine: it answers the requests of `ddpm` as huggingface.co does, and can fail in many ways.
//!
//! | module | what |
//! | --- | --- |
//! | `store` | repositories, branches, commits, files |
//! | `routes` | the requests, over HTTP |
//! | `data_sets` | those for data sets |
//! | `xet` | large files, put together again from what the upload library wrote |
//! | `fault` | faults: which, where, how often |

mod data_sets;
mod fault;
mod routes;
mod store;
mod xet;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tempfile::TempDir;
use tokio::runtime::Runtime;

pub use fault::{Fault, Route};
pub use store::{Commit, Repo};

use crate::{Ddpm, Place};

/// The token that may write.
pub const TOKEN: &str = "hf_of_the_tests";

/// The token that the hub itself gives out, for its storage of large files.
pub const XET_TOKEN: &str = "xet_of_the_tests";

/// Seconds of silence that commands wait for it: more than a busy machine needs for an answer.
const PATIENCE: &str = "20";

/// The same for a hub that is silent on purpose.
const IMPATIENCE: &str = "1.5";

/// See the module. It goes with the value.
#[derive(Debug)]
pub struct FakeHub {
    address: SocketAddr,
    timeout: &'static str,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

/// The state that requests read and change.
#[derive(Debug)]
struct Shared {
    state: Mutex<store::State>,
    faults: Mutex<Vec<Fault>>,
    /// Each request's method and path.
    log: Mutex<Vec<String>>,
    /// Where the upload library writes large files.
    large: TempDir,
}

impl FakeHub {
    /// A hub without repositories.
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            large: tempfile::tempdir().unwrap(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let app = routes::router(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { address, timeout: PATIENCE, shared, runtime: Some(runtime) }
    }

    /// The same, with commands that wait only briefly.
    #[must_use]
    pub fn impatient(mut self) -> Self {
        self.timeout = IMPATIENCE;
        self
    }

    /// The environment variables of a command that uses it without a token.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("HF_ENDPOINT", self.endpoint()), ("DDPM_HUB_TIMEOUT", self.timeout.to_owned())]
    }

    /// Its address, for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A command that uses it, with its token.
    pub fn ddpm(&self, place: &Place, line: &str) -> Ddpm {
        self.without_token(place, line).env("HF_TOKEN", TOKEN)
    }

    /// A command that uses it without a token.
    pub fn without_token(&self, place: &Place, line: &str) -> Ddpm {
        self.environment().iter().fold(place.ddpm(line), |command, (name, value)| command.env(name, value))
    }

    /// Makes the next requests of a route fail.
    pub fn fails(&self, fault: Fault) -> &Self {
        self.shared.faults.lock().unwrap().push(fault);
        self
    }

    /// Ends all faults.
    pub fn recovers(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    /// Sends large files there instead.
    pub fn stores_at(&self, url: Option<&str>) {
        self.state().storage = url.map(str::to_owned);
    }

    /// Makes it take large files as a hub without xet storage does.
    pub fn has_no_xet(&self) {
        self.state().has_xet = false;
    }

    /// The repository, if there is one.
    pub fn repo(&self, name: &str) -> Option<Repo> {
        self.state().repos.get(name).cloned()
    }

    /// Changes a repository, as others would.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Repo)) {
        change(self.state().repos.entry(name.to_owned()).or_insert_with(|| Repo::new(false)));
    }

    /// The messages of the commits of a branch, the first one being the hub's own.
    #[track_caller]
    pub fn messages(&self, name: &str, branch: &str) -> Vec<String> {
        let repo = self.repo(name).unwrap_or_else(|| panic!("no repository {name}"));
        repo.branches[branch].iter().map(|commit| commit.message.clone()).collect()
    }

    /// The files at the head of `main`.
    #[track_caller]
    pub fn files(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let repo = self.repo(name).unwrap_or_else(|| panic!("no repository {name}"));
        let read = async || {
            let mut files = Vec::new();
            for (path, file) in &repo.head("main").unwrap().files {
                files.push((path.clone(), self.shared.bytes(file).await));
            }
            files
        };
        self.runtime.as_ref().unwrap().block_on(read())
    }

    /// The requests so far, as `POST /api/repos/create`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    fn state(&self) -> MutexGuard<'_, store::State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
