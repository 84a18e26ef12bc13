//! Requests to the hub, with the limits that hf-hub does not set.
//!
//! hf-hub waits for a silent server for ever and repeats a commit that may have been applied. So each of its requests
//! runs on the HTTP client made here, which gives up after [`Settings::timeout`] of silence, and it repeats nothing
//! itself. [`Hub::patiently`] does that, for requests that may be made twice.

use std::future::Future;
use std::time::Duration;

use hf_hub::HFClient;
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::convert::short;
use crate::error::HubError;
use crate::name::RepoName;
use crate::settings::Settings;

/// Larger than any answer of the hub that is read whole.
const MAX_ANSWER: usize = 16 << 20;
/// Attempts at a request whose failure may pass.
const ATTEMPTS: u32 = 4;
/// The first pause, as a share of the timeout; it doubles each time.
const FIRST_PAUSE: f64 = 1.0 / 60.0;
/// The longest pause that the hub may ask for, in timeouts.
const LONGEST_PAUSE: u32 = 2;

/// A hub, and one repository on it.
pub(super) struct Hub {
    pub(super) settings: Settings,
    pub(super) repo: RepoName,
    /// What the hub calls such repositories: `models`, `datasets`.
    kind: &'static str,
    http: reqwest::Client,
    runtime: Option<Runtime>,
}

impl Hub {
    /// Touches no network yet.
    ///
    /// # Errors
    /// [`HubError::Offline`]; or this system cannot make a client.
    pub(super) fn new(settings: Settings, repo: RepoName) -> Result<Self, HubError> {
        Self::of(settings, repo, "models")
    }

    /// The same for a data set.
    pub(super) fn of_data_set(settings: Settings, repo: RepoName) -> Result<Self, HubError> {
        Self::of(settings, repo, "datasets")
    }

    fn of(settings: Settings, repo: RepoName, kind: &'static str) -> Result<Self, HubError> {
        let doing = format!("reaching {}", settings.endpoint);
        if settings.offline {
            return Err(HubError::Offline { doing });
        }
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| HubError::Connection {
            doing: "preparing to reach the hub".to_owned(),
            source,
        };
        let http = reqwest::Client::builder()
            .user_agent(concat!("ddpm/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.timeout)
            .read_timeout(settings.timeout)
            .build()
            .map_err(|error| broken(Box::new(error)))?;
        // Two threads: hf-hub's uploads run beside the thread that watches them.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("hub")
            .enable_all()
            .build()
            .map_err(|error| broken(Box::new(error)))?;
        Ok(Self { settings, repo, kind, http, runtime: Some(runtime) })
    }

    /// Runs a future to its end. The error is without the token, which a hub may repeat in its answer.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = Result<T, HubError>>) -> Result<T, HubError> {
        let secret = self.settings.token.as_ref().map(|token| token.secret());
        match &self.runtime {
            Some(runtime) => runtime.block_on(future).map_err(|error| error.without(secret)),
            None => Err(HubError::Answer { doing: "asking the hub".into(), what: "the client is closed".into() }),
        }
    }

    /// hf-hub's client, over ours: with our timeouts, and without its own repetitions.
    pub(super) fn library(&self) -> Result<HFClient, HubError> {
        let mut builder = HFClient::builder().endpoint(&self.settings.endpoint);
        if let Some(token) = &self.settings.token {
            builder = builder.token(token.secret());
        }
        builder
            .client(self.http.clone())
            .retry_max_attempts(0)
            .build()
            .map_err(|error| HubError::of_library("preparing to reach the hub", error, self.settings.timeout))
    }

    /// The address of `segments` below the endpoint, each escaped.
    pub(super) fn url(&self, segments: &[&str]) -> Result<Url, HubError> {
        let bad = || HubError::Answer { doing: self.settings.endpoint.clone(), what: "no address".into() };
        let mut url = Url::parse(&self.settings.endpoint).map_err(|_| bad())?;
        url.path_segments_mut().map_err(|()| bad())?.pop_if_empty().extend(segments);
        Ok(url)
    }

    /// An address of the hub's API, below the repository's.
    pub(super) fn api(&self, segments: &[&str]) -> Result<Url, HubError> {
        let repo = ["api", self.kind, self.repo.owner(), self.repo.name()];
        self.url(&[&repo, segments].concat())
    }

    /// A request; the token is sent to the endpoint alone.
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let ours = Url::parse(&self.settings.endpoint).is_ok_and(|endpoint| endpoint.origin() == url.origin());
        let request = self.http.request(method, url);
        match &self.settings.token {
            Some(token) if ours => request.bearer_auth(token.secret()),
            _ => request,
        }
    }

