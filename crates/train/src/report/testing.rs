//! A record to report.

use std::collections::BTreeMap;

use ddpm_run::metrics::{MetricRecord, Timing};

/// A record at `step` with values that are not exact in binary.
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
            loading: None,
            gpus: Vec::new(),
        },
    }
}
