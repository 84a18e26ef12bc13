//! `engines.json` of a run: which algorithm of cuDNN and cuBLASLt was the fastest for each computation.
//!
//! The clock decides that, and not the same way every time; another algorithm sums in another order. So what was decided
//! is written before each checkpoint, and a run that goes on from it on the same kind of GPU, with the same libraries,
//! computes with the same algorithms: the same bits as if it had not stopped, and no time lost to look for them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use ddpm_kernels::cuda::{Choices, Gpu};
use ddpm_run::RunPaths;
use ddpm_run::durable::replace_file;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What was decided on a run's GPU, and what of it is in the file.
#[derive(Debug)]
pub(super) struct Engines {
    gpu: Arc<Gpu>,
    path: PathBuf,
    written: Choices,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    /// Whose algorithms they are: the numbers mean nothing to others.
    proposers: String,
    /// By computation: the number of the algorithm, and how many there were.
    choices: Choices,
}

impl Engines {
    /// Has the GPU of a run take what its file says, if it is about such a GPU; none where `device` is none. A file that
    /// makes no sense is warned about: it costs no more than the time to look again.
    ///
    /// # Errors
    /// A GPU that does not answer.
    pub(super) fn of_run(paths: &RunPaths, device: &Device) -> Result<Option<Self>, Error> {
        if !device.is_cuda() {
            return Ok(None);
        }
        let (gpu, path) = (Gpu::of(device)?, paths.engines());
        let content = read(&path).unwrap_or_else(|error| {
            let path = path.display();
            tracing::warn!(%path, "{path}: {error}; the fastest algorithms are looked for again");
            None
        });
        let proposers = gpu.versions()?;
        let written = content.filter(|content| content.proposers == proposers).map(|content| content.choices);
        let written = written.unwrap_or_default();
        gpu.choose(written.clone());
        Ok(Some(Self { gpu, path, written }))
    }

    /// Writes what was decided since.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn keep(&mut self) -> io::Result<()> {
        let choices = self.gpu.choices();
        if choices == self.written {
            return Ok(());
        }
        let proposers = self.gpu.versions().map_err(io::Error::other)?;
        let content = Content { proposers, choices };
        replace_file(&self.path, &serde_json::to_vec_pretty(&content)?)?;
        self.written = content.choices;
        Ok(())
    }
}

fn read(path: &std::path::Path) -> io::Result<Option<Content>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
