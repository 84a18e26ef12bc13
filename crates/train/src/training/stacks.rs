//! Where every thread is at this moment: the functions that it is in. Linux alone.
//!
//! A stack can be walked only by the thread whose it is. So each thread is sent a signal, one after another; the handler writes the
//! return addresses into a slot that was there before, and the thread that asked looks their names up, which takes locks and memory.
//! Sampling profilers work like this (gperftools, pprof-rs). A thread that does not answer (it blocks signals, or is in a call of the
//! kernel that nothing interrupts, such as a read from a disk that is gone) is told by that call alone.
//!
//! The signal is a real-time one. Where something else in the process handles it, no stacks are taken. Most calls of the kernel that
//! it interrupts are begun again, by the kernel (`SA_RESTART`) or by std. Not so reads from a socket with a timeout: they end with
//! `ErrorKind::Interrupted`, and whoever reads tries again ([`exporter`](super::exporter)).

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use backtrace::Symbol;

use super::threads::Thread;

/// Return addresses that are kept of a stack.
const DEEPEST: usize = 128;

/// Functions that are told of a stack, the innermost first.
const TOLD: usize = 32;

/// So many are told whosever they are.
const INNERMOST: usize = 3;

/// How long a thread may take to answer, and again to write: a walk takes microseconds, but the cores may be busy.
const PATIENCE: Duration = Duration::from_millis(200);

/// The slot belongs to nobody.
const FREE: c_int = 0;
/// A thread writes into it.
const WRITING: c_int = -1;
/// It was written, and not yet read.
const WRITTEN: c_int = -2;

/// One of these, or the number of the thread that may write into the slot.
static TURN: AtomicI32 = AtomicI32::new(FREE);
/// The slot: return addresses, the innermost first, and how many.
static ADDRESSES: [AtomicUsize; DEEPEST] = [const { AtomicUsize::new(0) }; DEEPEST];
static DEPTH: AtomicUsize = AtomicUsize::new(0);

/// A paragraph for all threads that are in the same functions, but for the one that asks: their names, then a function a line.
pub(super) fn all() -> Vec<String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let Ok(_asking) = ONE_AT_A_TIME.try_lock() else { return Vec::new() };
    if !listens() {
        return Vec::new();
    }
    let mut alike = BTreeMap::<String, Vec<String>>::new();
    for thread in Thread::all().into_iter().filter(|thread| thread.id != own_id()) {
        let functions = ask(thread.id).map(|addresses| functions(&addresses)).unwrap_or_default();
        let what = if functions.is_empty() { "\n    does not say where it is".to_owned() } else { functions };
        alike.entry(what).or_default().push(thread.to_string());
    }
    let mut paragraphs: Vec<String> = alike.into_iter().map(|(what, names)| names.join(", ") + ":" + &what).collect();
    paragraphs.sort();
    paragraphs
}

/// The signal. The first real-time ones are glibc's own, some of the next are taken by libraries now and then.
fn signal() -> c_int {
    libc::SIGRTMIN() + 11
}

/// Installs the handler, unless there is one of somebody else; whether it is there.
fn listens() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // The first walk in a process may load and initialise what the later ones only read: not in a handler.
        // SAFETY: this is the one thread that walks, for `all` holds its lock and no signal was sent yet.
        unsafe { backtrace::trace_unsynchronized(|_| true) };
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null pointer asks for what is there, which is written to a value of the right type; zeros are a valid one.
        let before = unsafe {
            libc::sigaction(signal(), ptr::null(), before.as_mut_ptr());
            before.assume_init()
        };
        if before.sa_sigaction != libc::SIG_DFL {
            return false;
        }
        let handler: extern "C" fn(c_int) = answer;
        let action = libc::sigaction { sa_sigaction: handler as usize, sa_flags: libc::SA_RESTART, ..before };
        // SAFETY: `answer` has the type of a handler without SA_SIGINFO, and keeps to what one may do.
        unsafe { libc::sigaction(signal(), &raw const action, ptr::null_mut()) == 0 }
    })
}

