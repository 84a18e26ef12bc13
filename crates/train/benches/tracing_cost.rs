//! The cost of a step's spans compared with the step: without a listener, and with those of every run (stderr and `log.jsonl`,
//! which take no spans of phases).
//!
//! ```sh
//! cargo bench -p ddpm-train --bench tracing_cost
//! ```
//! The spans are those of a step of the loop with one micro-batch (`training/events.rs`): too short to be seen in the time of
//! steps, so they are timed alone, many times, and compared with a step of the quick start.

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use ddpm_train::config::{Resolved, TrainPlan};
use ddpm_train::measuring::step::measure_step;
use ddpm_train::training::events::RUN;
use tracing::{Span, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer, registry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/quickstart.toml");
const STEPS: u64 = 200_000;
const ROUNDS: usize = 5;

/// A listener that does nothing.
struct Silent;

impl<S: Subscriber> Layer<S> for Silent {}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` calls benchmarks with other arguments; only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let plan = TrainPlan::new(&Resolved::load(Path::new(CONFIG), &[])?)?;
    let step_ms = measure_step(&plan, 10)?.median_ms;
    println!("configs/quickstart.toml, {} threads: a step takes {step_ms:.1} ms", rayon::current_num_threads());
    let print = |who: &str, times: [f64; ROUNDS]| {
        let (least, most) = (times.iter().copied().fold(f64::MAX, f64::min), times.iter().copied().fold(0.0, f64::max));
        let share = 100.0 * most * 1e-6 / step_ms;
        println!("{who}: {least:.0} to {most:.0} ns for the spans of a step, at most {share:.6} % of it");
    };
    print("no listener", spans_of_steps());
    let ours = |level| Targets::new().with_target("ddpm", level).with_target("tracing_cost", level);
    let listening =
        registry().with(Silent.with_filter(ours(LevelFilter::INFO))).with(Silent.with_filter(ours(LevelFilter::DEBUG)));
    print("stderr and a log", tracing::subscriber::with_default(listening, spans_of_steps));
    let traced = registry().with(Silent.with_filter(ours(LevelFilter::TRACE)));
    print("a listener for every span", tracing::subscriber::with_default(traced, spans_of_steps));
    Ok(())
}

/// Nanoseconds for the spans of one step, some times over.
fn spans_of_steps() -> [f64; ROUNDS] {
    let run = tracing::info_span!(RUN, first = 0_u64, total = STEPS, step = 0_u64).entered();
    std::array::from_fn(|_| {
        let start = Instant::now();
        (0..STEPS).for_each(|step| spans_of_step(&run, black_box(step)));
        start.elapsed().as_secs_f64() * 1e9 / STEPS as f64
    })
}

fn spans_of_step(run: &Span, step: u64) {
    tracing::trace_span!("batch", step).in_scope(|| black_box(step));
    let in_step = tracing::trace_span!("step", step).entered();
    tracing::trace_span!("data").in_scope(|| black_box(step));
    tracing::trace_span!("forward").in_scope(|| black_box(step));
    tracing::trace_span!("backward").in_scope(|| black_box(step));
    tracing::trace_span!("optimizer").in_scope(|| black_box(step));
    in_step.exit();
    run.record("step", step);
}
