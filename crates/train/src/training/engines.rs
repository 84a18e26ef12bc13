//! `engines.json` of a run: which algorithm of cuDNN and cuBLASLt was the fastest for each computation.
//!
//! The algorithms are timed, and timing does not always choose the same one; another algorithm sums in another order. So the
//! choices are written before each checkpoint. A run that resumes from it on the same kind of GPU, with the same libraries,
//! uses the same algorithms: it gives the same bits as if it had not stopped, and loses no time to a new search.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use ddpm_kernels::cuda::{Choices, Gpu};
use ddpm_run::RunPaths;
use ddpm_run::durable::replace_file;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The choices made on a run's GPU, and those already in the file.
#[derive(Debug)]
pub(super) struct Engines {
    gpu: Arc<Gpu>,
    path: PathBuf,
    written: Choices,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    /// The libraries whose algorithms they are: the numbers mean nothing to other libraries.
    proposers: String,
    /// For each computation: the number of the algorithm, and how many there were.
    choices: Choices,
}

impl Engines {
    /// Gives a run's GPU the choices in the run's file, if they were made on the same kind of GPU; `None` where `device` is not
    /// a GPU. A file that cannot be understood causes a warning: it costs no more than the time of a new search.
    ///
    /// # Errors
    /// The GPU does not answer.
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

    /// Writes the choices made since the last call.
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
