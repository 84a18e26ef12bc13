//! Marks in what is queued, which time the GPU; and the choice of the fastest of several candidates, made once per shape.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;

use super::{Gpu, lock, refused};
use crate::error::{KernelError, Result};

/// Runs of each candidate that are timed together, after one that is not.
const RUNS: usize = 3;
/// Cycles that the GPU waits while the host queues them, about 0.1 ms.
const HEAD_START: usize = 200_000;
/// How often the best of the first round are timed again: the least time counts, since nothing makes a candidate faster than
/// it is, but of many that are timed once, the luckiest wins.
const ROUNDS: usize = 4;
/// How many of them there are.
const FINALISTS: usize = 5;
/// An idle GPU's clock is a fraction of its best (345 of 1,980 MHz on an H100), and takes so long to get there.
const WARM_UP: Duration = Duration::from_millis(200);
/// Of a launch that keeps it busy: 1 ms at the best clock.
const WARM_UP_CYCLES: usize = 2_000_000;

/// The number of the fastest of `candidates` for `computation`, or of the one that was chosen before; the first
/// where the stream is being captured and nothing can be timed. None if none works.
///
/// # Errors
/// The GPU itself fails, rather than a candidate being refused.
pub(super) fn fastest<W>(
    gpu: &Gpu,
    computation: &dyn Debug,
    candidates: &[W],
    mut queue: impl FnMut(&W) -> Result<()>,
) -> Result<Option<usize>> {
    let chosen = gpu.chosen(computation, candidates.len());
    if gpu.is_recording()? {
        return Ok(chosen.or((!candidates.is_empty()).then_some(0)));
    }
    // Where it fails now, such as for lack of scratch space, another may do.
    if let Some(number) = chosen
        && queue(&candidates[number]).is_ok()
    {
        return Ok(Some(number));
    }
    let (mut working, mut full) = (Vec::with_capacity(candidates.len()), None);
    for (number, candidate) in candidates.iter().enumerate() {
        match queue(candidate) {
            // Which is the fastest differs from run to run, and with it the last bits.
            Ok(()) if gpu.deterministic() || candidates.len() == 1 => return Ok(Some(number)),
            Ok(()) => working.push(number),
            Err(error) if error.is_out_of_memory() => full = Some(error),
            Err(_) => {}
        }
    }
    let best = match working[..] {
        [] => None,
        [only] => Some(only),
        _ => {
            warm_up(gpu)?;
            let time = |number: usize| {
                let time = milliseconds(gpu, || (0..RUNS).try_for_each(|_| queue(&candidates[number])));
                time.map_err(|error| timing(number, computation, error))
            };
            least(&working, time)?
        }
    };
    match (best, full) {
        (Some(number), _) => gpu.keep_choice(computation, number, candidates.len()),
        // That there is no memory now must not be remembered as that no candidate works.
        (None, Some(error)) => return Err(error),
        (None, None) => {}
    }
    Ok(best)
}

/// Names the candidate that a GPU failed at: that ends everything, and no other message will name it.
fn timing(number: usize, computation: &dyn Debug, error: KernelError) -> KernelError {
    match error {
        KernelError::Gpu { error, .. } => {
            KernelError::Gpu { what: format!("timing candidate {number} of {computation:?}"), error }
        }
        other => other,
    }
}

/// Which of the `numbers` takes the least time. A round times all of them before any is timed again, so that a clock that changes
/// meanwhile is the same for all.
fn least(numbers: &[usize], mut time: impl FnMut(usize) -> Result<f32>) -> Result<Option<usize>> {
    let mut timed = numbers.iter().map(|number| Ok((*number, time(*number)?))).collect::<Result<Vec<_>>>()?;
    timed.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    timed.truncate(FINALISTS);
    for _ in 0..ROUNDS {
        for (number, least) in &mut timed {
            *least = least.min(time(*number)?);
        }
    }
    Ok(timed.into_iter().min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(number, _)| number))
}

/// Keeps a GPU that may have idled busy until its clock is up, the first time in the process' life.
fn warm_up(gpu: &Gpu) -> Result<()> {
    static WARM: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
    if !lock(&WARM).insert(gpu.stream().context().ordinal()) {
        return Ok(());
    }
    let start = Instant::now();
    while start.elapsed() < WARM_UP {
        gpu.kernel("busy")?.arg(WARM_UP_CYCLES).blocks((gpu.multiprocessors(), 1, 1), 1)?;
        gpu.synchronize()?;
    }
    Ok(())
}

/// How long the GPU takes for what `work` queues.
fn milliseconds(gpu: &Gpu, work: impl FnOnce() -> Result<()>) -> Result<f32> {
    // On an idle GPU a short computation is over before the host has queued the next one, and the host would be timed.
    gpu.kernel("busy")?.arg(HEAD_START).blocks((1, 1, 1), 1)?;
    let start = gpu.mark()?;
    work()?;
    gpu.mark()?.milliseconds_since(&start)
}

/// A place in what is queued, and the time when the GPU reaches it.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Gpu {
    /// The number of the fastest of `candidates`, timed the first time that `computation` is asked for. A caller that must have
    /// the same bits every time cannot use this.
    pub(crate) fn choose_fastest<W>(
        &self,
        computation: &dyn Debug,
        candidates: &[W],
        queue: impl FnMut(&W) -> Result<()>,
    ) -> Result<Option<usize>> {
        match self.chosen(computation, candidates.len()) {
            Some(number) => Ok(Some(number)),
            None => fastest(self, computation, candidates, queue),
        }
    }

    /// Marks what is queued next.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn mark(&self) -> Result<Mark> {
        let event = self.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        event.map(Mark).map_err(refused("timing on the GPU"))
    }
}

impl Mark {
    /// The GPU's time from `earlier` to here; waits until the GPU is here.
    ///
    /// # Errors
    /// Something queued before has failed.
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f32> {
        earlier.0.elapsed_ms(&self.0).map_err(refused("timing on the GPU"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_gets_faster_favours_no_candidate() {
        // The second candidate takes half as long, but is asked for while the clock is at a quarter.
        let mut asked = 0;
        let found = least(&[4, 7], |number| {
            asked += 1;
            let clock = if asked <= 2 { 0.25 } else { 1.0 };
            Ok(if number == 7 { 1.0 } else { 2.0 } / clock)
        });
        assert!(matches!(found, Ok(Some(7))), "{found:?}");
        assert_eq!(asked, 2 * (1 + ROUNDS));
    }

    #[test]
    fn one_lucky_time_does_not_win_and_the_slow_are_asked_once() {
        let numbers: Vec<usize> = (0..40).collect();
        let mut asked = vec![0; numbers.len()];
        // Number 20 is the best by a little; the first time of each but number 18 is unlucky.
        let found = least(&numbers, |number| {
            asked[number] += 1;
            let time = 10.0 + (number as f32 - 20.0).abs();
            Ok(if asked[number] == 1 && number != 18 { time + 3.0 } else { time })
        });
        assert!(matches!(found, Ok(Some(20))), "{found:?}");
        assert_eq!(asked.iter().filter(|&&times| times > 1).count(), FINALISTS);
    }
}
