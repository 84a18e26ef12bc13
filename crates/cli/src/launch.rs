//! `ddpm launch`: several ranks on this machine, where no other launcher starts them.
//!
//! It sets the variables that launchers set, hands signals on, and starts all ranks again when one was lost. Everything else is
//! the ranks' own affair: they notice each other's end, and the first one writes and speaks.

use std::io;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use ddpm_train::training::stop::Requests;
use rustix::process::{Pid, Signal, kill_process};

use super::args::LaunchArgs;
use crate::failure::{ExitCode, Failure, Outcome};
use crate::signals;

/// How often signals and ranks are looked at.
const LOOK_UP: Duration = Duration::from_millis(50);
/// How long ranks may take to end after one has failed: the first one saves. The others have nothing to do.
const GRACE: Duration = Duration::from_secs(30);
const GRACE_OF_OTHERS: Duration = Duration::from_secs(3);

/// Starts the ranks, and again as often as it may.
pub(super) fn run(args: &LaunchArgs) -> Result<Outcome, Failure> {
    if args.command.first().is_none_or(|command| command != "train") {
        return Err(Failure::new(
            ExitCode::Usage,
            "only training has ranks: expected `train` and its arguments after `--`",
        )
        .hint("ddpm launch --nproc 2 -- train my.toml"));
    }
    let requests = signals::requests()?;
    for restart in 0.. {
        let code = Ranks::start(args, restart).map_err(|error| cannot_start(&error))?.wait(&requests)?;
        let again = code == ExitCode::Stalled as i32 && !requests.stop.load(Ordering::Relaxed);
        if !again || restart == args.max_restarts {
            return Ok(match code {
                0 => Outcome::Done,
                code if code == ExitCode::Stopped as i32 => Outcome::Stopped,
                code => Outcome::Failed(ExitCode::of(code)),
            });
        }
        let most = args.max_restarts;
        tracing::warn!("a rank was lost: all are started again ({} of at most {most} times)", restart + 1);
    }
    Ok(Outcome::Done)
}

fn cannot_start(error: &io::Error) -> Failure {
    Failure::caused_by(ExitCode::Other, "the ranks cannot be started", error)
        .hint("the system starts no more processes, or gives no port: see `ulimit -u`")
}

/// The processes; `None` of one that has ended.
struct Ranks {
    running: Vec<Option<Child>>,
}

impl Ranks {
    fn start(args: &LaunchArgs, restart: u64) -> io::Result<Self> {
        let (program, nproc) = (std::env::current_exe()?, args.nproc);
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let threads = available_parallelism().map_or(1, usize::from) / nproc;
        let mut ranks = Self { running: Vec::new() };
        for rank in 0..nproc {
            let mut command = Command::new(&program);
            command.args(&args.command).stdin(Stdio::null());
            let variables = [
                ("RANK", rank.to_string()),
                ("LOCAL_RANK", rank.to_string()),
                ("WORLD_SIZE", nproc.to_string()),
                ("LOCAL_WORLD_SIZE", nproc.to_string()),
                ("MASTER_ADDR", "127.0.0.1".to_owned()),
                ("DDPM_PORT", port.to_string()),
                ("TORCHELASTIC_RESTART_COUNT", restart.to_string()),
            ];
            command.envs(variables);
            if std::env::var_os("RAYON_NUM_THREADS").is_none() {
                command.env("RAYON_NUM_THREADS", threads.max(1).to_string());
            }
            ranks.running.push(Some(command.spawn()?));
        }
        Ok(ranks)
    }

    /// Waits for all; the exit code of the rank that is the cause, where one failed.
    fn wait(mut self, requests: &Requests) -> Result<i32, Failure> {
        let (mut worst, mut failed, mut told) = (0, None::<Instant>, false);
        while self.running.iter().any(Option::is_some) {
            if requests.stop.load(Ordering::Relaxed) && !std::mem::replace(&mut told, true) {
                self.signal_all(Signal::TERM);
            }
            if requests.save.swap(false, Ordering::Relaxed)
                && let Some(Some(first)) = self.running.first()
            {
                signal(first, Signal::USR2);
            }
            for rank in &mut self.running {
                let Some(status) =
                    rank.as_mut().map(Child::try_wait).transpose().map_err(|error| cannot_start(&error))?.flatten()
                else {
                    continue;
                };
                *rank = None;
                // Whoever was killed is lost.
                let code = status.code().unwrap_or(ExitCode::Stalled as i32);
                if code != 0 {
                    failed.get_or_insert_with(Instant::now);
                }
                worst = worse(worst, code);
            }
            let first_runs = self.running.first().is_some_and(Option::is_some);
            let grace = if first_runs { GRACE } else { GRACE_OF_OTHERS };
            if failed.is_some_and(|since| since.elapsed() > grace) && !told {
                self.signal_all(Signal::KILL);
            }
            sleep(LOOK_UP);
        }
        Ok(worst)
    }

    fn signal_all(&self, which: Signal) {
        self.running.iter().flatten().for_each(|rank| signal(rank, which));
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        // Only where not all could be started, or could not be waited for.
        self.signal_all(Signal::KILL);
    }
}

fn signal(rank: &Child, which: Signal) {
    // It may have ended; it was not waited for, so that its number is no other's.
    let _ = kill_process(Pid::from_child(rank), which);
}

/// Of two exit codes the one that says more: a lost rank is mostly what follows from another's error.
fn worse(a: i32, b: i32) -> i32 {
    let weight = |code: i32| match code {
        0 => 0,
        code if code == ExitCode::Stopped as i32 => 1,
        code if code == ExitCode::Stalled as i32 => 2,
        _ => 3,
    };
    if weight(b) > weight(a) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_counts_before_what_follows_from_it() {
        assert_eq!([worse(76, 3), worse(3, 76), worse(75, 76), worse(0, 75), worse(0, 0)], [3, 3, 76, 75, 0]);
    }
}
