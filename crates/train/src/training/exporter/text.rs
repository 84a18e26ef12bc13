//! The numbers in Prometheus' text format, version 0.0.4, under names as its guide has them: base units, `_total` for what only grows.

use std::fmt::{Display, Write as _};

use ddpm_run::metrics::{GpuState, Loading};
use ddpm_run::{RunPhase, memory};

use super::Values;

/// The type of the format.
pub(super) const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
pub(super) const PLAIN: &str = "text/plain; charset=utf-8";

/// All phases, of which one is 1.
const PHASES: [RunPhase; 6] =
    [RunPhase::Training, RunPhase::Saving, RunPhase::Sampling, RunPhase::Done, RunPhase::Stopped, RunPhase::Failed];

/// A page that is being written.
#[derive(Default)]
struct Page(String);

impl Page {
    /// A number with its name, its kind and what it is; left out where it is not known.
    fn number(&mut self, name: &str, kind: &str, help: &str, value: Option<impl Display>) {
        self.family(name, kind, help, value.map(|value| (String::new(), value)));
    }

    /// The same under several labels.
    fn family(&mut self, name: &str, kind: &str, help: &str, values: impl IntoIterator<Item = (String, impl Display)>) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return;
        }
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}

/// The labels `{name="value",...}`.
fn labels(pairs: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

/// The page of `/metrics`.
pub(super) fn of(values: &Values, stalled: bool) -> String {
    let mut page = Page::default();
    let Values { run, device, rollbacks, status, record, saved, sensors } = values;
    let version = env!("CARGO_PKG_VERSION");
    let info = labels(&[("run", run), ("device", device), ("version", version)]);
    page.family("ddpm_run_info", "gauge", "The run: its name, its device and the program's version.", [(info, 1)]);
    let is_phase = |phase: RunPhase| u8::from(status.as_ref().is_some_and(|status| status.phase == phase));
    let name = |phase: RunPhase| labels(&[("phase", &phase.to_string())]);
    let phases = PHASES.map(|phase| (name(phase), is_phase(phase)));
    page.family("ddpm_phase", "gauge", "1 for what the run is doing; all 0 while it is set up.", phases);
    page.number("ddpm_stalled", "gauge", "Whether there is no progress, see run.stall_after.", Some(u8::from(stalled)));
    let status = status.as_ref();
    page.number("ddpm_steps_total", "counter", "Optimizer steps done.", status.map(|status| status.step));
    page.number(
        "ddpm_steps_planned",
        "gauge",
        "Steps that the run is to make in all.",
        status.map(|status| status.steps),
    );
    let left = status.and_then(|status| status.seconds_left);
    page.number("ddpm_time_left_seconds", "gauge", "Until the last step, at the speed so far.", left);
    page.number("ddpm_rollbacks_total", "counter", "How often the run went back after a divergence.", Some(rollbacks));
    if let Some(record) = record {
        page.number("ddpm_images_total", "counter", "Images seen, at the last logged step.", Some(record.images));
        let loss = Some(record.loss);
        page.number("ddpm_loss", "gauge", "Mean training loss since the logged step before.", loss);
        let parts = record.loss_parts.iter().map(|(part, value)| (labels(&[("part", part)]), value));
        page.family("ddpm_loss_part", "gauge", "Parts of the loss.", parts);
        page.number("ddpm_learning_rate", "gauge", "Learning rate.", Some(record.lr));
        page.number("ddpm_gradient_norm", "gauge", "Norm of the gradient before clipping.", Some(record.grad_norm));
        let skipped = Some(record.skipped);
        page.number(
            "ddpm_skipped_steps_total",
            "counter",
            "Steps that changed nothing: not finite, or a spike.",
            skipped,
        );
        let speed = Some(record.timing.images_per_s);
        page.number("ddpm_images_per_second", "gauge", "Speed since the logged step before.", speed);
        let wait = Some(record.timing.data_wait);
        page.number("ddpm_data_wait_ratio", "gauge", "Share of the time spent waiting for data.", wait);
        loading(&mut page, record.timing.loading);
    }
    if let Some(saved) = saved {
        page.number("ddpm_checkpoint_step", "gauge", "Step of the newest checkpoint.", Some(saved.step));
        let (took, at) = (saved.took.as_secs_f64(), saved.at.as_secs_f64());
        page.number("ddpm_checkpoint_duration_seconds", "gauge", "How long it took to write and verify.", Some(took));
        page.number("ddpm_checkpoint_timestamp_seconds", "gauge", "When it was written, since 1970.", Some(at));
    }
    page.number("process_resident_memory_bytes", "gauge", "Resident memory.", memory::resident());
    gpus(&mut page, &sensors.as_ref().map(|sensors| sensors.read()).unwrap_or_default());
    page.0
}

fn loading(page: &mut Page, loading: Option<Loading>) {
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(Loading) -> f64| {
        page.number(name, "gauge", help, loading.map(value));
    };
    gauge("ddpm_data_queue_batches", "Finished batches that wait for the training step.", &|l| l.queue as f64);
    gauge("ddpm_data_file_bytes_per_second", "Bytes of images' files that were read.", &|l| l.file_bytes_per_s);
    gauge("ddpm_data_decoded_images_per_second", "Images that were decoded.", &|l| l.decoded_per_s);
    gauge("ddpm_data_reading_ratio", "Share of the loader's work that was waiting for bytes.", &|l| l.reading);
}

fn gpus(page: &mut Page, gpus: &[(String, GpuState)]) {
    let mut family = |name: &str, help: &str, value: &dyn Fn(&GpuState) -> Option<f64>| {
        let known = gpus.iter().enumerate().filter_map(|(index, (gpu, state))| {
            let number = index.to_string();
            Some((labels(&[("gpu", &number), ("name", gpu)]), value(state)?))
        });
        page.family(name, "gauge", help, known.collect::<Vec<_>>());
    };
    family("ddpm_gpu_busy_ratio", "Share of the time that something ran on the GPU.", &|gpu| gpu.busy);
    let memory = |gpu: &GpuState| gpu.memory_bytes.map(|bytes| bytes as f64);
    family("ddpm_gpu_memory_used_bytes", "Memory of the GPU that all processes take.", &memory);
    let temperature = |gpu: &GpuState| gpu.temperature_celsius.map(f64::from);
    family("ddpm_gpu_temperature_celsius", "Temperature of the GPU.", &temperature);
    family("ddpm_gpu_power_watts", "Power that the board takes.", &|gpu| gpu.power_watts);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        assert_eq!(labels(&[("run", "a\"b\\c\nd")]), "{run=\"a\\\"b\\\\c\\nd\"}");
    }

    #[test]
    fn gpus_are_numbered_and_named_and_what_they_do_not_tell_is_left_out() {
        let state = GpuState { busy: Some(0.5), memory_bytes: None, temperature_celsius: Some(61), power_watts: None };
        let mut page = Page::default();
        gpus(&mut page, &[("Fake 100".to_owned(), state)]);
        assert!(page.0.contains("\nddpm_gpu_busy_ratio{gpu=\"0\",name=\"Fake 100\"} 0.5\n"), "{}", page.0);
        assert!(page.0.contains("} 61\n") && !page.0.contains("power") && !page.0.contains("memory"), "{}", page.0);
    }

    #[test]
    fn the_loader_has_its_numbers_where_it_has_worked() {
        let mut page = Page::default();
        loading(&mut page, Some(Loading { queue: 3, file_bytes_per_s: 1.5e6, decoded_per_s: 80.0, reading: 0.25 }));
        assert!(page.0.contains("\nddpm_data_queue_batches 3\n"), "{}", page.0);
        assert!(page.0.contains("\nddpm_data_reading_ratio 0.25\n"), "{}", page.0);
        let mut page = Page::default();
        loading(&mut page, None);
        assert_eq!(page.0, "");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let page = of(&Values::default(), false);
        assert!(page.contains("\nddpm_phase{phase=\"training\"} 0\n") && page.contains("\nddpm_stalled 0\n"), "{page}");
        assert!(!page.contains("ddpm_loss") && !page.contains("ddpm_steps_total"), "{page}");
    }
}
