//! `--trace FILE`: where the time went, in the Chrome Trace Event Format, which <https://ui.perfetto.dev> and
//! `chrome://tracing` open.
//!
//! Each time a span is entered and left is one complete event (`"ph": "X"`) on the line of its thread, with its fields as
//! `args`; a message is an instant (`"ph": "i"`). The file ends with its closing bracket after every write, so it is JSON
//! whenever the process ends; a killed process loses the events since the last write, at most a second or 32 KiB.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;

const HEAD: &str = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
const TAIL: &str = "\n]}\n";
/// Written when so many bytes wait ...
const BYTES: usize = 32 << 10;
/// ... or for so long.
const AGE: Duration = Duration::from_secs(1);
/// The process of rank 0. Perfetto takes 0 for the idle process.
const PROCESS: u64 = 1;

/// The file, to which all threads write.
#[derive(Debug)]
pub(super) struct TraceFile {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Offset of the closing bracket.
    end: u64,
    waiting: String,
    written: Instant,
    /// Why writing has stopped.
    failed: Option<io::Error>,
}

impl TraceFile {
    /// Creates or replaces `path`.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        let first = event("process_name", "M", PROCESS, json!({"args": {"name": "ddpm, rank 0"}}));
        file.write_all_at(format!("{HEAD}{first}{TAIL}").as_bytes(), 0)?;
        let end = (HEAD.len() + first.len()) as u64;
        let start = Instant::now();
        let state = State { file, end, waiting: String::new(), written: start, failed: None };
        Ok(Self { start, state: Mutex::new(state) })
    }

    /// Writes buffered events; returns why that failed, if this was not reported yet.
    pub(super) fn finish(&self) -> Option<io::Error> {
        let mut state = self.lock();
        state.write();
        state.failed.take()
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn add(&self, event: &str) {
        let mut state = self.lock();
        if state.failed.is_some() {
            return;
        }
        state.waiting.push_str(",\n");
        state.waiting.push_str(event);
        if state.waiting.len() >= BYTES || state.written.elapsed() >= AGE {
            state.write();
        }
    }

    /// The number of the calling thread; writes the thread's name the first time.
    fn thread(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        thread_local!(static THREAD: Cell<Option<u64>> = const { Cell::new(None) });
        if let Some(thread) = THREAD.get() {
            return thread;
        }
        let thread = NEXT.fetch_add(1, Ordering::Relaxed);
        THREAD.set(Some(thread));
        let name = std::thread::current().name().unwrap_or("unnamed").to_owned();
        self.add(&event("thread_name", "M", thread, json!({"args": {"name": name}})));
        thread
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        self.lock().write();
    }
}

impl State {
    /// Overwrites the closing bracket with the buffered events and a new bracket, in one write, which no signal can interrupt
    /// halfway.
    fn write(&mut self) {
        self.written = Instant::now();
        if self.waiting.is_empty() || self.failed.is_some() {
            return;
        }
        let bytes = self.waiting.len() as u64;
        self.waiting.push_str(TAIL);
        if let Err(error) = self.file.write_all_at(self.waiting.as_bytes(), self.end) {
            // If the disk is full, the old contents still have room.
            let _ = self.file.write_all_at(TAIL.as_bytes(), self.end);
            let _ = self.file.set_len(self.end + TAIL.len() as u64);
            self.failed = Some(error);
        } else {
            self.end += bytes;
        }
        self.waiting.clear();
    }
}

/// An event of this name, phase and thread, with further keys.
fn event(name: &str, phase: &str, thread: u64, further: Value) -> String {
    let mut event = json!({"name": name, "ph": phase, "pid": PROCESS, "tid": thread});
    if let (Some(event), Value::Object(further)) = (event.as_object_mut(), further) {
        event.extend(further);
    }
    event.to_string()
}

