//! Which timesteps a sampler visits when it takes fewer than T steps.
//!
//! There are two families of names: diffusers' `leading`, `trailing` and `linspace`, which need a number of steps, and improved
//! DDPM's respacings, which contain it: `"250"`, `"10,15,20"` (one count for each equal section of `0..T`, least noisy first)
//! or `"ddim50"`. Halves are rounded to even, as in the Python originals.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{DiffusionError, Timestep};

const KEY: &str = "spacing";
const STEPS_KEY: &str = "sample.steps";

/// A rule that picks timesteps out of `0..T`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Spacing {
    /// 0 and every (T / steps)-th after it.
    #[default]
    Leading,
    /// T - 1 and every (T / steps)-th before it.
    Trailing,
    /// Evenly, both ends included.
    Linspace,
    /// So many from each of as many equal sections, the ends of each section included.
    Sections(Vec<usize>),
    /// The first integer stride that gives this many (the DDIM paper's choice).
    Ddim(usize),
}

impl Spacing {
    /// The visited timesteps of `0..num_train_timesteps`, ascending and distinct.
    ///
    /// `steps` is how many; by default all of them, or as many as a respacing says.
    ///
    /// # Errors
    /// `steps` is 0, more than there are, or not the respacing's own number.
    pub fn kept_timesteps(
        &self,
        steps: Option<usize>,
        num_train_timesteps: usize,
    ) -> Result<Vec<Timestep>, DiffusionError> {
        let total = num_train_timesteps;
        let indices = match self {
            Self::Sections(counts) => sections(counts, total)?,
            Self::Ddim(count) => ddim(*count, total)?,
            Self::Leading => {
                let count = checked_steps(steps, total)?;
                (0..count).map(|i| i * (total / count)).collect()
            }
            Self::Trailing => {
                let count = checked_steps(steps, total)?;
                let stride = total as f64 / count as f64;
                let from_the_end = |i| (total as f64 - i as f64 * stride).round_ties_even() as usize - 1;
                (0..count).rev().map(from_the_end).collect()
            }
            Self::Linspace => {
                let count = checked_steps(steps, total)?;
                let stride = (total - 1) as f64 / (count.max(2) - 1) as f64;
                (0..count).map(|i| (i as f64 * stride).round_ties_even() as usize).collect()
            }
        };
        match steps {
            Some(steps) if steps != indices.len() => Err(DiffusionError::setting(
                STEPS_KEY,
                &steps,
                format!("{}, the number of steps that the spacing \"{self}\" keeps", indices.len()),
                "give a number of steps or a respacing, not both",
            )),
            _ => indices.into_iter().map(|index| Timestep::new(index, total)).collect(),
        }
    }
}

fn checked_steps(steps: Option<usize>, total: usize) -> Result<usize, DiffusionError> {
    match steps.unwrap_or(total) {
        count if (1..=total).contains(&count) => Ok(count),
        count => Err(DiffusionError::setting(
            STEPS_KEY,
            &count,
            format!("1 to {total}, the timesteps the model was trained with"),
            "a sampler can skip timesteps but cannot invent them: ask for fewer steps",
        )),
    }
}

fn sections(counts: &[usize], total: usize) -> Result<Vec<usize>, DiffusionError> {
    let (size_per, extra) = (total / counts.len().max(1), total % counts.len().max(1));
    let mut kept = Vec::new();
    let mut start = 0;
    for (section, &count) in counts.iter().enumerate() {
        let size = size_per + usize::from(section < extra);
        if !(1..=size).contains(&count) {
            return Err(DiffusionError::setting(
                KEY,
                &join(counts),
                format!("1 to {size} steps from section {} of {} of {total} timesteps", section + 1, counts.len()),
                "ask for fewer steps in that section, or for fewer sections",
            ));
        }
        let stride = if count == 1 { 1.0 } else { (size - 1) as f64 / (count - 1) as f64 };
        // Adding up, rather than multiplying, is what the original does; a half is rounded by its last digit.
        let mut place = 0.0f64;
        for _ in 0..count {
            kept.push(start + place.round_ties_even() as usize);
            place += stride;
        }
        start += size;
    }
    Ok(kept)
}

fn ddim(count: usize, total: usize) -> Result<Vec<usize>, DiffusionError> {
    let stride = (1..=total).find(|&stride| total.div_ceil(stride) == count);
    let stride = stride.ok_or_else(|| {
        DiffusionError::setting(
            KEY,
            &format!("ddim{count}"),
            format!("a number of steps that an integer stride over {total} timesteps gives"),
            format!("try a divisor of {total}, or \"{count}\" without \"ddim\", which allows fractional strides"),
        )
    })?;
    Ok((0..total).step_by(stride).collect())
}

fn join(counts: &[usize]) -> String {
    counts.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leading => f.write_str("leading"),
            Self::Trailing => f.write_str("trailing"),
            Self::Linspace => f.write_str("linspace"),
            Self::Sections(counts) => f.write_str(&join(counts)),
            Self::Ddim(count) => write!(f, "ddim{count}"),
        }
    }
}

