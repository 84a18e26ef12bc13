//! A rank that is alone.

use crate::Collective;
use crate::error::CollectiveError;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce_sum(&self, _: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn broadcast(&self, _: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(vec![own.to_vec()])
    }

    fn abort(&self, _: &str) {}

    fn leave(&self) {}

    fn failure(&self) -> Option<CollectiveError> {
        None
    }
}
