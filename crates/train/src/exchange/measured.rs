//! What was measured of a model, for its card: the document of `ddpm eval nll --json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::folder::read_limited;
use crate::error::{ExitCode, Failure};

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
    /// Exit code 2 if it cannot be read, or is another document.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        const HINT: &str = "expected what `ddpm eval nll MODEL --data SOURCE --json` prints";
        let place = path.display();
        let unread = |error: &(dyn std::error::Error + 'static)| {
            Failure::caused_by(ExitCode::Usage, format!("--metrics {place}: cannot be read"), error).hint(HINT)
        };
        let bytes = read_limited(path).map_err(|error| unread(&error))?;
        let measured: Self = serde_json::from_slice(&bytes).map_err(|error| unread(&error))?;
        let numbers = [Some(measured.bits_per_dim), measured.standard_error];
        if numbers.iter().flatten().all(|number| number.is_finite()) {
            return Ok(measured);
        }
        Err(Failure::new(ExitCode::Usage, format!("--metrics {place}: a number that is not finite")).hint(HINT))
    }
}
