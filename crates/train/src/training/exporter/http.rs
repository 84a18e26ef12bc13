//! As much of HTTP/1.1 (RFC 9112) as a page of text needs: one request, one answer, and the connection is closed.
//!
//! Whatever comes in has two seconds and eight kilobytes, on a thread of its own, of which there are a few; where one more comes, the
//! oldest is given up: clients that open connections and say nothing keep nobody else waiting.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a client may take to ask, and again to read the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request that is read, in bytes.
const LONGEST: usize = 8 << 10;
/// Connections at a time.
const AT_ONCE: usize = 8;

/// An answer to a request.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Answer {
    pub(super) fn ok(kind: &'static str, body: String) -> Self {
        Self { status: "200 OK", kind, body }
    }

    pub(super) fn unavailable(why: &str) -> Self {
        Self::plain("503 Service Unavailable", why)
    }

    pub(super) fn not_found() -> Self {
        Self::plain("404 Not Found", "there is /metrics, /healthz and /readyz\n")
    }

    fn plain(status: &'static str, body: &str) -> Self {
        Self { status, kind: super::text::PLAIN, body: body.to_owned() }
    }

    /// The bytes to send; to a HEAD request without the body.
    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let Self { status, kind, body } = self;
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n"
        );
        let body = if with_body { body.as_bytes() } else { &[] };
        [head.as_bytes(), body].concat()
    }
}

/// The connections that are being answered, the oldest first, with their numbers.
#[derive(Clone, Debug, Default)]
struct Open(Arc<Mutex<VecDeque<(u64, TcpStream)>>>);

impl Open {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, TcpStream)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more; of too many the oldest is ended, and with it the wait of its thread.
    fn add(&self, number: u64, connection: &TcpStream) -> io::Result<()> {
        let mut open = self.lock();
        if open.len() >= AT_ONCE
            && let Some((_, oldest)) = open.pop_front()
        {
            // It may have ended by itself.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        open.push_back((number, connection.try_clone()?));
        Ok(())
    }

    fn remove(&self, number: u64) {
        self.lock().retain(|(other, _)| *other != number);
    }
}

/// Answers until `over`.
pub(super) fn serve(
    listener: &TcpListener,
    over: &AtomicBool,
    answer: impl Fn(&str) -> Answer + Clone + Send + 'static,
) {
    let open = Open::default();
    for (number, connection) in (0..).zip(listener.incoming()) {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let Ok(connection) = connection.and_then(|connection| open.add(number, &connection).map(|()| connection))
        else {
            // Out of files, perhaps: not at full speed.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        let (answer, its) = (answer.clone(), open.clone());
        let handled = thread::Builder::new().name("metrics-answer".into()).spawn(move || {
            // A client that goes away is its own affair.
            let _ = handle(connection, &answer);
            its.remove(number);
        });
        if handled.is_err() {
            open.remove(number);
        }
    }
}

fn handle(mut connection: TcpStream, answer: &impl Fn(&str) -> Answer) -> io::Result<()> {
    connection.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut connection)?;
    let (answer, with_body) = match asked(&head) {
        Ok((path, with_body)) => (answer(path), with_body),
        Err(refusal) => (refusal, true),
    };
    connection.write_all(&answer.bytes(with_body))?;
    connection.shutdown(Shutdown::Write)?;
    // What was not read would reset the connection, and take the answer with it.
    while connection.read(&mut [0; LONGEST]).is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
    Ok(())
}

/// The request up to its empty line, or as much of it as is read.
fn read_head(connection: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (start, mut head, mut piece) = (Instant::now(), Vec::new(), [0; 1024]);
    while head.len() < LONGEST && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = PATIENCE.saturating_sub(start.elapsed());
        connection.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match connection.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => head.extend_from_slice(&piece[..count]),
            // A signal asked this thread where it is; the kernel begins no read again that has a timeout.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(head)
}

/// The path that a request asks for, and whether it wants a body.
fn asked(head: &[u8]) -> Result<(&str, bool), Answer> {
    let malformed = || Answer::plain("400 Bad Request", "this is no request\n");
    let end = head.windows(4).position(|end| end == b"\r\n\r\n").ok_or_else(malformed)?;
    let line = head[..end].split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = std::str::from_utf8(line).map_err(|_| malformed())?.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(malformed());
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(malformed());
    }
    let path = target.split('?').next().unwrap_or_default();
    match method {
        "GET" => Ok((path, true)),
        "HEAD" => Ok((path, false)),
        _ => Err(Answer::plain("405 Method Not Allowed", "only GET and HEAD\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_and_what_is_none_is_refused() {
        assert_eq!(asked(b"GET /metrics?name=x HTTP/1.1\r\nHost: h\r\n\r\n"), Ok(("/metrics", true)));
        assert_eq!(asked(b"HEAD /healthz HTTP/1.0\r\n\r\n"), Ok(("/healthz", false)));
        let status = |head: &[u8]| asked(head).map_or_else(|answer| answer.status, |_| "200");
        assert!(status(b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("405"));
        let none: [&[u8]; 6] = [
            b"",
            b"\r\n\r\n",
            b"GET /metrics\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\n",
            b"GET http://x/metrics HTTP/1.1\r\n\r\n",
            b"\xff\xfe /metrics HTTP/1.1\r\n\r\n",
        ];
        for head in none {
            assert!(status(head).starts_with("400"), "{head:?}");
        }
    }
}
