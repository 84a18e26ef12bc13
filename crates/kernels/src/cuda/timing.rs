//! When the GPU gets where: marks between the things that are queued; and which of several ways is the fastest here, asked
//! once per shape.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;

use super::{Gpu, lock, refused};
use crate::error::{KernelError, Result};

/// Runs of each way that are timed together, after one that is not.
const RUNS: usize = 3;
/// The GPU's cycles for the host to queue them in, about 0.1 ms.
const HEAD_START: usize = 200_000;
/// How often those that did best the first time are timed again: the least time counts, since nothing makes a way faster than it
/// is, but of many ways that are asked once, it is the luckiest that wins.
const ROUNDS: usize = 4;
/// How many of them there are.
const FINALISTS: usize = 5;
/// An idle GPU's clock is a fraction of its best (345 of 1,980 MHz on an H100), and takes so long to get there.
const WARM_UP: Duration = Duration::from_millis(200);
/// Of a launch that keeps it busy: 1 ms at the best clock.
const WARM_UP_CYCLES: usize = 2_000_000;

/// The number of the fastest of `ways` to do `computation`, or of the one that was chosen before; the first that works
/// where the stream is being captured and nothing can be timed. None if none works.
///
/// # Errors
/// The GPU itself fails, rather than a way being refused.
pub(super) fn fastest<W>(
    gpu: &Gpu,
    computation: &dyn Debug,
    ways: &[W],
    mut queue: impl FnMut(&W) -> Result<()>,
) -> Result<Option<usize>> {
    let chosen = gpu.chosen(computation, ways.len());
    if gpu.is_recording()? {
        return Ok(chosen.or((!ways.is_empty()).then_some(0)));
    }
    // Where it fails now, such as for want of scratch space, another may do.
    if let Some(way) = chosen
        && queue(&ways[way]).is_ok()
    {
        return Ok(Some(way));
    }
    let (mut working, mut full) = (Vec::with_capacity(ways.len()), None);
    for (number, way) in ways.iter().enumerate() {
        match queue(way) {
            // Which is the fastest differs from run to run, and with it the last bits.
            Ok(()) if gpu.deterministic() || ways.len() == 1 => return Ok(Some(number)),
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
                let time = milliseconds(gpu, || (0..RUNS).try_for_each(|_| queue(&ways[number])));
                time.map_err(|error| timing(number, computation, error))
            };
            least(&working, time)?
        }
    };
    match (best, full) {
        (Some(number), _) => gpu.keep_choice(computation, number, ways.len()),
        // That there is no room now must not be remembered as that there is no way.
        (None, Some(error)) => return Err(error),
        (None, None) => {}
    }
    Ok(best)
}

/// Says which way it was that a GPU failed at: that ends everything, and no other message will name it.
fn timing(way: usize, computation: &dyn Debug, error: KernelError) -> KernelError {
    match error {
        KernelError::Gpu { error, .. } => {
            KernelError::Gpu { what: format!("timing way {way} of {computation:?}"), error }
        }
        other => other,
    }
}

/// Which of `ways` takes the least time. A round asks all of them before any is asked again, so that a clock that changes
/// meanwhile is the same to all.
fn least(ways: &[usize], mut time: impl FnMut(usize) -> Result<f32>) -> Result<Option<usize>> {
    let mut timed = ways.iter().map(|way| Ok((*way, time(*way)?))).collect::<Result<Vec<_>>>()?;
    timed.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    timed.truncate(FINALISTS);
    for _ in 0..ROUNDS {
        for (way, least) in &mut timed {
            *least = least.min(time(*way)?);
        }
    }
    Ok(timed.into_iter().min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(way, _)| way))
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

/// A place in what is queued, and when the GPU gets there.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Gpu {
    /// The number of the fastest of `ways`, looked for the first time that `computation` is asked for. Not among the same bits
    /// every time: whoever wants these decides alone.
    pub(crate) fn faster<W>(
        &self,
        computation: &dyn Debug,
        ways: &[W],
        queue: impl FnMut(&W) -> Result<()>,
    ) -> Result<Option<usize>> {
        match self.chosen(computation, ways.len()) {
            Some(way) => Ok(Some(way)),
            None => fastest(self, computation, ways, queue),
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
    fn a_clock_that_gets_faster_favours_no_way() {
        // The second way takes half as long, but is asked for while the clock is at a quarter.
        let mut asked = 0;
        let found = least(&[4, 7], |way| {
            asked += 1;
            let clock = if asked <= 2 { 0.25 } else { 1.0 };
            Ok(if way == 7 { 1.0 } else { 2.0 } / clock)
        });
        assert!(matches!(found, Ok(Some(7))), "{found:?}");
        assert_eq!(asked, 2 * (1 + ROUNDS));
    }

    #[test]
    fn one_lucky_time_does_not_win_and_the_slow_are_asked_once() {
        let ways: Vec<usize> = (0..40).collect();
        let mut asked = vec![0; ways.len()];
        // Way 20 is the best by a little; the first time of each but way 18 is unlucky.
        let found = least(&ways, |way| {
            asked[way] += 1;
            let time = 10.0 + (way as f32 - 20.0).abs();
            Ok(if asked[way] == 1 && way != 18 { time + 3.0 } else { time })
        });
        assert!(matches!(found, Ok(Some(20))), "{found:?}");
        assert_eq!(asked.iter().filter(|&&times| times > 1).count(), FINALISTS);
    }
}