impl FromStr for Spacing {
    type Err = DiffusionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text {
            "leading" => Some(Self::Leading),
            "trailing" => Some(Self::Trailing),
            "linspace" => Some(Self::Linspace),
            _ => match text.strip_prefix("ddim") {
                Some(count) => count.parse().ok().map(Self::Ddim),
                None => {
                    text.split(',').map(|count| count.trim().parse().ok()).collect::<Option<_>>().map(Self::Sections)
                }
            },
        };
        parsed.ok_or_else(|| {
            DiffusionError::setting(
                KEY,
                &format!("\"{text}\""),
                "leading, trailing, linspace, or a respacing such as \"250\", \"10,15,20\" or \"ddim50\"",
                "write one of these",
            )
        })
    }
}

impl TryFrom<String> for Spacing {
    type Error = DiffusionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Spacing> for String {
    fn from(spacing: Spacing) -> Self {
        spacing.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn kept(spacing: &str, steps: Option<usize>, total: usize) -> Vec<usize> {
        let kept = spacing.parse::<Spacing>().unwrap().kept_timesteps(steps, total).unwrap();
        kept.into_iter().map(Timestep::index).collect()
    }

    fn refusal(spacing: &str, steps: Option<usize>, total: usize) -> String {
        spacing.parse::<Spacing>().and_then(|s| s.kept_timesteps(steps, total)).unwrap_err().to_string()
    }

    /// Golden values of improved-diffusion's `space_timesteps`.
    #[test]
    fn respacing_agrees_with_improved_ddpm() {
        let quarter = kept("250", None, 1000);
        assert_eq!(quarter.len(), 250);
        assert_eq!(quarter[..6], [0, 4, 8, 12, 16, 20]);
        assert_eq!(quarter[247..], [991, 995, 999]);
        assert_eq!(kept("10", None, 1000), [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]);
        assert_eq!(kept("ddim10", None, 1000), [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]);
    }

    #[test]
    fn sections_keep_their_own_ends() {
        assert_eq!(kept("3,2,1", None, 10), [0, 2, 3, 4, 6, 7]); // sections of 4, 3 and 3; 1.5 rounds to 2
        assert_eq!(kept("3", None, 6), [0, 2, 5]); // 2.5 rounds to 2, the even neighbour
    }

    /// The timesteps of diffusers' schedulers, reversed: worked out by hand from numpy's definitions.
    #[test]
    fn spacings_mean_what_they_mean_in_diffusers() {
        assert_eq!(kept("leading", Some(4), 10), [0, 2, 4, 6]);
        assert_eq!(kept("trailing", Some(4), 10), [1, 4, 7, 9]); // 10, 7.5, 5, 2.5 -> 10, 8, 5, 2
        assert_eq!(kept("linspace", Some(4), 10), [0, 3, 6, 9]);
        assert_eq!(kept("linspace", Some(3), 10), [0, 4, 9]); // 4.5 -> 4
        for name in ["leading", "trailing", "linspace"] {
            assert_eq!(kept(name, None, 7), [0, 1, 2, 3, 4, 5, 6]);
            assert_eq!(kept(name, Some(1), 1), [0]);
        }
    }

    #[test]
    fn every_number_of_steps_gives_so_many_distinct_ascending_timesteps() {
        for name in ["leading", "trailing", "linspace"] {
            for steps in 1..=97 {
                let kept = kept(name, Some(steps), 97);
                assert_eq!(kept.len(), steps);
                assert!(kept.is_sorted_by(|a, b| a < b), "{name}, {steps}: {kept:?}");
            }
        }
    }

    #[test]
    fn spacings_that_do_not_fit_are_refused_with_the_reason() {
        assert_eq!(
            refusal("leading", Some(1001), 1000),
            "sample.steps = 1001: expected 1 to 1000, the timesteps the model was trained with"
        );
        assert!(refusal("leading", Some(0), 1000).contains("1 to 1000"));
        assert!(refusal("600,600", None, 1000).contains("1 to 500 steps from section 1 of 2"));
        assert!(refusal("ddim999", None, 1000).contains("integer stride"));
        assert!(refusal("250", Some(50), 1000).contains("expected 250"));
        assert!(refusal("0", None, 10).contains("1 to 10 steps"));
        for unknown in ["", "evenly", "ddim", "10,", "ddim-5", "1.5"] {
            assert!(refusal(unknown, None, 10).contains("leading, trailing, linspace"), "{unknown}");
        }
    }

    #[test]
    fn a_spacing_is_written_as_it_is_read() {
        for text in ["leading", "trailing", "linspace", "250", "10,15,20", "ddim50"] {
            assert_eq!(text.parse::<Spacing>().unwrap().to_string(), text);
        }
    }
}
