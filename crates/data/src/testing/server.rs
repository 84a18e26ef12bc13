//! A web server of the tests, with faults: files with etags and ranges, and what goes wrong with real ones.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to one request for bytes, instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Status(u16),
    /// No answer for a minute.
    Stall,
    /// The connection breaks in the middle of the body.
    Short,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// By path; a file's version makes its etag.
    pub(crate) files: BTreeMap<String, (Vec<u8>, u32)>,
    /// Of the next requests for bytes.
    pub(crate) faults: VecDeque<Fault>,
    /// Of every request, whatever it asks for.
    pub(crate) always: Option<Fault>,
    pub(crate) without_ranges: bool,
    pub(crate) without_etags: bool,
    /// `HEAD` is refused, as it is where an address is signed for `GET`.
    pub(crate) without_head: bool,
    /// What only others may read.
    pub(crate) forbidden: Option<String>,
    /// What an address must end with.
    pub(crate) query: Option<String>,
    /// Method, path and range of each request.
    pub(crate) log: Vec<String>,
}

/// See the module. Its threads end with the process.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::<Mutex<State>>::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &state));
            }
        });
        Self { address, state }
    }

    /// The address of a file.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(crate) fn add(&self, path: &str, bytes: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        let version = state.files.get(path).map_or(0, |(_, version)| version + 1);
        state.files.insert(path.to_owned(), (bytes, version));
    }

    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().faults.extend(faults);
    }

    /// How many requests for bytes there were.
    pub(crate) fn gets(&self) -> usize {
        self.state.lock().unwrap().log.iter().filter(|line| line.starts_with("GET")).count()
    }
}

/// What a request asks for.
struct Request {
    method: String,
    path: String,
    query: Option<String>,
    range: Option<(usize, usize)>,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
    let mut range = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some(bytes) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (start, end) = bytes.split_once('-')?;
            range = Some((start.parse().ok()?, end.parse::<usize>().ok()? + 1));
        }
    }
    Some(Request { method, path: path.trim_start_matches('/').to_owned(), query: query.map(str::to_owned), range })
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let Some(request) = read_request(&stream) else { return };
    let Request { method, path, query, range } = &request;
    let mut state = state.lock().unwrap();
    state.log.push(format!("{method} {path} {range:?}"));
    let fault = if method == "GET" { state.faults.pop_front() } else { None }.or(state.always);
    let file = state.files.get(path).cloned();
    let (ranges, etags) = (!state.without_ranges, !state.without_etags);
    let forbidden = state.forbidden.as_ref() == Some(path)
        || state.query.is_some() && state.query != *query
        || state.without_head && method == "HEAD";
    drop(state);
    let mut refuse = |status: u16| {
        let text = format!("HTTP/1.1 {status} -\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n");
        let _ = stream.write_all(text.as_bytes());
    };
    let (bytes, version) = match (fault, file) {
        (Some(Fault::Status(status)), _) => return refuse(status),
        (Some(Fault::Stall), _) => return std::thread::sleep(Duration::from_secs(60)),
        _ if forbidden => return refuse(403),
        (_, None) => return refuse(404),
        (_, Some(file)) => file,
    };
    let (from, to) = range.filter(|_| ranges).unwrap_or((0, bytes.len()));
    let to = to.min(bytes.len());
    if from >= to {
        return refuse(416);
    }
    let mut head = match range.filter(|_| ranges) {
        Some(_) => format!("HTTP/1.1 206 -\r\nContent-Range: bytes {from}-{}/{}\r\n", to - 1, bytes.len()),
        None => "HTTP/1.1 200 -\r\n".to_owned(),
    };
    head += &format!("Content-Length: {}\r\nConnection: close\r\n", to - from);
    if etags {
        head += &format!("ETag: \"{}-{version}\"\r\n", bytes.len());
    }
    let body = if method == "HEAD" { &[] } else { &bytes[from..to] };
    let body = if fault == Some(Fault::Short) { &body[..body.len() / 2] } else { body };
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}
