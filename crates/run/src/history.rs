//! All that a run has logged, for plots and comparisons: `metrics.jsonl` read from its beginning, a line at a time.
//!
//! A number has the name of its place in the line (`loss`, `loss_parts.mse`, `loss_quartile.1`, `timing.images_per_s`), or only the
//! last part of that. Lines are read as JSON and not as [`MetricRecord`](crate::metrics::MetricRecord): a loss that was not finite is
//! `null` there, and other versions may log other numbers.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

/// A line that is read no further than this; ours have some 500 bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Calls `take` with the step and the record of every line of the file at `path`. What is no record of a step is passed over, such as
/// a last line that is being written.
///
/// # Errors
/// The file cannot be read; that there is none is no error.
pub fn read(path: &Path, mut take: impl FnMut(u64, Value)) -> io::Result<()> {
    let mut lines = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => BufReader::new(file?),
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        if io::Read::take(&mut lines, LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if let Ok(record) = serde_json::from_slice::<Value>(&line)
            && let Some(step) = record["step"].as_u64()
        {
            take(step, record);
        }
    }
}

/// The number of this name in a record; none if there is none, or it was not finite.
pub fn number(record: &Value, name: &str) -> Option<f64> {
    let mut found = None;
    each(record, "", &mut |path, value| {
        if found.is_none() && is_called(path, name) {
            found = Some(value.as_f64());
        }
    });
    found.flatten()
}

/// The names of the numbers in a record.
pub fn names(record: &Value) -> Vec<String> {
    let mut names = Vec::new();
    each(record, "", &mut |path, _| names.push(path.to_owned()));
    names
}

/// Whether the number at `path` may be called `name`.
fn is_called(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|before| before.ends_with('.'))
}

/// Calls `take` with the path of every number, also of one that was not finite.
fn each(value: &Value, path: &str, take: &mut impl FnMut(&str, &Value)) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Number(_) | Value::Null => take(path, value),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| each(value, &below(name), take)),
        Value::Array(values) => {
            values.iter().zip(1..).for_each(|(value, number)| each(value, &below(&number.to_string()), take));
        }
        Value::Bool(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::metrics::testing::record;

    #[test]
    fn a_number_has_the_name_of_its_place_or_the_last_part_of_it() {
        let line = json!(record(30));
        let found = |name: &str| number(&line, name);
        assert_eq!((found("loss"), found("lr")), (Some(record(30).loss), Some(2e-4)));
        assert_eq!((found("loss_parts.mse"), found("mse")), (Some(0.1), Some(0.1)));
        assert_eq!((found("timing.images_per_s"), found("images_per_s")), (Some(812.5), Some(812.5)));
        assert_eq!((found("loss_quartile.1"), found("loss_quartile.2"), found("oss")), (Some(0.3), None, None));
        let names = names(&line);
        assert!(names.contains(&"loss_parts.vlb".into()) && names.contains(&"loss_quartile.2".into()), "{names:?}");
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let steps = || {
            let mut steps = Vec::new();
            read(&path, |step, record| steps.push((step, number(&record, "loss")))).unwrap();
            steps
        };
        assert_eq!(steps(), []);
        let long = "x".repeat(3 << 20);
        let text =
            format!("{{\"step\":1,\"loss\":0.5}}\nnonsense\n{long}\n[]\n{{\"step\":2,\"loss\":null}}\n{{\"step\":3");
        std::fs::write(&path, text).unwrap();
        assert_eq!(steps(), [(1, Some(0.5)), (2, None)]);
    }
}
