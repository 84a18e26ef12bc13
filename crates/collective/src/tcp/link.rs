//! The connections of a rank while it works: what arrives, who lives, and how a failure spreads.
//!
//! Each connection has a thread that reads, so that a write on the other side never waits for long. One thread more gives signs of
//! life and looks for those of the others: a process that is stopped gives none, though its connection stays open. The first
//! failure is kept, told to all, and returned by every call from then on.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::Patience;
use super::frame::{self, Frame, Kind};
use super::rendezvous::Peer;
use crate::error::CollectiveError;

/// How often a call that waits looks for a failure.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Signs of life within the silence that counts as a loss.
const SIGNS: u32 = 6;
/// The longest message. What arrives here is from ranks that were let in.
const MOST: usize = 256 << 20;
/// How long telling another rank of a failure may take.
const TELLING: Duration = Duration::from_secs(1);

/// The connection to another rank.
#[derive(Debug)]
pub(super) struct Link {
    /// Number, host and process.
    pub(super) name: String,
    writer: Mutex<TcpStream>,
    /// The same socket, to close it while another thread writes.
    socket: TcpStream,
    inbox: Mutex<Receiver<Frame>>,
    /// When it last sent anything, in milliseconds since the start.
    seen: AtomicU64,
    /// It has said goodbye.
    left: AtomicBool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Links {
    links: Vec<Link>,
    own: String,
    patience: Patience,
    started: Instant,
    failure: Mutex<Option<CollectiveError>>,
    /// Set at a failure: whatever the caller waits for is given up.
    on_failure: Arc<AtomicBool>,
    readers: AtomicUsize,
    /// The work is done; nobody is judged any more.
    over: Mutex<bool>,
    ended: Condvar,
}

impl Links {
    /// Starts the threads.
    pub(super) fn start(
        own: String,
        peers: Vec<Peer>,
        patience: Patience,
        on_failure: Arc<AtomicBool>,
    ) -> io::Result<Arc<Self>> {
        let mut links = Vec::new();
        let mut readers = Vec::new();
        for (name, stream) in peers {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(None)?;
            // A rank that lives reads at once.
            stream.set_write_timeout(Some((patience.silence / 2).max(LOOK_UP)))?;
            let (sender, inbox) = channel();
            readers.push((stream.try_clone()?, sender));
            let (socket, writer, inbox) = (stream.try_clone()?, Mutex::new(stream), Mutex::new(inbox));
            let (seen, left) = (AtomicU64::new(0), AtomicBool::new(false));
            links.push(Link { name, writer, socket, inbox, seen, left });
        }
        let links = Arc::new(Self {
            links,
            own,
            patience,
            started: Instant::now(),
            failure: Mutex::new(None),
            on_failure,
            readers: AtomicUsize::new(readers.len()),
            over: Mutex::new(false),
            ended: Condvar::new(),
        });
        for (at, (stream, sender)) in readers.into_iter().enumerate() {
            let links = Arc::clone(&links);
            thread::Builder::new().name(format!("rank-{at}")).spawn(move || links.listen(at, stream, &sender))?;
        }
        let watching = Arc::clone(&links);
        thread::Builder::new().name("ranks".into()).spawn(move || watching.watch())?;
        Ok(links)
    }

    /// The connections, in the order of the ranks.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    /// The first failure.
    pub(super) fn failure(&self) -> Option<CollectiveError> {
        lock(&self.failure).clone()
    }

    /// Records a failure and tells the others; returns the first one.
    pub(super) fn fail(&self, error: CollectiveError) -> CollectiveError {
        {
            let mut failure = lock(&self.failure);
            if let Some(first) = &*failure {
                return first.clone();
            }
            *failure = Some(error.clone());
        }
        self.on_failure.store(true, Ordering::Relaxed);
        self.tell_all(Kind::Abort, &serde_json::to_vec(&error).unwrap_or_default());
        error
    }

    /// This rank ends with an error of its own.
    pub(super) fn abort(&self, why: &str) {
        self.fail(CollectiveError::Ended { rank: self.own.clone(), why: why.to_owned() });
        self.end(TELLING);
    }

    /// This rank has done its work.
    pub(super) fn leave(&self) {
        if self.failure().is_none() {
            self.tell_all(Kind::Goodbye, &[]);
        }
        // What the others have not read yet would be lost if this process ended while they still send.
        self.end(2 * TELLING);
    }

