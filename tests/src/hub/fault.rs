//! The faults of the test hub.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /api/repos/create`
    Create,
    /// `GET /api/models/{o}/{n}/revision/{rev}`
    Revision,
    /// `GET /api/models/{o}/{n}/tree/{rev}`
    Tree,
    /// `POST /api/models/{o}/{n}/preupload/{rev}`
    Preupload,
    /// `POST /{o}/{n}.git/info/lfs/objects/batch`
    Batch,
    /// `GET /api/models/{o}/{n}/xet-write-token/{rev}`
    Token,
    /// `POST /api/models/{o}/{n}/commit/{rev}`
    Commit,
    /// `GET /{o}/{n}/resolve/{rev}/{path}`
    Resolve,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Status(u16, Option<u64>),
    Answer(u16, &'static str),
    Stall,
    Drop,
    DropAfter,
    StallAfter,
    StatusAfter(u16),
    Short,
    Damaged,
}

/// What happens to requests, and to how many of them.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub(super) route: Route,
    kind: Kind,
    skipped: usize,
    times: usize,
}

impl Fault {
    /// Every request of this route is refused.
    pub fn status(route: Route, status: u16) -> Self {
        Self { route, kind: Kind::Status(status, None), skipped: 0, times: usize::MAX }
    }

    /// Every request of this route is refused, with the advice to wait for so many seconds.
    pub fn busy(route: Route, seconds: u64) -> Self {
        Self { route, kind: Kind::Status(429, Some(seconds)), skipped: 0, times: usize::MAX }
    }

    /// Every request of this route gets this status and this text instead.
    pub fn answer(route: Route, status: u16, text: &'static str) -> Self {
        Self { route, kind: Kind::Answer(status, text), skipped: 0, times: usize::MAX }
    }

    /// No request of this route is ever answered.
    pub fn stall(route: Route) -> Self {
        Self { route, kind: Kind::Stall, skipped: 0, times: usize::MAX }
    }

    /// The connection breaks before anything is done.
    pub fn drop(route: Route) -> Self {
        Self { route, kind: Kind::Drop, skipped: 0, times: usize::MAX }
    }

    /// The request is served, and then the connection breaks instead of an answer.
    pub fn drop_after(route: Route) -> Self {
        Self { route, kind: Kind::DropAfter, skipped: 0, times: usize::MAX }
    }

    /// The request is served, and never answered.
    pub fn stall_after(route: Route) -> Self {
        Self { route, kind: Kind::StallAfter, skipped: 0, times: usize::MAX }
    }

    /// The request is served, and then refused.
    pub fn status_after(route: Route, status: u16) -> Self {
        Self { route, kind: Kind::StatusAfter(status), skipped: 0, times: usize::MAX }
    }

    /// Half of the bytes come, as if they were all.
    pub fn short(route: Route) -> Self {
        Self { route, kind: Kind::Short, skipped: 0, times: usize::MAX }
    }

    /// All bytes come, one of them wrong.
    pub fn damaged(route: Route) -> Self {
        Self { route, kind: Kind::Damaged, skipped: 0, times: usize::MAX }
    }

    /// Limits the fault to so many requests.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// Spares the first so many requests.
    #[must_use]
    pub fn after_first(self, skipped: usize) -> Self {
        Self { skipped, ..self }
    }

    /// Counts a request and returns whether it fails.
    pub(super) fn count(self) -> (bool, Option<Self>) {
        if self.skipped > 0 {
            return (false, Some(Self { skipped: self.skipped - 1, ..self }));
        }
        let left = if self.times == usize::MAX { self.times } else { self.times - 1 };
        (true, Some(Self { times: left, ..self }).filter(|_| left > 0))
    }

    /// Replaces the serving of a request, if that is the fault.
    pub(super) async fn before(self) -> Option<Response> {
        match self.kind {
            Kind::Status(status, seconds) => Some(refusal(status, seconds)),
            Kind::Answer(status, text) => Some((StatusCode::from_u16(status).unwrap(), text).into_response()),
            Kind::Stall => std::future::pending().await,
            Kind::Drop => break_connection(),
            _ => None,
        }
    }

    /// Replaces the answer to a request that was served.
    pub(super) async fn instead_of(self, answer: Response) -> Response {
        match self.kind {
            Kind::DropAfter => break_connection(),
            Kind::StallAfter => std::future::pending().await,
            Kind::StatusAfter(status) => refusal(status, None),
            _ => answer,
        }
    }

    /// Bytes on their way.
    pub(super) fn bytes(self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self.kind {
            Kind::Short => bytes.truncate(bytes.len() / 2),
            Kind::Damaged => bytes[0] ^= 1,
            _ => {}
        }
        bytes
    }
}

fn refusal(status: u16, seconds: Option<u64>) -> Response {
    let mut answer = (StatusCode::from_u16(status).unwrap(), r#"{"error":"as the test wants"}"#).into_response();
    if let Some(seconds) = seconds {
        answer.headers_mut().insert("retry-after", Duration::from_secs(seconds).as_secs().into());
    }
    answer
}

/// Unwinds the connection's task, without the message of a panic.
fn break_connection() -> ! {
    std::panic::resume_unwind(Box::new("the fault of a test"))
}
