//! How ranks find each other: rank 0 listens, the others come and say who they are, and all are let in at once.
//!
//! A rank of an earlier start, of another run or configuration, or of another program must not take part: it would change the sums of
//! those that belong together. So each says what it is, and rank 0 refuses what differs and says in what. Nothing proves that
//! a stranger who knows all of it is none: the port belongs on a network that only the ranks can reach.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::frame::{self, Kind};
use crate::error::CollectiveError;
use crate::launch::Launch;

/// How often what is waited for is looked at.
const LOOK_UP: Duration = Duration::from_millis(50);
/// How long a newcomer may take to say who it is; the others wait behind it.
const INTRODUCTION: Duration = Duration::from_secs(2);
/// How long one attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The longest message of a rank that was not let in yet.
const MOST: usize = 16 << 10;

/// Who a rank is, and to what it belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: String,
    pub(super) rank: usize,
    pub(super) world: usize,
    pub(super) restarts: u64,
    pub(super) run: String,
    pub(super) config: String,
    /// Number, host and process.
    pub(super) name: String,
}

/// Why a rank was not let in.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    why: String,
    /// Those of rank 0: an older one will be gone soon.
    restarts: u64,
}

/// Another rank and the connection to it.
pub(super) type Peer = (String, TcpStream);

/// Until when, unless stopped.
pub(super) struct Limit<'a> {
    pub(super) wait: Duration,
    pub(super) since: Instant,
    pub(super) stop: &'a AtomicBool,
}

impl Limit<'_> {
    /// Whether there is time left.
    fn allows(&self) -> Result<bool, CollectiveError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(CollectiveError::Stopped);
        }
        Ok(self.since.elapsed() < self.wait)
    }
}

/// Rank 0: waits for all others; they are returned in the order of their numbers.
pub(super) fn host(launch: &Launch, own: &Hello, limit: &Limit<'_>) -> Result<Vec<Peer>, CollectiveError> {
    let unusable = |error: io::Error| CollectiveError::Place { place: launch.place(), why: error.to_string() };
    let listener = bind(launch, limit)?;
    listener.set_nonblocking(true).map_err(unusable)?;
    let mut come: Vec<Option<Peer>> = (1..launch.world).map(|_| None).collect();
    let mut rejected = Vec::new();
    while come.iter().any(Option::is_none) {
        if !limit.allows()? {
            let missing = (1..).zip(&come).filter(|(_, peer)| peer.is_none()).map(|(rank, _)| rank).collect();
            let (place, seconds) = (launch.place(), limit.wait.as_secs());
            return Err(CollectiveError::Missing { missing, place, seconds, rejected });
        }
        match listener.accept() {
            Ok((stream, from)) => {
                if let Err(why) = admit(stream, from, own, &mut come) {
                    tracing::warn!("{why}");
                    rejected.push(why);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(LOOK_UP),
            Err(error) => return Err(unusable(error)),
        }
    }
    let mut peers: Vec<Peer> = come.into_iter().flatten().collect();
    for (name, stream) in &mut peers {
        let lost = |error: io::Error| CollectiveError::Lost { rank: name.clone(), why: error.to_string() };
        frame::write(stream, Kind::Welcome, 0, own.name.as_bytes()).map_err(lost)?;
    }
    Ok(peers)
}

/// Listens at the address of rank 0, or at all addresses where that is not one of this machine's own (a service's, say).
fn bind(launch: &Launch, limit: &Limit<'_>) -> Result<TcpListener, CollectiveError> {
    loop {
        let error = match TcpListener::bind((launch.address.as_str(), launch.port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => error,
        };
        match error.kind() {
            // A rank 0 that was killed may be on its way out.
            io::ErrorKind::AddrInUse if limit.since.elapsed() < limit.wait / 4 && limit.allows()? => sleep(LOOK_UP),
            io::ErrorKind::AddrNotAvailable => {
                if let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, launch.port)) {
                    return Ok(listener);
                }
                return Err(CollectiveError::Place { place: launch.place(), why: error.to_string() });
            }
            _ => return Err(CollectiveError::Place { place: launch.place(), why: error.to_string() }),
        }
    }
}

/// Lets a newcomer in, or says why not.
fn admit(mut stream: TcpStream, from: SocketAddr, own: &Hello, come: &mut [Option<Peer>]) -> Result<(), String> {
    let unheard = |error: io::Error| format!("a connection from {from} was refused: {error}");
    stream.set_nonblocking(false).map_err(unheard)?;
    stream.set_read_timeout(Some(INTRODUCTION)).map_err(unheard)?;
    stream.set_write_timeout(Some(INTRODUCTION)).map_err(unheard)?;
    let frame = frame::read(&mut stream, MOST).map_err(unheard)?;
    let hello = serde_json::from_slice::<Hello>(&frame.bytes).ok().filter(|_| frame.kind == Kind::Hello);
    let hello = hello.ok_or_else(|| format!("a connection from {from} was refused: it does not say who it is"))?;
    let place = hello.rank.checked_sub(1).and_then(|at| come.get_mut(at));
    let why = match (difference(own, &hello), place) {
        (Some(why), _) => why,
        (None, None) => format!("rank {} does not exist", hello.rank),
        (None, Some(Some((name, there)))) if !is_closed(there) => format!("{name} is there already"),
        (None, Some(place)) => {
            *place = Some((hello.name, stream));
            return Ok(());
        }
    };
    let refusal = serde_json::to_vec(&Refusal { why: why.clone(), restarts: own.restarts }).unwrap_or_default();
    // It may be gone already.
    let _ = frame::write(&mut stream, Kind::Refused, 0, &refusal);
    Err(format!("{} was refused: {why}", hello.name))
}

/// In what a newcomer differs from the ranks that belong together.
fn difference(own: &Hello, hello: &Hello) -> Option<String> {
    let differs = |what: &str, theirs: &str, ours: &str| {
        (theirs != ours).then(|| format!("{what} {theirs:?}, but rank 0 has {ours:?}"))
    };
    let [config, ours] = [&hello.config, &own.config].map(|config| config.get(..12).unwrap_or(config));
    differs("it is of ddpm", &hello.version, &own.version)
        .or_else(|| differs("it counts on a WORLD_SIZE of", &hello.world.to_string(), &own.world.to_string()))
        .or_else(|| differs("it is of the launcher's run", &hello.run, &own.run))
        .or_else(|| differs("it is of restart", &hello.restarts.to_string(), &own.restarts.to_string()))
        .or_else(|| differs("its configuration is", config, ours).filter(|_| hello.config != own.config))
}

fn is_closed(stream: &TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let peeked = stream.peek(&mut [0]);
    let waits = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).is_err() || !waits
}

