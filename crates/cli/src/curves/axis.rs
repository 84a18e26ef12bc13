//! The range of an axis and the numbers beside it.

use std::ops::Range;

/// An axis is logarithmic where its largest value is more than so many times the smallest.
const WIDE: f64 = 8.0;

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// As they are.
    Linear,
    /// Their logarithm to base 10.
    Log,
}

impl Scale {
    /// The one that shows most of these values, all finite.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values);
        if low > 0.0 && high / low > WIDE { Self::Log } else { Self::Linear }
    }

    /// The height of a value; none where it has none.
    pub(crate) fn height(self, value: f64) -> Option<f64> {
        match self {
            Self::Linear => Some(value),
            Self::Log => (value > 0.0).then(|| value.log10()),
        }
    }

    /// The value at a height.
    fn value(self, height: f64) -> f64 {
        match self {
            Self::Linear => height,
            Self::Log => 10_f64.powf(height),
        }
    }

    /// The heights within `range` that get a number.
    pub(crate) fn ticks(self, range: &Range<f64>) -> Vec<f64> {
        let span = range.end - range.start;
        let digits: &[f64] = match span {
            _ if self == Self::Linear || span < 0.5 => {
                let (low, high) = (self.value(range.start), self.value(range.end));
                return even_ticks(low, high).into_iter().filter_map(|value| self.height(value)).collect();
            }
            ..2.0 => &[1.0, 2.0, 5.0],
            ..4.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let decades = range.start.floor() as i32..=range.end.ceil() as i32;
        let ticks = decades.flat_map(|decade| digits.iter().map(move |digit| (digit * 10_f64.powi(decade)).log10()));
        ticks.filter(|height| range.contains(height)).collect()
    }

    /// The number at a height.
    pub(crate) fn label(self, height: f64) -> String {
        label(self.value(height))
    }
}

/// The lowest and the highest value.
pub(crate) fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// Round numbers from `low` to `high`, about six.
pub(crate) fn even_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 6.0;
    if !(rough.is_normal() && rough > 0.0) {
        return vec![low];
    }
    let decade = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|digit| digit * decade).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..first + 20).map(|k| k as f64 * step).take_while(|value| *value <= high * (1.0 + 1e-12)).collect()
}

/// A number beside an axis: `0.025`, `20k`, `1.5M`, `2e-4`.
pub(crate) fn label(value: f64) -> String {
    // Sums of steps have stray digits at their ends.
    let rounded = |value: f64| format!("{value:.4e}").parse().unwrap_or(value);
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1e-3 => format!("{:e}", rounded(value)),
        size if size >= 1e12 => format!("{:e}", rounded(value)),
        size if size >= 1e9 => format!("{}G", rounded(value / 1e9)),
        size if size >= 1e6 => format!("{}M", rounded(value / 1e6)),
        size if size >= 1e4 => format!("{}k", rounded(value / 1e3)),
        _ => rounded(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_falls_far_is_shown_by_its_logarithm_and_what_may_be_zero_is_not() {
        assert_eq!(Scale::of([0.03, 1.0].into_iter()), Scale::Log);
        assert_eq!(Scale::of([0.03, 0.1].into_iter()), Scale::Linear);
        assert_eq!(Scale::of([0.0, 1.0].into_iter()), Scale::Linear);
    }

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        let labels = |scale: Scale, low: f64, high: f64| -> Vec<String> {
            let height = |value| scale.height(value).unwrap_or_default();
            scale.ticks(&(height(low)..height(high))).into_iter().map(|tick| scale.label(tick)).collect()
        };
        assert_eq!(labels(Scale::Linear, 0.0, 2000.0), ["0", "500", "1000", "1500", "2000"]);
        assert_eq!(labels(Scale::Linear, 0.0251, 0.0302), ["0.026", "0.027", "0.028", "0.029", "0.03"]);
        assert_eq!(labels(Scale::Log, 0.019, 1.01), ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!(labels(Scale::Log, 1e-7, 2.0).len(), 8);
        assert_eq!(labels(Scale::Linear, 3.0, 3.0), ["3"]);
    }

    #[test]
    fn large_and_small_numbers_are_short() {
        let labels = [0.0, 2e-4, 0.25, 2000.0, 20_000.0, 1.5e6, -0.1, 3e9].map(label);
        assert_eq!(labels, ["0", "2e-4", "0.25", "2000", "20k", "1.5M", "-0.1", "3G"]);
    }
}