fn own_id() -> c_int {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as c_int }
}

/// The handler: writes its thread's stack into the slot, if it is that thread's turn.
extern "C" fn answer(_: c_int) {
    // SAFETY: every thread has an errno, and what is interrupted must find its own again.
    let errno = unsafe { *libc::__errno_location() };
    if TURN.compare_exchange(own_id(), WRITING, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        let mut depth = 0;
        let write = |frame: &backtrace::Frame| {
            let Some(place) = ADDRESSES.get(depth) else { return false };
            place.store(frame.ip() as usize, Ordering::Relaxed);
            depth += 1;
            true
        };
        // SAFETY: the function is not synchronised because some systems' walkers are not; libgcc's, which is behind it on Linux,
        // walks any thread's own stack beside others. In a handler it may be called, though POSIX does not list it: it allocates
        // nothing, reads the stack and the unwind tables, and finds these through `_dl_find_object`, which takes no lock, or in a
        // glibc before 2.35 `dl_iterate_phdr`, whose lock the interrupted thread may take again. That a thread holds that lock for
        // good, in a `dlopen` that hangs, keeps this one from answering and from going on, in a run that does not go on; the
        // asker gives up. What may be initialised at a first walk was, in `listens`. The closure stores into atomics and cannot
        // panic. Stack is needed for some pages; a thread that has less left would have ended in its next calls.
        unsafe { backtrace::trace_unsynchronized(write) };
        DEPTH.store(depth, Ordering::Relaxed);
        TURN.store(WRITTEN, Ordering::Release);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// The return addresses of a thread's stack; `None` if it does not answer.
fn ask(thread: c_int) -> Option<Vec<usize>> {
    // Taken for ever where a thread began to write and never ended.
    TURN.compare_exchange(FREE, thread, Ordering::Release, Ordering::Relaxed).ok()?;
    // SAFETY: the call takes three numbers; a thread that is gone, or was replaced by another one of its number, is no danger: it is
    // a thread of this process, which has the handler.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) } == 0;
    if sent {
        wait_for(|turn| turn == WRITTEN);
    }
    match TURN.compare_exchange(thread, FREE, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => return None,
        Err(_) => wait_for(|turn| turn == WRITTEN),
    }
    if TURN.load(Ordering::Acquire) != WRITTEN {
        return None;
    }
    let depth = DEPTH.load(Ordering::Relaxed).min(DEEPEST);
    let addresses = ADDRESSES[..depth].iter().map(|address| address.load(Ordering::Relaxed)).collect();
    TURN.store(FREE, Ordering::Relaxed);
    Some(addresses)
}

fn wait_for(done: impl Fn(c_int) -> bool) {
    let begun = Instant::now();
    while !done(TURN.load(Ordering::Acquire)) && begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_micros(100));
    }
}

/// A line for each function, with file and line where they are known, from where the thread was interrupted to where it began.
fn functions(addresses: &[usize]) -> String {
    let mut functions = Vec::new();
    for &address in addresses {
        backtrace::resolve(address as *mut c_void, |symbol| functions.extend(Function::of(symbol)));
    }
    // The first are the handler's own, and what the kernel returns to from it.
    let is_own = |function: &Function| function.place.starts_with(OWN_FILE) && function.name.ends_with("answer");
    let own = functions.iter().rposition(is_own).map_or(0, |own| own + 1);
    let rest = functions[own..].iter().filter(|function| function.name != "__restore_rt");
    // Behind this one is how std begins a thread.
    let rest = rest.take_while(|function| !function.name.contains("__rust_begin_short_backtrace"));
    // Of std the innermost ones say what is waited for; the others lie between ours.
    let told = rest.enumerate().filter(|(number, function)| *number < INNERMOST || !function.is_of_std);
    told.take(TOLD).map(|(_, Function { name, place, .. })| format!("\n    {name}{place}")).collect()
}

