//! Why ranks cannot work together. Every error names the rank, or the variable, that is the cause.

use serde::{Deserialize, Serialize};

/// See the module. Clones, because every call after the first failure fails in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A rank that has died, hangs or cannot be reached any more.
    #[error("{rank} is lost: {why}")]
    Lost {
        /// Its number, host and process.
        rank: String,
        /// What was seen of it.
        why: String,
    },
    /// A rank that ended by itself before the others, with an error.
    #[error("{rank} has ended: {why}")]
    Ended {
        /// Its number, host and process.
        rank: String,
        /// Its error.
        why: String,
    },
    /// A rank that makes another call than this one: a bug.
    #[error("{rank} is out of step: {found}, expected {expected}")]
    OutOfStep {
        /// Its number, host and process.
        rank: String,
        /// Its call.
        found: String,
        /// This rank's call.
        expected: String,
    },
    /// Ranks that did not come to the rendezvous.
    #[error("rank {} did not come to {place} within {seconds} s{}", numbers(missing), refused(rejected))]
    Missing {
        /// Their numbers.
        missing: Vec<usize>,
        /// Where they were expected.
        place: String,
        /// How long.
        seconds: u64,
        /// Who came and was refused, and why.
        rejected: Vec<String>,
    },
    /// Rank 0 cannot be reached.
    #[error("rank 0 cannot be reached at {place} within {seconds} s: {why}")]
    Unreachable {
        /// Where it was expected.
        place: String,
        /// How long.
        seconds: u64,
        /// What the last attempt said.
        why: String,
    },
    /// This rank does not belong to the others.
    #[error("rank 0 at {place} refuses {rank}: {why}")]
    Refused {
        /// Where rank 0 is.
        place: String,
        /// This rank.
        rank: String,
        /// What is different.
        why: String,
    },
    /// The place where ranks are to meet cannot be used.
    #[error("{place}: ranks cannot meet here: {why}")]
    Place {
        /// The address.
        place: String,
        /// Why.
        why: String,
    },
    /// Variables of a launcher that contradict each other, or that are no numbers.
    #[error("{message}")]
    Variables {
        /// The variables, with their values.
        message: String,
        /// What to set.
        help: String,
    },
    /// A stop was asked for while the others were waited for.
    #[error("stopped while waiting for the other ranks")]
    Stopped,
}

impl CollectiveError {
    /// Whether the start itself is wrong, so that another one would fail in the same way.
    pub fn is_setting(&self) -> bool {
        matches!(self, Self::Variables { .. } | Self::Refused { .. } | Self::Place { .. })
    }
}

fn numbers(ranks: &[usize]) -> String {
    let ranks: Vec<_> = ranks.iter().map(usize::to_string).collect();
    ranks.join(", ")
}

fn refused(rejected: &[String]) -> String {
    if rejected.is_empty() { String::new() } else { format!("; refused: {}", rejected.join("; ")) }
}
