//! The logged numbers of two runs beside each other, at the steps that both have logged.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::Path;

use ddpm_run::history;
use serde::Serialize;
use serde_json::Value;

/// Rows of the table of losses.
const ROWS: usize = 8;

/// A logged step, as far as it is compared.
struct Logged {
    step: u64,
    /// Of all that does not depend on the machine and the moment.
    digest: u64,
    loss: Option<f64>,
}

/// All that a run has logged.
pub(super) struct History {
    logged: Vec<Logged>,
    /// Median over all lines; none without any.
    pub(super) images_per_s: Option<f64>,
    /// Median share of the time.
    pub(super) data_wait: Option<f64>,
}

impl History {
    /// Reads `metrics.jsonl` at `path`.
    ///
    /// # Errors
    /// It cannot be read; that there is none is no error.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let (mut logged, mut speeds, mut waits) = (Vec::new(), Vec::new(), Vec::new());
        history::read(path, |step, mut record| {
            speeds.extend(history::number(&record, "images_per_s"));
            waits.extend(history::number(&record, "data_wait"));
            if let Some(record) = record.as_object_mut() {
                record.shift_remove("timing");
            }
            logged.push(Logged { step, digest: digest(&record), loss: history::number(&record, "loss") });
        })?;
        Ok(Self { logged, images_per_s: median(speeds), data_wait: median(waits) })
    }
}

/// Numbers are written as the shortest text that reads back to the same bits, so equal texts are equal numbers.
fn digest(record: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    record.to_string().hash(&mut hasher);
    hasher.finish()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// What two runs have logged at the same steps.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Curves {
    /// Steps that both have logged.
    pub(super) common_steps: usize,
    /// The newest of them.
    pub(super) last_common_step: Option<u64>,
    /// The first of them at which a number differs in any bit, timing aside.
    pub(super) first_difference: Option<u64>,
    pub(super) loss: Vec<Row>,
}

/// The mean losses of some of these steps.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) from_step: u64,
    pub(super) to_step: u64,
    /// None where no loss was finite.
    pub(super) a: Option<f64>,
    pub(super) b: Option<f64>,
}

impl Curves {
    pub(super) fn of(a: &History, b: &History) -> Self {
        let mut others = b.logged.iter().peekable();
        let mut common: Vec<(&Logged, &Logged)> = Vec::new();
        for logged in &a.logged {
            while others.next_if(|other| other.step < logged.step).is_some() {}
            common.extend(others.next_if(|other| other.step == logged.step).map(|other| (logged, other)));
        }
        let first_difference = common.iter().find(|(a, b)| a.digest != b.digest).map(|(a, _)| a.step);
        let loss = common.chunks(common.len().div_ceil(ROWS).max(1)).map(row).collect();
        let last_common_step = common.last().map(|(a, _)| a.step);
        Self { common_steps: common.len(), last_common_step, first_difference, loss }
    }
}

fn row(steps: &[(&Logged, &Logged)]) -> Row {
    let mean = |losses: Vec<f64>| (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64);
    Row {
        from_step: steps.first().map_or(0, |(a, _)| a.step),
        to_step: steps.last().map_or(0, |(a, _)| a.step),
        a: mean(steps.iter().filter_map(|(a, _)| a.loss).collect()),
        b: mean(steps.iter().filter_map(|(_, b)| b.loss).collect()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn history(lines: &[(u64, f64)], speed: f64) -> History {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let line = |(step, loss): &(u64, f64)| {
            json!({"step": step, "loss": loss, "timing": {"images_per_s": speed, "data_wait": 0.0}}).to_string() + "\n"
        };
        std::fs::write(&path, lines.iter().map(line).collect::<String>()).unwrap();
        History::read(&path).unwrap()
    }

    #[test]
    fn the_first_step_that_differs_in_a_bit_is_found_and_timing_is_none() {
        let a: Vec<(u64, f64)> = (1..=40).map(|step| (step, 1.0 / step as f64)).collect();
        let mut b = a.clone();
        assert_eq!(Curves::of(&history(&a, 1.0), &history(&b, 2.0)).first_difference, None);
        b[24].1 = b[24].1.next_up();
        let curves = Curves::of(&history(&a, 1.0), &history(&b, 1.0));
        assert_eq!((curves.common_steps, curves.first_difference), (40, Some(25)));
        assert_eq!((curves.loss.len(), curves.loss[0].from_step, curves.loss[7].to_step), (8, 1, 40));
    }

    #[test]
    fn only_steps_that_both_have_logged_are_compared() {
        let curves = Curves::of(&history(&[(2, 1.0), (4, 2.0), (6, 3.0)], 1.0), &history(&[(3, 9.0), (6, 5.0)], 1.0));
        assert_eq!((curves.common_steps, curves.first_difference), (1, Some(6)));
        assert_eq!(curves.loss, [Row { from_step: 6, to_step: 6, a: Some(3.0), b: Some(5.0) }]);
        let none = Curves::of(&history(&[(1, 1.0)], 1.0), &history(&[], 1.0));
        assert_eq!((none.common_steps, none.last_common_step, none.loss.len()), (0, None, 0));
    }
}
