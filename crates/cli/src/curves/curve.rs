//! A curve of a run: the logged points, a smooth line through them, and where the run turned.

use ddpm_run::Turn;

/// Columns that a curve is reduced to: more cannot be told apart on a page.
const COLUMNS: usize = 900;
/// A curve is smoothed over so small a part of its points.
const PART: usize = 50;

/// A logged number over the steps, ascending.
pub(crate) type Points = Vec<(f64, f64)>;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// As logged, at most two of a column: the lowest and the highest.
    pub(crate) points: Points,
    /// At most one of a column.
    pub(crate) smooth: Points,
    /// How many points were logged.
    pub(crate) logged: usize,
    pub(crate) turns: Vec<Turn>,
}

impl Curve {
    /// Of at least one point, smoothed over `window` of them, or over a part of them.
    pub(crate) fn new(name: String, points: &Points, window: Option<usize>, turns: Vec<Turn>) -> Self {
        let smooth = smoothed(points, window.unwrap_or(points.len() / PART));
        Self { name, logged: points.len(), turns, points: extremes(points), smooth: means(&smooth) }
    }

    /// The step of the newest point, and the smooth value there.
    pub(crate) fn last(&self) -> (f64, f64) {
        self.smooth.last().copied().unwrap_or_default()
    }
}

/// The mean of so many points around each, twice: what is in the middle counts most. At the beginning, where a loss falls steeply,
/// there are fewer, as many on either side; at the end there are only those before.
fn smoothed(points: &Points, window: usize) -> Points {
    let reach = window / 2;
    (0..2).fold(points.clone(), |points, _| {
        let mut sums = vec![0.0];
        sums.extend(points.iter().scan(0.0, |sum, (_, value)| {
            *sum += value;
            Some(*sum)
        }));
        let mean = |at: usize| {
            let before = reach.min(at);
            let behind = before.min(points.len() - 1 - at);
            (sums[at + behind + 1] - sums[at - before]) / (before + behind + 1) as f64
        };
        points.iter().enumerate().map(|(at, (step, _))| (*step, mean(at))).collect()
    })
}

/// The points of each column.
fn columns(points: &Points) -> impl Iterator<Item = &[(f64, f64)]> {
    points.chunks(points.len().div_ceil(COLUMNS).max(1))
}

/// The lowest and the highest of each column, in their order.
fn extremes(points: &Points) -> Points {
    let mut kept = Points::new();
    for column in columns(points) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut ends: Points =
            column.iter().min_by(by_value).into_iter().chain(column.iter().max_by(by_value)).copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends.dedup();
        kept.extend(ends);
    }
    kept
}

/// The mean of each column, with both ends as they are.
fn means(points: &Points) -> Points {
    let mean = |column: &[(f64, f64)]| {
        let count = column.len() as f64;
        let sum = column.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / count, sum.1 / count)
    };
    let mut kept: Points = columns(points).map(mean).collect();
    if kept.len() > 1
        && let (Some(first), Some(last)) = (points.first(), points.last())
    {
        let end = kept.len() - 1;
        (kept[0], kept[end]) = (*first, *last);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_a_steep_beginning_and_calms_what_jumps() {
        let line: Points = (0..100).map(|k| (f64::from(k), 3.0 * f64::from(k))).collect();
        assert!(smoothed(&line, 11).iter().zip(&line[..80]).all(|(a, b)| (a.1 - b.1).abs() < 1e-9));
        let jumps: Points = (0..100).map(|k| (f64::from(k), f64::from(k % 2))).collect();
        let calm = smoothed(&jumps, 11);
        assert!(calm[20..90].iter().all(|(_, value)| (value - 0.5).abs() < 0.01), "{calm:?}");
        assert!((calm[99].1 - 0.5).abs() < 0.1 && calm[0] == jumps[0], "{calm:?}");
        assert_eq!(smoothed(&jumps, 1), jumps);
    }

    #[test]
    fn a_long_curve_is_reduced_and_keeps_its_peaks_and_its_end() {
        let mut long: Points = (0..100_000).map(|k| (f64::from(k), 1.0)).collect();
        long[54_321].1 = 9.0;
        let (points, line) = (extremes(&long), means(&long));
        assert!(points.len() <= 2 * COLUMNS && line.len() <= COLUMNS);
        assert!(points.contains(&(54_321.0, 9.0)) && points.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((line[0].0, line[line.len() - 1].0), (0.0, 99_999.0));
        let short: Points = vec![(1.0, 2.0), (2.0, 1.0)];
        assert_eq!((extremes(&short), means(&short)), (short.clone(), short));
    }
}
