//! What was measured of a model, for its card: the document of `ddpm eval nll --json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::folder::read_limited;
use crate::error::{Cause, Error};

/// Bits per dimension; of the document only what a card shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The bound.
    pub bits_per_dim: f64,
    /// Of the mean over images, where there are two or more.
    pub standard_error: Option<f64>,
    /// How many images.
    pub images: u64,
    /// How many timesteps.
    pub steps: u64,
    /// Of which data.
    pub data: String,
}

impl Measured {
    /// Reads the document.
    ///
    /// # Errors
    /// It cannot be read, or is another document.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |what, cause: Option<Cause>| Error::Measurements { path: path.to_owned(), what, cause };
        let unread = |cause: Cause| wrong("cannot be read", Some(cause));
        let bytes = read_limited(path).map_err(|error| unread(error.into()))?;
        let measured: Self = serde_json::from_slice(&bytes).map_err(|error| unread(error.into()))?;
        let numbers = [Some(measured.bits_per_dim), measured.standard_error];
        if numbers.iter().flatten().all(|number| number.is_finite()) {
            return Ok(measured);
        }
        Err(wrong("a number that is not finite", None))
    }
}