/// The end of this file's name, as it is told.
const OWN_FILE: &str = "  stacks.rs:";

/// What is told of a place in the program.
struct Function {
    name: String,
    /// Two spaces, file and line; empty where they are not known.
    place: String,
    is_of_std: bool,
}

impl Function {
    fn of(symbol: &Symbol) -> Option<Self> {
        let path = symbol.filename().unwrap_or(Path::new(""));
        let file = path.file_name().map(|file| file.to_string_lossy());
        let place = file.zip(symbol.lineno()).map_or(String::new(), |(file, line)| format!("  {file}:{line}"));
        // Where std's sources were when it was compiled, or where they are now, if they are installed.
        let is_of_std = path.starts_with("/rustc") || path.components().any(|part| part.as_os_str() == "rustlib");
        Some(Self { name: without_parameters(&format!("{:#}", symbol.name()?)), place, is_of_std })
    }
}

/// A function's name without the types that it was made for, which may take pages; a type that begins it stays.
fn without_parameters(name: &str) -> String {
    let (mut short, mut depth) = (String::new(), 0_usize);
    for (at, letter) in name.char_indices() {
        match letter {
            '<' if at > 0 => depth += 1,
            '>' if depth > 0 => depth -= 1,
            _ if depth == 0 => short.push(letter),
            _ => {}
        }
    }
    short.replace("::::", "::").trim_end_matches("::").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    #[inline(never)]
    fn waits_here(wait: &mpsc::Receiver<()>) {
        assert!(wait.recv().is_err());
    }

    /// Threads that wait in `waits_here` until the senders are dropped.
    fn waiting(count: usize) -> (Vec<mpsc::Sender<()>>, Vec<thread::JoinHandle<()>>) {
        let one = |number| {
            let (sender, wait) = mpsc::channel();
            let name = format!("waits-{number}");
            (sender, thread::Builder::new().name(name).spawn(move || waits_here(&wait)).unwrap())
        };
        (0..count).map(one).unzip()
    }

    #[test]
    fn threads_say_in_which_function_they_are_and_go_on() {
        let (senders, threads) = waiting(3);
        let found = (0..50).find_map(|_| {
            thread::sleep(Duration::from_millis(20));
            let paragraphs = all();
            paragraphs.into_iter().find(|text| (0..3).all(|n| text.contains(&format!("waits-{n} "))))
        });
        let found = found.expect("the three wait in the same functions");
        assert!(found.contains("waits_here  stacks.rs:"), "{found}");
        assert!(!found.contains("answer") && !found.contains("__rust_begin_short_backtrace"), "{found}");
        drop(senders);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn names_lose_the_types_they_were_made_for() {
        assert_eq!(without_parameters("{closure#0}<&Piece, Result<Bytes, (), Map<Iter<u8>>>>"), "{closure#0}");
        assert_eq!(without_parameters("<std::fs::File>::open"), "<std::fs::File>::open");
        assert_eq!(without_parameters("a::b::<i32, Vec<u8>>::c::<u8>"), "a::b::c");
    }

    #[test]
    fn a_thread_that_blocks_the_signal_is_named_without_functions() {
        let (sender, wait) = mpsc::channel::<()>();
        let deaf = thread::Builder::new().name("deaf".into()).spawn(move || {
            // SAFETY: the set is filled before it is used, and belongs to this thread.
            unsafe {
                let mut all = MaybeUninit::<libc::sigset_t>::uninit();
                libc::sigfillset(all.as_mut_ptr());
                libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), ptr::null_mut());
            }
            waits_here(&wait);
        });
        let found = (0..50).find_map(|_| {
            thread::sleep(Duration::from_millis(20));
            all().into_iter().find(|text| text.contains("deaf S") && text.contains("does not say"))
        });
        assert!(found.is_some(), "{:?}", all());
        drop(sender);
        deaf.unwrap().join().unwrap();
    }
}
