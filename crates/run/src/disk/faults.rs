//! Faults for tests: the calls of this thread are counted, and one of them goes wrong.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// How the call goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails without having done anything; later ones work.
    Error,
    /// If it writes, half of its bytes are written before the disk is full; any other fails.
    Short,
    /// The process is killed before it: nothing that follows is done.
    Killed,
    /// The process is killed in it: half of its bytes are written.
    KilledInside,
    /// The machine loses power before it: what was not synced is not there.
    PowerLost,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] = [Self::Error, Self::Short, Self::Killed, Self::KilledInside, Self::PowerLost];
}

/// What the file system cannot do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lacking {
    pub(crate) exchange: bool,
    pub(crate) dir_rename: bool,
    pub(crate) dir_sync: bool,
    pub(crate) locks: bool,
}

#[derive(Default)]
struct State {
    lacking: Lacking,
    /// The call that goes wrong, counted from 0.
    planned: Option<(usize, Fault)>,
    calls: usize,
    /// The process or the machine is dead.
    dead: bool,
    unsynced_files: Vec<PathBuf>,
    /// New files whose directory was not synced since.
    unsynced_entries: Vec<PathBuf>,
    unsynced_names: Vec<Renaming>,
}

/// A name that is given, and not durable yet.
pub(super) struct Renaming {
    from: PathBuf,
    to: PathBuf,
    exchanged: bool,
    /// What a file of the new name held before.
    replaced: Option<Vec<u8>>,
}

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// Runs `work` on a disk that lacks this.
pub(crate) fn on<T>(lacking: Lacking, work: impl FnOnce() -> T) -> T {
    with(lacking, None, work).0
}

