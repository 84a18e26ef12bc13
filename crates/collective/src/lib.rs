//! What the processes of one training, its *ranks*, do together: sum their gradients, agree, and end when one of them is lost.
//!
//! All ranks make the same calls in the same order; a call waits for the others. It never waits for a rank that is gone: each call
//! then fails, with the name of the lost rank, on every rank.
//!
//! | module | what |
//! | --- | --- |
//! | [`launch`] | which rank this process is, from the variables of torchrun, Slurm and Open MPI |
//! | [`Solo`] | a rank that is alone: everything is done already |
//! | [`Tcp`] | ranks on any machines that reach each other: a star around rank 0 |
//! | [`error`] | which rank was lost, refused or missed |

pub mod error;
pub mod launch;
mod solo;
mod tcp;

use std::fmt::Debug;

pub use self::error::CollectiveError;
pub use self::launch::Launch;
pub use self::solo::Solo;
pub use self::tcp::{Patience, Tcp};

/// The ranks of a training, seen from one of them.
pub trait Collective: Debug + Send + Sync {
    /// Which of them this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world(&self) -> usize;

    /// Replaces the numbers of every rank by their sums over all ranks, added in the order of the ranks: the same ranks get the same bits
    /// each time.
    ///
    /// # Errors
    /// A rank is lost, has ended, or makes another call.
    fn all_reduce_sum(&self, numbers: &mut [f32]) -> Result<(), CollectiveError>;

    /// Replaces the numbers of every rank by those of rank 0.
    ///
    /// # Errors
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    fn broadcast(&self, numbers: &mut [f32]) -> Result<(), CollectiveError>;

    /// A few bytes of every rank, for all of them, in the order of the ranks.
    ///
    /// # Errors
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// Waits until every rank has come here.
    ///
    /// # Errors
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    fn barrier(&self) -> Result<(), CollectiveError> {
        self.gather(&[]).map(drop)
    }

    /// Ends the work of all: every call of every other rank fails from now on and says `why` this one ended.
    fn abort(&self, why: &str);

    /// Says goodbye after the last call: from now on this rank may end, and others may.
    fn leave(&self);

    /// Why every call fails, if it does.
    fn failure(&self) -> Option<CollectiveError>;
}
