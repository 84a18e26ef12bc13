//! A copy of a flat buffer that is taken between two steps and read beside the next ones.

use super::FlatBuffer;
use crate::error::Result;

/// The numbers that a buffer held when this was made; on a GPU they are still there.
#[derive(Debug)]
pub enum Copied {
    /// On the host.
    Host(Vec<f32>),
    /// On the GPU.
    #[cfg(feature = "cuda")]
    Gpu(crate::cuda::Parked),
}

impl FlatBuffer {
    /// A copy of all elements, without waiting for the GPU: what changes the buffer from now on does not change the copy. Where the
    /// GPU has no room for it, the copy is made on the host, which waits.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn copied(&self) -> Result<Copied> {
        match self.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => {
                let gpu = crate::cuda::Gpu::of(self.device())?;
                match crate::cuda::Parked::new(&gpu, &self.tensor)? {
                    Some(parked) => Ok(Copied::Gpu(parked)),
                    None => Ok(Copied::Host(self.to_vec()?)),
                }
            }
            _ => Ok(Copied::Host(self.to_vec()?)),
        }
    }
}

impl Copied {
    /// The numbers; from a GPU they come now, on whichever thread asks.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn into_vec(self) -> Result<Vec<f32>> {
        match self {
            Self::Host(numbers) => Ok(numbers),
            #[cfg(feature = "cuda")]
            Self::Gpu(parked) => parked.into_vec(),
        }
    }
}
