//! The threads of this process, as far as Linux tells.

use std::fmt;
use std::fs;
use std::path::Path;

/// A thread at one moment.
#[derive(Clone, Debug)]
pub(super) struct Thread {
    /// Its number, as the kernel counts.
    pub(super) id: i32,
    name: String,
    /// R: it runs; S: it waits; D: it waits and cannot be interrupted.
    state: char,
    /// The call of the kernel that it waits in, where that is told.
    call: String,
}

impl Thread {
    /// All there are, by name; none on other systems.
    pub(super) fn all() -> Vec<Self> {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(Result::ok);
        let mut threads: Vec<Self> = tasks.filter_map(|task| Self::look(&task.path())).collect();
        threads.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        threads
    }

    /// Its files may be gone already.
    fn look(task: &Path) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(task.join(name)).ok();
        // The state follows the name, which may hold anything, in brackets.
        let state = read("stat")?.rsplit(") ").next()?.chars().next()?;
        let call = read("wchan").filter(|call| call != "0").unwrap_or_default();
        let id = task.file_name()?.to_str()?.parse().ok()?;
        Some(Self { id, name: read("comm")?.trim().to_owned(), state, call })
    }
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.state)?;
        if self.call.is_empty() { Ok(()) } else { write!(f, " {}", self.call) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_are_named() {
        let (give_back, wait) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("sleeper".into()).spawn(move || wait.recv()).unwrap();
        let found = (0..100).find_map(|_| {
            thread::sleep(Duration::from_millis(10));
            Thread::all().into_iter().find(|thread| thread.to_string().starts_with("sleeper S"))
        });
        assert!(found.is_some(), "{:?}", Thread::all());
        drop(give_back);
        assert!(thread.join().unwrap().is_err());
    }
}
