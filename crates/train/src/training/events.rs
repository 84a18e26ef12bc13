//! The names under which a run reports: its spans, and the targets of its events.
//!
//! | span | level | around | fields |
//! | --- | --- | --- | --- |
//! | [`RUN`] | info | everything after data, device and checkpoint were opened | `dir`, `log` (the path of `log.jsonl`), `rank`, `first` (steps done before), `total` (the last step), `step` (steps done; recorded after each) |
//! | `step` | trace | one optimizer step | `step` |
//! | `data` | trace | the wait for a batch | |
//! | `forward`, `backward`, `optimizer` | trace | on a CPU, the phases of a step, from the engine's clock | |
//! | `queue`, `record`, `replay` | trace | on a GPU: work that is queued operation by operation, recorded, replayed | |
//! | `snapshot`, `save` | debug | copying a checkpoint's content; writing it, on its thread | `step` |
//! | `sample` | debug | a picture | `step` |
//! | `upload` | debug | a push to the hub, on its thread | `repo` |
//!
//! The run's span has the target [`PROGRESS`]. The events of that target are logged steps: `step`, `loss`, `images_per_s`,
//! `data_wait`. The event of the target [`FAILURE`] is the error that ends the run, which is also returned to the caller.

/// The span of a run.
pub const RUN: &str = "run";
/// The target of the run and its logged steps.
pub const PROGRESS: &str = "ddpm_train::progress";
/// The target of the error that ends a run.
pub const FAILURE: &str = "ddpm_train::failure";
