//! `ddpm bench`.

use ddpm_run::memory::format_bytes;
use ddpm_train::config::{Resolved, TrainPlan};
use ddpm_train::measuring::operations::{Operations, Progress, measure_operations};
use ddpm_train::measuring::step::{SingleStepMs, StepMeasurement, measure_step};
use ddpm_train::measuring::throughput::{DataMeasurement, SampleMeasurement, measure_data, measure_sample};
use serde_json::json;

use super::args::{BenchArgs, BenchKind};
use super::output::{Align, Output, Table};
use crate::failure::Failure;

/// Measures and prints a table.
pub(super) fn run(args: &BenchArgs, output: &Output) -> Result<(), Failure> {
    let plan = TrainPlan::new(&Resolved::load(&args.config, &args.settings())?)?;
    match args.what {
        BenchKind::Step => {
            let measurement = measure_step(&plan, args.repeat)?;
            output.result(&measurement, || step_table(&measurement))
        }
        BenchKind::Sample => {
            let measurement = measure_sample(&plan, args.repeat)?;
            output.result(&measurement, || sample_table(&measurement))
        }
        BenchKind::Data => {
            let measurement = measure_data(&plan, args.repeat)?;
            output.result(&measurement, || data_table(&measurement))
        }
        BenchKind::Ops => {
            let mut counter = None;
            let operations = measure_operations(&plan, args.repeat, &mut |progress| match progress {
                Progress::Done(done, all) => {
                    counter.get_or_insert_with(|| output.counter(all, "operations")).set(done as u64, "");
                    Ok(())
                }
                Progress::Timed(op) => output.piece(&json!({"op": op})),
            })?;
            drop(counter);
            output.result(&operations, || operations_table(&operations))
        }
    }
}

fn step_table(m: &StepMeasurement) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right]);
    table.row(&[&"parameters", &m.parameters]);
    table.row(&[&"batch size", &m.batch_size]);
    table.row(&[&"precision", &m.precision]);
    table.row(&[&"device", &m.device]);
    table.row(&[&"step, median", &format!("{:.1} ms", m.median_ms)]);
    table.row(&[&"step, range", &format!("{:.1} to {:.1} ms", m.min_ms, m.max_ms)]);
    table.row(&[&"images/s", &format!("{:.1}", m.images_per_s)]);
    table.row(&[&"data wait", &format!("{:.2} ms", m.phases_ms.data)]);
    table.row(&[&"forward", &format!("{:.1} ms", m.phases_ms.forward)]);
    table.row(&[&"backward", &format!("{:.1} ms", m.phases_ms.backward)]);
    table.row(&[&"optimizer", &format!("{:.1} ms", m.phases_ms.optimizer)]);
    if let Some(SingleStepMs { before, after }) = m.around_picture_ms {
        table.row(&[&"one step, before and after a picture", &format!("{before:.1} and {after:.1} ms")]);
    }
    peak_row(&mut table, m.peak_bytes, m.estimated_bytes);
    table.render()
}

fn sample_table(m: &SampleMeasurement) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right]);
    table.row(&[&"images at once", &m.batch_size]);
    table.row(&[&"sampler", &format!("{}, {} steps", m.sampler, m.steps)]);
    table.row(&[&"precision", &m.precision]);
    table.row(&[&"device", &m.device]);
    table.row(&[&"all images, median", &format!("{:.1} ms", m.median_ms)]);
    table.row(&[&"all images, range", &format!("{:.1} to {:.1} ms", m.min_ms, m.max_ms)]);
    table.row(&[&"images/s", &format!("{:.2}", m.images_per_s)]);
    peak_row(&mut table, m.peak_bytes, None);
    table.render()
}

fn data_table(m: &DataMeasurement) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right]);
    table.row(&[&"workers", &m.workers]);
    table.row(&[&"batch size", &m.batch_size]);
    table.row(&[&"batch, median", &format!("{:.2} ms", m.median_batch_ms)]);
    table.row(&[&"images/s", &format!("{:.0}", m.images_per_s)]);
    table.row(&[&"pixels", &format!("{}/s", format_bytes(m.bytes_per_s as u64))]);
    table.row(&[&"files", &format!("{}/s", format_bytes(m.file_bytes_per_s as u64))]);
    for (name, share) in [("reading", m.reading), ("decoding", m.decoding), ("cutting, resizing", m.fitting)] {
        table.row(&[&name, &format!("{:.0}% of the workers' time", 100.0 * share)]);
    }
    let of_limit = 100.0 * m.images_per_s / m.decoder_images_per_s;
    let limit = format!("{:.0} images/s, of which this is {of_limit:.0}%", m.decoder_images_per_s);
    table.row(&[&"decoding alone", &limit]);
    table.render()
}

fn operations_table(operations: &Operations) -> String {
    let Operations { device, precision, batch_size, ops } = operations;
    let right = Align::Right;
    let mut table = Table::new(&[Align::Left, Align::Left, right, right, right, right]);
    table.row(&[&"operation", &"shape", &"count", &"ms", &"GB/s", &"GFLOP/s"]);
    for op in ops {
        let rate = |amount: u64| format!("{:.1}", amount as f64 / op.ms / 1e6);
        table.row(&[&op.name, &op.shape, &op.count, &format!("{:.4}", op.ms), &rate(op.bytes), &rate(op.flop)]);
    }
    let sum: f64 = ops.iter().map(|op| op.ms * op.count as f64).sum();
    format!(
        "{device}, {precision}, {batch_size} images\n\n{}\nall of them, as often as they run: {sum:.1} ms",
        table.render()
    )
}

fn peak_row(table: &mut Table, peak_bytes: Option<u64>, estimated_bytes: Option<u64>) {
    if let Some(peak) = peak_bytes {
        let estimated = estimated_bytes.map_or(String::new(), |bytes| format!(", estimated {}", format_bytes(bytes)));
        table.row(&[&"peak memory", &format!("{}{estimated}", format_bytes(peak))]);
    }
}
