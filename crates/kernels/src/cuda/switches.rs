//! What can be turned off at run time: `DDPM_GPU_OFF=graph,flash`. Each word names a family of fast
//! implementations beside which there is a plainer one that computes the same: for a GPU on which one of the fast ones fails,
//! and to measure what it is worth.

use std::fmt;
use std::sync::atomic::Ordering;

use super::Gpu;
use crate::error::{KernelError, Result};

/// The environment variable.
pub const VARIABLE: &str = "DDPM_GPU_OFF";

/// What has a plainer implementation beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Steps are recorded once and replayed; without it they are queued operation by operation.
    Graph,
    /// Attention that keeps its scores, or whole rows of them, in registers; without it products of matrices around a softmax.
    Flash,
    /// Group normalisation in one pass with what stands around it; without it a launch for each.
    Fuse,
    /// A bias' gradient summed by the product of its weight's; without it by a launch of its own.
    BiasEpilogue,
}

impl Family {
    const ALL: [Self; 4] = [Self::Graph, Self::Flash, Self::Fuse, Self::BiasEpilogue];

    /// As [`VARIABLE`] has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Flash => "flash",
            Self::Fuse => "fuse",
            Self::BiasEpilogue => "bgradb",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The families that are off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Off(u8);

impl Off {
    /// What [`VARIABLE`] asks for.
    ///
    /// # Errors
    /// A word that names no family.
    pub fn from_environment() -> Result<Self> {
        Self::read(&std::env::var_os(VARIABLE).unwrap_or_default().to_string_lossy())
    }

    fn read(text: &str) -> Result<Self> {
        let mut words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.try_fold(Self::default(), |off, word| {
            let family = Family::ALL.into_iter().find(|family| family.word() == word);
            family.map(|family| off.with(family)).ok_or_else(|| KernelError::Setting {
                variable: VARIABLE,
                found: word.to_owned(),
                expected: Family::ALL.map(Family::word).join(", "),
            })
        })
    }

    /// The same, and `family` too.
    #[must_use]
    pub fn with(self, family: Family) -> Self {
        Self(self.0 | family.bit())
    }

    /// Whether nothing is.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn has(self, family: Family) -> bool {
        self.0 & family.bit() != 0
    }
}

/// As [`VARIABLE`] has them.
impl fmt::Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = Family::ALL.into_iter().filter(|&family| self.has(family)).map(Family::word).collect();
        f.write_str(&words.join(","))
    }
}

impl Gpu {
    /// Whether `family` may be used.
    pub fn uses(&self, family: Family) -> bool {
        !Off(self.off.load(Ordering::Relaxed)).has(family)
    }

    /// From now on these families are off and no others. What was recorded before stays as it is.
    pub fn set_off(&self, off: Off) {
        self.off.store(off.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written_and_an_unknown_one_is_named() {
        let written = |text| Off::read(text).map(|off| off.to_string()).map_err(|error| error.to_string());
        for text in ["", "graph", "graph,flash,fuse,bgradb", "flash,bgradb"] {
            assert_eq!(written(text), Ok(text.to_owned()));
        }
        assert_eq!(written(" fuse, graph ,"), Ok("graph,fuse".to_owned()));
        let error = "DDPM_GPU_OFF: found `grpah`, expected any of graph, flash, fuse, bgradb";
        assert_eq!(written("graph,grpah"), Err(error.to_owned()));
    }
}