    /// Sends a request and checks the status of the answer.
    pub(super) async fn send(&self, doing: &str, request: RequestBuilder) -> Result<Response, HubError> {
        let silence = self.settings.timeout;
        let response = request.send().await.map_err(|error| HubError::of_request(doing, error, silence))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (code, message) = (header("x-error-code"), header("x-error-message"));
        let seconds = header(RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
        let status = response.status().as_u16();
        let body = self.body(doing, response).await.unwrap_or_default();
        let text = message.or_else(|| {
            let document: Value = serde_json::from_slice(&body).ok()?;
            Some(document["error"].as_str()?.to_owned())
        });
        Err(HubError::Status {
            doing: doing.to_owned(),
            status,
            code,
            text: text.map(|text| short(&text)),
            retry_after: seconds.map(Duration::from_secs),
        })
    }

    /// Sends a request and reads the answer as JSON; also the address of the next page, where there is one.
    pub(super) async fn json(&self, doing: &str, request: RequestBuilder) -> Result<(Value, Option<Url>), HubError> {
        // An answer that comes drop by drop is no silence, so the whole request has a limit too.
        let response = self.send(doing, request.timeout(2 * self.settings.timeout)).await?;
        let next = next_page(&response);
        let body = self.body(doing, response).await?;
        let value = serde_json::from_slice(&body)
            .map_err(|error| HubError::Answer { doing: doing.to_owned(), what: error.to_string() })?;
        Ok((value, next))
    }

    async fn body(&self, doing: &str, mut response: Response) -> Result<Vec<u8>, HubError> {
        let mut body = Vec::new();
        let lost = |error| HubError::of_request(doing, error, self.settings.timeout);
        while let Some(piece) = response.chunk().await.map_err(lost)? {
            if body.len() + piece.len() > MAX_ANSWER {
                let what = format!("longer than {MAX_ANSWER} bytes");
                return Err(HubError::Answer { doing: doing.to_owned(), what });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Makes a request that may be made twice, and repeats it after failures that may pass.
    pub(super) async fn patiently<T, F: Future<Output = Result<T, HubError>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, HubError> {
        let mut tried = 0;
        loop {
            match attempt().await {
                Err(error) if error.is_passing() => self.pause(error, &mut tried).await?,
                result => return result,
            }
        }
    }

    /// Waits before the next attempt; returns the error if that was the last one, or if the hub asks for a longer pause than we
    /// allow.
    pub(super) async fn pause(&self, error: HubError, tried: &mut u32) -> Result<(), HubError> {
        *tried += 1;
        let pause = self.settings.timeout.mul_f64(FIRST_PAUSE) * (1 << *tried);
        let pause = error.retry_after().map_or(pause, |asked| asked.max(pause));
        if *tried >= ATTEMPTS || pause > LONGEST_PAUSE * self.settings.timeout {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Drop for Hub {
    /// Tasks that still run were given up: nothing waits for them.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// `Link: <...>; rel="next"`, if it stays on the same host: the token goes with the next request.
fn next_page(response: &Response) -> Option<Url> {
    let link = response.headers().get("link")?.to_str().ok()?;
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let address = next.split_once('<')?.1.split_once('>')?.0;
    response.url().join(address).ok().filter(|url| url.origin() == response.url().origin())
}