/// Runs `work` with a fault in one of its calls; returns the number of calls too.
pub(crate) fn with<T>(lacking: Lacking, planned: Option<(usize, Fault)>, work: impl FnOnce() -> T) -> (T, usize) {
    STATE.set(Some(State { lacking, planned, ..State::default() }));
    let result = work();
    let state = STATE.take().expect("it was set above");
    (result, state.calls)
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

fn failed() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// The fault of the next call, if it has one.
fn next() -> Option<Fault> {
    STATE
        .with_borrow_mut(|state| {
            let state = state.as_mut()?;
            if state.dead {
                return Some(Fault::Killed);
            }
            let fault = state.planned.filter(|(call, _)| *call == state.calls).map(|(_, fault)| fault)?;
            state.dead = !matches!(fault, Fault::Error | Fault::Short);
            if fault == Fault::PowerLost {
                lose_power(state);
            }
            Some(fault)
        })
        .or_else(|| {
            STATE.with_borrow_mut(|state| state.iter_mut().for_each(|state| state.calls += 1));
            None
        })
}

/// The newest names go back first, because they build on older ones.
fn lose_power(state: &mut State) {
    let rename = |from: &Path, to: &Path| fs::rename(from, to).expect("a test can rename its own file");
    for Renaming { from, to, exchanged, replaced } in std::mem::take(&mut state.unsynced_names).into_iter().rev() {
        state.move_files(&to, &from, exchanged);
        if exchanged && from.exists() {
            let between = to.with_extension("between");
            rename(&from, &between);
            rename(&to, &from);
            rename(&between, &to);
        } else if to.exists() {
            // After an exchange the other one may be gone already: then nothing stands at `to` afterwards.
            rename(&to, &from);
        }
        if let Some(bytes) = replaced {
            fs::write(to, bytes).expect("a test can write its own file");
        }
    }
    for file in state.unsynced_entries.drain(..).filter(|file| file.exists()) {
        fs::remove_file(file).expect("a test can remove its own file");
    }
    for file in state.unsynced_files.drain(..).filter(|file| file.exists()) {
        fs::write(file, "").expect("a test can empty its own file");
    }
}

/// Before a call that changes something.
pub(super) fn call() -> io::Result<()> {
    match next() {
        None => Ok(()),
        Some(Fault::Error | Fault::Short) => skip(failed()),
        Some(_) => Err(dead()),
    }
}

/// The failed call counts too, so that the same one does not fail again.
fn skip<T>(error: io::Error) -> io::Result<T> {
    STATE.with_borrow_mut(|state| state.iter_mut().for_each(|state| state.calls += 1));
    Err(error)
}

/// The bytes to write; or those that are written before the error.
pub(super) fn write(bytes: &[u8]) -> Result<&[u8], (&[u8], io::Error)> {
    let half = &bytes[..bytes.len() / 2];
    match next() {
        None => Ok(bytes),
        Some(Fault::Error) => skip(failed()).map_err(|error| (&bytes[..0], error)),
        Some(Fault::Short) => skip(failed()).map_err(|error| (half, error)),
        Some(Fault::KilledInside) => Err((half, dead())),
        Some(Fault::Killed | Fault::PowerLost) => Err((&bytes[..0], dead())),
    }
}

/// Where `path` will be looked for when power is lost.
pub(super) fn opened(path: &Path, is_new: bool) -> PathBuf {
    change(|state| {
        state.unsynced_files.push(path.into());
        state.unsynced_entries.extend(is_new.then(|| path.into()));
    });
    path.into()
}

fn change(change: impl FnOnce(&mut State)) {
    STATE.with_borrow_mut(|state| state.as_mut().map(change));
}

fn lacks(what: impl FnOnce(&Lacking) -> bool) -> bool {
    STATE.with_borrow(|state| state.as_ref().is_some_and(|state| what(&state.lacking)))
}

/// The result of syncing a file; nothing where it is to be synced in earnest.
pub(super) fn file_synced(path: &Path) -> Option<io::Result<()>> {
    STATE.with_borrow(Option::is_some).then(|| {
        call()?;
        change(|state| state.unsynced_files.retain(|unsynced| unsynced != path));
        Ok(())
    })
}

/// The same of a directory.
pub(super) fn dir_synced(dir: &Path) -> Option<io::Result<()>> {
    STATE.with_borrow(Option::is_some).then(|| {
        call()?;
        if lacks(|lacking| lacking.dir_sync) {
            return Err(Errno::INVAL.into());
        }
        change(|state| {
            state.unsynced_names.retain(|name| name.to.parent() != Some(dir));
            state.unsynced_entries.retain(|file| file.parent() != Some(dir));
        });
        Ok(())
    })
}

pub(crate) fn may_lock() -> io::Result<()> {
    if lacks(|lacking| lacking.locks) { Err(Errno::NOSYS.into()) } else { Ok(()) }
}

impl Renaming {
    pub(super) fn begin(from: &Path, to: &Path) -> io::Result<Self> {
        if lacks(|lacking| lacking.dir_rename) && from.is_dir() {
            return Err(Errno::NOSYS.into());
        }
        let replaced = fs::read(to).ok();
        Ok(Self { from: from.into(), to: to.into(), exchanged: false, replaced })
    }

    pub(super) fn exchange(a: &Path, b: &Path) -> io::Result<Self> {
        if lacks(|lacking| lacking.exchange || lacking.dir_rename) {
            return Err(Errno::INVAL.into());
        }
        Ok(Self { from: a.into(), to: b.into(), exchanged: true, replaced: None })
    }

    /// It is done.
    pub(super) fn done(self) {
        change(|state| {
            state.move_files(&self.from, &self.to, self.exchanged);
            state.unsynced_names.push(self);
        });
    }
}

impl State {
    /// What is known of files moves with them, and with their directories.
    fn move_files(&mut self, from: &Path, to: &Path, exchanged: bool) {
        let moved = |file: &Path| match (file.strip_prefix(from), file.strip_prefix(to)) {
            (Ok(rest), _) if rest.as_os_str().is_empty() => to.into(),
            (Ok(rest), _) => to.join(rest),
            (_, Ok(rest)) if exchanged => from.join(rest),
            _ => file.into(),
        };
        self.unsynced_files.iter_mut().chain(&mut self.unsynced_entries).for_each(|file| *file = moved(file));
    }
}
