//! A model's measured quality, for its card: the document of `ddpm eval nll --json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::json::read_limited;
use crate::error::{Cause, Error};

/// Bits per dimension; only the fields of the document that a card shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The bound.
    pub bits_per_dim: f64,
    /// Standard error of the mean over images, if there are two or more.
    pub standard_error: Option<f64>,
    /// How many images.
    pub images: u64,
    /// How many timesteps.
    pub steps: u64,
    /// The name of the data.
    pub data: String,
}

impl Measured {
    /// Reads the document.
    ///
    /// # Errors
    /// It cannot be read, or is a different document.
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