    /// Stops judging, and waits so long for the others to close their connections.
    fn end(&self, wait: Duration) {
        *lock(&self.over) = true;
        self.ended.notify_all();
        let since = Instant::now();
        while self.readers.load(Ordering::Acquire) > 0 && since.elapsed() < wait {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A last word to every rank that can be reached.
    fn tell_all(&self, kind: Kind, bytes: &[u8]) {
        for link in &self.links {
            match link.writer_within(TELLING / 4) {
                Some(mut writer) => {
                    // Whoever cannot be told sees that the connection closes.
                    let _ = writer.set_write_timeout(Some(TELLING));
                    let _ = frame::write(&mut *writer, kind, 0, bytes);
                    let _ = link.socket.shutdown(Shutdown::Write);
                }
                // A call hangs in a write to this rank: it ends so.
                None => drop(link.socket.shutdown(Shutdown::Both)),
            }
        }
    }

    /// Sends a part of a call.
    pub(super) fn send(&self, link: &Link, kind: Kind, call: u64, bytes: &[u8]) -> Result<(), CollectiveError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let sent = frame::write(&mut *lock(&link.writer), kind, call, bytes);
        sent.map_err(|error| self.lost(link, &error))
    }

    /// Waits for a part of a call.
    pub(super) fn receive(&self, link: &Link, kind: Kind, call: u64) -> Result<Vec<u8>, CollectiveError> {
        let (inbox, since) = (lock(&link.inbox), Instant::now());
        loop {
            let why = match inbox.recv_timeout(LOOK_UP) {
                Ok(frame) if (frame.kind, frame.call) == (kind, call) => return Ok(frame.bytes),
                Ok(Frame { kind: found, call: of, .. }) => {
                    let (found, expected) = (format!("{found:?} {of}"), format!("{kind:?} {call}"));
                    return Err(self.fail(CollectiveError::OutOfStep { rank: link.name.clone(), found, expected }));
                }
                Err(_) if let Some(failure) = self.failure() => return Err(failure),
                Err(_) if link.left.load(Ordering::Acquire) => "it has finished, and this rank has not".to_owned(),
                Err(RecvTimeoutError::Disconnected) => "its connection closed".to_owned(),
                Err(RecvTimeoutError::Timeout) if since.elapsed() > self.patience.call => {
                    format!("it is there, but has not come to the same call for {} s", self.patience.call.as_secs())
                }
                Err(RecvTimeoutError::Timeout) => continue,
            };
            return Err(self.fail(CollectiveError::Lost { rank: link.name.clone(), why }));
        }
    }

    fn lost(&self, link: &Link, error: &io::Error) -> CollectiveError {
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "its connection closed".to_owned()
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it takes nothing any more".to_owned(),
            _ => error.to_string(),
        };
        self.fail(CollectiveError::Lost { rank: link.name.clone(), why })
    }

    /// The thread that reads from one rank.
    fn listen(&self, at: usize, stream: TcpStream, inbox: &Sender<Frame>) {
        let link = &self.links[at];
        let mut seen = Seen { stream, link, started: self.started };
        loop {
            match frame::read(&mut seen, MOST) {
                Ok(Frame { kind: Kind::Alive, .. }) => {}
                Ok(Frame { kind: Kind::Goodbye, .. }) => link.left.store(true, Ordering::Release),
                Ok(Frame { kind: Kind::Abort, bytes, .. }) => {
                    let unknown =
                        |_| CollectiveError::Ended { rank: link.name.clone(), why: "it does not say why".into() };
                    self.fail(serde_json::from_slice(&bytes).unwrap_or_else(unknown));
                    break;
                }
                Ok(frame) => drop(inbox.send(frame)),
                Err(error) => {
                    if !link.left.load(Ordering::Acquire) && !*lock(&self.over) {
                        self.lost(link, &error);
                    }
                    break;
                }
            }
        }
        self.readers.fetch_sub(1, Ordering::Release);
    }

    /// The thread that gives signs of life and looks for them.
    fn watch(&self) {
        let every = self.patience.silence / SIGNS;
        let mut over = lock(&self.over);
        loop {
            over = self.ended.wait_timeout(over, every).unwrap_or_else(PoisonError::into_inner).0;
            if *over || self.failure().is_some() {
                return;
            }
            drop(over);
            for link in self.links.iter().filter(|link| !link.left.load(Ordering::Acquire)) {
                let silent =
                    self.started.elapsed().saturating_sub(Duration::from_millis(link.seen.load(Ordering::Relaxed)));
                if silent > self.patience.silence {
                    let why = format!("no sign of life for {:.0} s", silent.as_secs_f64());
                    self.fail(CollectiveError::Lost { rank: link.name.clone(), why });
                    return;
                }
                // Where a call writes, that is a sign of life.
                if let Some(mut writer) = link.writer_within(Duration::ZERO) {
                    let sent = frame::write(&mut *writer, Kind::Alive, 0, &[]);
                    drop(writer);
                    if let Err(error) = sent
                        && !link.left.load(Ordering::Acquire)
                        && !*lock(&self.over)
                    {
                        self.lost(link, &error);
                    }
                }
            }
            over = lock(&self.over);
        }
    }

    /// Closes all connections, which ends the threads.
    pub(super) fn close(&self) {
        *lock(&self.over) = true;
        self.ended.notify_all();
        for link in &self.links {
            // It may be closed already.
            let _ = link.socket.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    /// The right to write, if nobody else has it for longer than `wait`.
    fn writer_within(&self, wait: Duration) -> Option<MutexGuard<'_, TcpStream>> {
        let since = Instant::now();
        loop {
            match self.writer.try_lock() {
                Ok(writer) => return Some(writer),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if since.elapsed() >= wait => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Reads, and notes when something came: a large message on a slow network is a sign of life all along.
struct Seen<'a> {
    stream: TcpStream,
    link: &'a Link,
    started: Instant,
}

impl Read for Seen<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(bytes)?;
        self.link.seen.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        Ok(count)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
