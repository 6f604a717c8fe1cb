//! Several turns of a measurement, told as one figure and its spread.

use serde::{Deserialize, Serialize};

/// The middle of several turns, and between what they lay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// The median; of an even number the mean of the two in the middle.
    pub(crate) median: f64,
    /// The least.
    pub(crate) least: f64,
    /// The most.
    pub(crate) most: f64,
    /// How many there were.
    pub(crate) turns: usize,
}

impl Spread {
    /// Of these; none if there are none, or if one is no number.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        values.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, least, most, turns: values.len() })
    }

    /// This by another: median by median, and the widest that the turns allow.
    pub(crate) fn over(self, other: Self) -> Option<Self> {
        if other.least <= 0.0 {
            return None;
        }
        Some(Self {
            median: self.median / other.median,
            least: self.least / other.most,
            most: self.most / other.least,
            turns: self.turns.min(other.turns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_has_the_rest_around_it() {
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(odd, Spread { median: 2.0, least: 1.0, most: 3.0, turns: 3 });
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([1.0, f64::NAN]), None);
    }

    #[test]
    fn a_ratio_is_of_medians_and_its_spread_is_the_widest() {
        let (pair, alone) = (Spread::of([8.0, 9.0, 10.0]).unwrap(), Spread::of([9.0, 10.0, 12.0]).unwrap());
        let ratio = pair.over(alone).unwrap();
        assert_eq!(ratio.median, 0.9);
        assert!((ratio.least - 8.0 / 12.0).abs() < 1e-9 && (ratio.most - 10.0 / 9.0).abs() < 1e-9);
        assert_eq!(pair.over(Spread::of([0.0]).unwrap()), None);
    }
}