/// Another rank: comes to rank 0 and waits until all are there.
pub(super) fn join(launch: &Launch, own: &Hello, limit: &Limit<'_>) -> Result<Peer, CollectiveError> {
    let mut why = String::new();
    while limit.allows()? {
        match come(launch, own, limit)? {
            Ok(peer) => return Ok(peer),
            Err(error) => why = error.to_string(),
        }
        sleep(LOOK_UP);
    }
    Err(CollectiveError::Unreachable { place: launch.place(), seconds: limit.wait.as_secs(), why })
}

/// One attempt; the inner error may pass.
fn come(launch: &Launch, own: &Hello, limit: &Limit<'_>) -> Result<io::Result<Peer>, CollectiveError> {
    let mut stream = match connect(launch).and_then(|mut stream| introduce(&mut stream, own).map(|()| stream)) {
        Ok(stream) => stream,
        Err(error) => return Ok(Err(error)),
    };
    while !is_readable(&stream) {
        if !limit.allows()? {
            return Ok(Err(io::Error::other("it does not answer, or not all ranks have come")));
        }
    }
    if let Err(error) = stream.set_read_timeout(Some(INTRODUCTION)) {
        return Ok(Err(error));
    }
    let frame = match frame::read(&mut stream, MOST) {
        Ok(frame) => frame,
        Err(error) => return Ok(Err(error)),
    };
    match frame.kind {
        Kind::Welcome => Ok(Ok((String::from_utf8_lossy(&frame.bytes).into_owned(), stream))),
        Kind::Refused => match serde_json::from_slice::<Refusal>(&frame.bytes) {
            Ok(refusal) if refusal.restarts < own.restarts => Ok(Err(io::Error::other(refusal.why))),
            Ok(Refusal { why, .. }) => {
                Err(CollectiveError::Refused { place: launch.place(), rank: own.name.clone(), why })
            }
            Err(error) => Ok(Err(error.into())),
        },
        kind => Ok(Err(io::Error::other(format!("an unexpected answer, {kind:?}")))),
    }
}

fn connect(launch: &Launch) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (launch.address.as_str(), launch.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            // A port that nobody listens at may be given to the connection itself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {}
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn introduce(stream: &mut TcpStream, own: &Hello) -> io::Result<()> {
    stream.set_read_timeout(Some(LOOK_UP))?;
    stream.set_write_timeout(Some(INTRODUCTION))?;
    frame::write(stream, Kind::Hello, 0, &serde_json::to_vec(own)?)
}

/// Whether there is something to read, an end included; waits a moment for it.
fn is_readable(stream: &TcpStream) -> bool {
    let waits = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    !stream.peek(&mut [0]).is_err_and(|error| waits.contains(&error.kind()))
}
