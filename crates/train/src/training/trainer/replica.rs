//! One of several trainers that must stay the same: its state from rank 0, and whether its weights still are.

use std::sync::Arc;

use ddpm_collective::Collective;
use ddpm_kernels::buffer::FlatBuffer;
use ddpm_model::ModelError;

use super::Trainer;
use crate::error::Error;

/// Bytes of a tensor's hash.
const HASH: usize = 8;

impl Trainer {
    /// From now on it learns together with `ranks`.
    pub(in crate::training) fn join(&mut self, ranks: &Arc<dyn Collective>) {
        self.learner.ranks = Arc::clone(ranks);
    }

    /// Those it learns with.
    pub(in crate::training) fn ranks(&self) -> &dyn Collective {
        &*self.learner.ranks
    }

    /// Replaces weights, moments and averages by those of rank 0.
    pub(in crate::training) fn share_buffers(&mut self) -> Result<(), Error> {
        let ranks = Arc::clone(&self.learner.ranks);
        let optimizer = &self.learner.optimizer;
        let averages = optimizer.averages().iter().map(|average| average.params.buffer());
        let buffers: Vec<&FlatBuffer> =
            [self.learner.params.buffer()].into_iter().chain(optimizer.moments()).chain(averages).collect();
        for buffer in buffers {
            buffer.with_mut(|numbers| ranks.broadcast(numbers)).map_err(ModelError::from)??;
        }
        Ok(())
    }

    /// Goes on after `step` steps.
    pub(in crate::training) fn go_on_after(&mut self, step: u64) {
        self.learner.optimizer.go_on_after(step);
    }

    /// The hash of the weights after this step, if it was taken.
    pub(in crate::training) fn params_hash(&self, step: u64) -> Option<&str> {
        self.params_hash.as_ref().filter(|(hashed, _)| *hashed == step).map(|(_, hash)| hash.as_str())
    }

    /// Where that is due, hashes the weights and compares them with those of the other ranks.
    ///
    /// # Errors
    /// They differ, or a rank is lost.
    pub(in crate::training) fn compare_replicas(&mut self) -> Result<(), Error> {
        let step = self.steps_taken();
        if !self.hashed.is_due(step) {
            return Ok(());
        }
        let flat = self.learner.params.buffer().to_vec().map_err(ModelError::from)?;
        let layout = self.learner.unet.layout();
        let mut hashes = Vec::with_capacity(HASH * layout.specs().len());
        for spec in layout.specs() {
            let mut hasher = blake3::Hasher::new();
            let bytes: Vec<u8> =
                flat[spec.offset..][..spec.len()].iter().flat_map(|value| value.to_le_bytes()).collect();
            hashes.extend_from_slice(&hasher.update(&bytes).finalize().as_bytes()[..HASH]);
        }
        for (rank, theirs) in self.learner.ranks.gather(&hashes)?.iter().enumerate() {
            let differs = hashes.chunks(HASH).zip(theirs.chunks(HASH)).position(|(own, theirs)| own != theirs);
            if let Some(at) = differs {
                let rank = rank.max(self.learner.ranks.rank());
                return Err(Error::Replicas { rank, step, tensor: layout.specs()[at].key.clone() });
            }
        }
        self.params_hash = Some((step, blake3::hash(&hashes).to_hex().to_string()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;
    use ddpm_collective::CollectiveError;
    use ddpm_data::Share;

    use super::super::tests::{batch, plan_with};
    use super::*;

    /// Another rank, whose hash of the tensor with this number is not ours.
    #[derive(Debug)]
    struct Strays(usize);

    impl Collective for Strays {
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
            let mut theirs = own.to_vec();
            theirs[HASH * self.0] ^= 1;
            Ok(vec![own.to_vec(), theirs])
        }

        fn abort(&self, _: &str) {}

        fn leave(&self) {}

        fn failure(&self) -> Option<CollectiveError> {
            None
        }
    }

    #[test]
    fn weights_that_differ_between_ranks_are_an_error_that_names_the_tensor() {
        let plan = plan_with(2, &[("log.params_hash", "true"), ("log.every", "2")]);
        let mut trainer = Trainer::new(&plan, &Device::Cpu).unwrap();
        trainer.step(batch(Share::whole(2))).unwrap();
        trainer.compare_replicas().unwrap();
        assert_eq!(trainer.params_hash(1), None, "not every step is logged");
        trainer.step(batch(Share::whole(2))).unwrap();
        trainer.compare_replicas().unwrap();
        assert!(trainer.params_hash(2).is_some());
        let tensor = trainer.learner.unet.layout().specs()[3].key.clone();
        let ranks: Arc<dyn Collective> = Arc::new(Strays(3));
        trainer.join(&ranks);
        let error = trainer.compare_replicas().unwrap_err();
        assert!(matches!(&error, Error::Replicas { rank: 1, step: 2, tensor: found } if *found == tensor), "{error}");
    }
}