/// Microseconds, exact to the nanosecond, so that a span never ends later than the one around it.
fn microseconds(time: Duration) -> Value {
    let nanoseconds = time.as_nanos();
    let text = format!("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000);
    text.parse::<f64>().unwrap_or_default().into()
}

/// See the module.
pub(super) struct TraceLayer {
    file: Arc<TraceFile>,
}

/// The data kept with a span.
struct Kept {
    fields: Map<String, Value>,
    entered: Duration,
}

impl TraceLayer {
    pub(super) fn new(file: &Arc<TraceFile>) -> Self {
        Self { file: Arc::clone(file) }
    }

    fn add(&self, metadata: &Metadata<'_>, phase: &str, name: &str, further: Value) {
        let thread = self.file.thread();
        let mut event = json!({"cat": metadata.target()});
        if let (Some(event), Value::Object(further)) = (event.as_object_mut(), further) {
            event.extend(further);
        }
        self.file.add(&self::event(name, phase, thread, event));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TraceLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let fields = Fields::of_span(attributes).values;
            span.extensions_mut().insert(Kept { fields, entered: Duration::ZERO });
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(kept) = span.extensions_mut().get_mut::<Kept>()
        {
            kept.fields.extend(Fields::of_record(record).values);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(kept) = span.extensions_mut().get_mut::<Kept>()
        {
            kept.entered = self.file.now();
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let now = self.file.now();
        if let Some(span) = context.span(id)
            && let Some(kept) = span.extensions().get::<Kept>()
        {
            let (start, time) = (microseconds(kept.entered), microseconds(now.saturating_sub(kept.entered)));
            let further = json!({"ts": start, "dur": time, "args": kept.fields});
            self.add(span.metadata(), "X", span.name(), further);
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Fields { message, values } = Fields::of_event(event);
        let name = if message.is_empty() { event.metadata().target() } else { &message };
        let further = json!({"ts": microseconds(self.file.now()), "s": "t", "args": values});
        self.add(event.metadata(), "i", name, further);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::registry;

    use super::*;

    fn events(path: &Path) -> Vec<Value> {
        let document: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        document["traceEvents"].as_array().unwrap().clone()
    }

    #[test]
    fn spans_lie_within_each_other_and_carry_their_fields_and_thread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        let file = Arc::new(TraceFile::create(&path).unwrap());
        tracing::subscriber::with_default(registry().with(TraceLayer::new(&file)), || {
            let step = tracing::trace_span!("step", step = 3).entered();
            tracing::trace_span!("forward").in_scope(|| tracing::warn!(loss = f64::NAN, "a \"quoted\" word"));
            step.record("step", 4);
        });
        assert!(file.finish().is_none());
        let events = events(&path);
        let named = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
        let time = |event: &Value, key: &str| event[key].as_f64().unwrap();
        let (step, forward, word) = (named("step"), named("forward"), named("a \"quoted\" word"));
        assert_eq!((&step["ph"], &step["args"]["step"], &word["ph"]), (&json!("X"), &json!(4), &json!("i")));
        assert!(word["args"]["loss"].is_null());
        assert!(time(step, "ts") <= time(forward, "ts") && time(forward, "ts") <= time(word, "ts"));
        let end = |event: &Value| time(event, "ts") + time(event, "dur");
        assert!(end(forward) <= end(step) + 1e-3);
        let thread = named("thread_name");
        assert_eq!((&thread["tid"], &thread["pid"]), (&step["tid"], &step["pid"]));
        assert_eq!(thread["args"]["name"], std::thread::current().name().unwrap());
    }

    #[test]
    fn the_file_is_json_after_every_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        let file = TraceFile::create(&path).unwrap();
        assert_eq!(events(&path).len(), 1);
        for round in 1..=50 {
            file.add(&event(&"x".repeat(1000), "i", 1, Value::Null));
            let there = events(&path).len();
            assert!(there <= 1 + round && round <= there + 40, "{there} events after {round}");
        }
        file.finish();
        assert_eq!(events(&path).len(), 51);
    }

    #[test]
    fn a_disk_that_refuses_leaves_the_file_whole_and_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        let file = TraceFile::create(&path).unwrap();
        file.lock().file = File::options().write(true).open("/dev/full").unwrap();
        file.add(&event("lost", "i", 1, Value::Null));
        assert!(file.finish().is_some() && file.finish().is_none());
        assert_eq!(events(&path).len(), 1);
    }
}
