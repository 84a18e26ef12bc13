//! Ranks that talk over TCP: a star around rank 0, which adds up and sends the sums to all.
//!
//! So rank 0 adds in the order of the ranks, whoever is faster, and a sum has the same bits each time. Its network carries the
//! gradients of all: with W ranks and G bytes that is G (W - 1) in and as much out, a step. That is right for a few ranks.
//!
//! | module | what |
//! | --- | --- |
//! | `frame` | a message |
//! | `rendezvous` | how ranks find each other, and who is refused |
//! | `link` | the connections, signs of life, failures |

mod frame;
mod link;
mod rendezvous;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::frame::{Kind, combine, to_bytes};
use self::link::{Link, Links};
use self::rendezvous::{Hello, Limit, host, join};
use crate::Collective;
use crate::error::CollectiveError;
use crate::launch::Launch;

/// Numbers of a message: large enough for the network, small enough that adding and sending overlap.
const BUCKET: usize = 1 << 18;
/// Buckets that a rank sends before it takes the first sum: so many wait at rank 0 at most.
const AHEAD: usize = 4;

/// How long a rank waits for the others before they count as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Without any sign of life.
    pub silence: Duration,
    /// With signs of life, but without the same call: drawing a picture may take minutes.
    pub call: Duration,
    /// Until all ranks have come.
    pub rendezvous: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    world: usize,
    calls: AtomicU64,
    links: Arc<Links>,
}

impl Tcp {
    /// Meets the other ranks. `config` names what they must agree on, `version` the program. `stop` ends the waiting; a failure later
    /// sets it, so that what a rank does between its calls ends too.
    ///
    /// # Errors
    /// Not all ranks come in time, this one is refused, or the place cannot be used.
    pub fn connect(
        launch: &Launch,
        config: &str,
        version: &str,
        patience: Patience,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, CollectiveError> {
        let Launch { rank, world, restarts, run, .. } = launch.clone();
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("rank {rank} (process {} on {host_name})", std::process::id());
        let (version, config) = (version.to_owned(), config.to_owned());
        let own = Hello { version, rank, world, restarts, run, config, name };
        let limit = Limit { wait: patience.rendezvous, since: Instant::now(), stop };
        let peers = if rank == 0 { host(launch, &own, &limit)? } else { vec![join(launch, &own, &limit)?] };
        let links = Links::start(own.name, peers, patience, Arc::clone(stop))
            .map_err(|error| CollectiveError::Place { place: launch.place(), why: error.to_string() })?;
        Ok(Self { rank, world, calls: AtomicU64::new(0), links })
    }

    /// The connection to rank 0, for another rank.
    fn star(&self) -> Option<&Link> {
        self.links.iter().next().filter(|_| self.rank != 0)
    }

    fn call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    /// Puts what arrived in its place.
    fn take(
        &self,
        from: &Link,
        numbers: &mut [f32],
        bytes: &[u8],
        with: impl Fn(&mut f32, f32),
    ) -> Result<(), CollectiveError> {
        let expected = format!("{} numbers", numbers.len());
        if combine(numbers, bytes, with) {
            return Ok(());
        }
        let (rank, found) = (from.name.clone(), format!("{} bytes", bytes.len()));
        Err(self.links.fail(CollectiveError::OutOfStep { rank, found, expected }))
    }

    fn send_all(&self, kind: Kind, call: u64, bytes: &[u8]) -> Result<(), CollectiveError> {
        self.links.iter().try_for_each(|link| self.links.send(link, kind, call, bytes))
    }

    /// Rank 0's part of a sum.
    fn add_up(&self, call: u64, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        for bucket in numbers.chunks_mut(BUCKET) {
            for link in self.links.iter() {
                let bytes = self.links.receive(link, Kind::Sum, call)?;
                self.take(link, bucket, &bytes, |sum, number| *sum += number)?;
            }
            self.send_all(Kind::Sum, call, &to_bytes(bucket))?;
        }
        Ok(())
    }

    /// Another rank's part of a sum.
    fn have_added(&self, star: &Link, call: u64, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        let count = numbers.len().div_ceil(BUCKET);
        let bucket = |at: usize, len: usize| at * BUCKET..((at + 1) * BUCKET).min(len);
        for at in 0..count + AHEAD {
            if at < count {
                let bytes = to_bytes(&numbers[bucket(at, numbers.len())]);
                self.links.send(star, Kind::Sum, call, &bytes)?;
            }
            if let Some(at) = at.checked_sub(AHEAD).filter(|&at| at < count) {
                let bytes = self.links.receive(star, Kind::Sum, call)?;
                let range = bucket(at, numbers.len());
                self.take(star, &mut numbers[range], &bytes, |sum, number| *sum = number)?;
            }
        }
        Ok(())
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_reduce_sum(&self, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        let call = self.call();
        match self.star() {
            None => self.add_up(call, numbers),
            Some(star) => self.have_added(star, call, numbers),
        }
    }

    fn broadcast(&self, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        let call = self.call();
        for bucket in numbers.chunks_mut(BUCKET) {
            match self.star() {
                None => self.send_all(Kind::Broadcast, call, &to_bytes(bucket))?,
                Some(star) => {
                    let bytes = self.links.receive(star, Kind::Broadcast, call)?;
                    self.take(star, bucket, &bytes, |number, first| *number = first)?;
                }
            }
        }
        Ok(())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let call = self.call();
        if let Some(star) = self.star() {
            self.links.send(star, Kind::Gather, call, own)?;
            return (0..self.world).map(|_| self.links.receive(star, Kind::Gather, call)).collect();
        }
        let mut all = vec![own.to_vec()];
        for link in self.links.iter() {
            all.push(self.links.receive(link, Kind::Gather, call)?);
        }
        for bytes in &all {
            self.send_all(Kind::Gather, call, bytes)?;
        }
        Ok(all)
    }

    fn abort(&self, why: &str) {
        self.links.abort(why);
    }

    fn leave(&self) {
        self.links.leave();
    }

    fn failure(&self) -> Option<CollectiveError> {
        self.links.failure()
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.links.close();
    }
}
