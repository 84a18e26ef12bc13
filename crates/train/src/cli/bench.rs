//! `ddpm bench`.

use super::args::{BenchArgs, BenchKind};
use super::output::{Align, Output, Table};
use crate::config::{Resolved, TrainPlan};
use crate::error::Failure;
use crate::memory::format_bytes;
use crate::training::measure::{StepMeasurement, measure_step};

/// Measures, and prints a table.
pub(super) fn run(args: &BenchArgs, output: &Output) -> Result<(), Failure> {
    let plan = TrainPlan::new(&Resolved::load(&args.config, &args.set)?)?;
    match args.what {
        BenchKind::Step => {
            let measurement = measure_step(&plan, args.repeat)?;
            output.result(&measurement, || table(&measurement))
        }
    }
}

fn table(m: &StepMeasurement) -> String {
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
    if let Some(peak) = m.peak_bytes {
        table.row(&[&"peak memory", &format_bytes(peak)]);
    }
    table.render()
}
