//! One logged step.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is logged about a step. All but `timing` is a function of configuration and data, so two runs can be compared bit
/// for bit by comparing their lines without it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricRecord {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// Images seen in all.
    pub images: u64,
    /// The training loss: mean over the batch.
    pub loss: f64,
    /// Its parts by name (`mse`, `vlb`), where it has any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loss_parts: BTreeMap<String, f64>,
    /// Mean loss of the images whose t fell into the 1st, 2nd, 3rd, 4th quarter of the timesteps; none may have.
    pub loss_quartile: [Option<f64>; 4],
    /// The learning rate of the step.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Steps so far that changed nothing, because their gradient was not finite or, where that was asked for, a spike.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// A hash of the weights, where that was asked for (`log.params_hash`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params_hash: Option<String>,
    /// Changes of the configuration that were accepted since the last record: `key: old -> new`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<String>,
    /// What depends on the machine and the moment.
    pub timing: Timing,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The part of a record that differs between two equal runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Since the last record.
    pub images_per_s: f64,
    /// Share of that time, 0 to 1, that was spent waiting for data.
    pub data_wait: f64,
    /// Resident memory, where the system reports it.
    pub memory_bytes: Option<u64>,
    /// What the loader's threads did since the last record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<Loading>,
    /// The GPUs of the machine, for a run on one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuState>,
}

/// How images came in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Loading {
    /// Finished batches that waited for the step when it was logged.
    pub queue: usize,
    /// Bytes of images' files.
    pub file_bytes_per_s: f64,
    /// Images that became pixels.
    pub decoded_per_s: f64,
    /// Share of the threads' work, 0 to 1, that was waiting for bytes; the rest is decoding, cutting and resizing.
    pub reading: f64,
}

/// A smaller share of waiting for data is worth no word.
const WORTH_A_WORD: f64 = 0.05;

/// What the steps of a run wait for, of which `data_wait` is the share of their time and `reading` that of the loader's work:
/// `reads` of a disk or network, or `decoding`. `None` where they wait for neither.
pub fn waits_for(data_wait: f64, reading: Option<f64>) -> Option<&'static str> {
    let reading = reading.filter(|_| data_wait >= WORTH_A_WORD)?;
    Some(if reading >= 0.5 { "reads" } else { "decoding" })
}

/// What a GPU says of itself; numbers that it does not tell are left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GpuState {
    /// Share of the time, 0 to 1, that something ran on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<f64>,
    /// Taken by all processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Of its core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// Of the whole board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<f64>,
}

impl Timing {
    /// What the steps waited for: see [`waits_for`].
    pub fn waits_for(&self) -> Option<&'static str> {
        waits_for(self.data_wait, self.loading.map(|loading| loading.reading))
    }
}

impl MetricRecord {
    /// The record as named numbers, for plots.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars = vec![("train/loss".to_owned(), self.loss)];
        scalars.extend(self.loss_parts.iter().map(|(name, value)| (format!("train/loss_{name}"), *value)));
        let quartiles = self.loss_quartile.iter().enumerate();
        scalars.extend(quartiles.filter_map(|(i, loss)| Some((format!("loss_quartile/{}", i + 1), (*loss)?))));
        scalars.push(("train/lr".into(), self.lr));
        scalars.push(("train/grad_norm".into(), self.grad_norm));
        scalars.push(("train/images".into(), self.images as f64));
        scalars.push(("speed/images_per_s".into(), self.timing.images_per_s));
        scalars.push(("speed/data_wait".into(), self.timing.data_wait));
        if let Some(Loading { queue, file_bytes_per_s, decoded_per_s, reading }) = self.timing.loading {
            scalars.push(("speed/queue".into(), queue as f64));
            scalars.push(("speed/file_bytes_per_s".into(), file_bytes_per_s));
            scalars.push(("speed/decoded_per_s".into(), decoded_per_s));
            scalars.push(("speed/reading".into(), reading));
        }
        scalars.extend(self.timing.memory_bytes.map(|bytes| ("speed/memory_bytes".into(), bytes as f64)));
        scalars
    }
}

/// How much of the end of a file is read for its last record.
const TAIL: u64 = 64 << 10;

/// The last whole record of the file at `path`; none where there is none with finite numbers near its end, or no file.
pub fn last(path: &Path) -> Option<MetricRecord> {
    let mut file = File::open(path).ok()?;
    let start = file.metadata().ok()?.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    tail.rsplit(|byte| *byte == b'\n').find_map(|line| serde_json::from_slice(line).ok())
}

/// The last loss in the file at `path` up to `step`; none if there is none, or no file.
pub fn last_loss(path: &Path, step: u64) -> Option<f64> {
    last_loss_of(&fs::read_to_string(path).ok()?, step)
}

fn last_loss_of(metrics: &str, step: u64) -> Option<f64> {
    let records = metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let until = records.take_while(|record| record["step"].as_u64().is_some_and(|logged| logged <= step));
    until.last()?["loss"].as_f64()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A record at `step` with values that do not end in binary.
    pub(crate) fn record(step: u64) -> MetricRecord {
        MetricRecord {
            step,
            images: step * 64,
            loss: 0.1 + step as f64 / 3.0,
            loss_parts: BTreeMap::from([("mse".into(), 0.1), ("vlb".into(), 1e-7)]),
            loss_quartile: [Some(0.3), None, Some(0.05), Some(1.0 / 3.0)],
            lr: 2e-4,
            grad_norm: 0.7,
            skipped: 0,
            params_hash: None,
            accepted: Vec::new(),
            timing: Timing {
                images_per_s: 812.5,
                data_wait: 0.013,
                memory_bytes: Some(300 << 20),
                loading: Some(Loading { queue: 4, file_bytes_per_s: 1.5e6, decoded_per_s: 820.25, reading: 0.1 }),
                gpus: Vec::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::record;
    use super::{last_loss_of, waits_for};

    #[test]
    fn the_loss_is_the_last_one_logged_up_to_the_checkpoint() {
        let metrics = "{\"step\":1,\"loss\":0.5}\n{\"step\":3,\"loss\":0.25}\n{\"step\":9,\"loss\":0.1}\n{\"st";
        assert_eq!(last_loss_of(metrics, 8), Some(0.25));
        assert_eq!(last_loss_of(metrics, 9), Some(0.1));
        assert_eq!(last_loss_of(metrics, 0), None);
        assert_eq!(last_loss_of("", 5), None);
    }

    #[test]
    fn what_is_waited_for_has_a_word_where_it_is_worth_one() {
        assert_eq!(waits_for(0.4, Some(0.9)), Some("reads"));
        assert_eq!(waits_for(0.4, Some(0.2)), Some("decoding"));
        assert_eq!((waits_for(0.01, Some(0.9)), waits_for(0.4, None)), (None, None));
    }

    #[test]
    fn an_empty_quartile_is_not_plotted() {
        let names: Vec<_> = record(1).scalars().into_iter().map(|(name, _)| name).collect();
        assert!(names.contains(&"loss_quartile/1".into()) && !names.contains(&"loss_quartile/2".into()));
        assert!(names.contains(&"train/loss_vlb".into()) && names.contains(&"speed/memory_bytes".into()));
    }
}
