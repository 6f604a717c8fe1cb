//! The figure that stands for several turns of a measurement.

/// The middle one, of an even number the upper of the two; not a number if there is none.
#[must_use]
pub fn median(values: Vec<f64>) -> f64 {
    quartiles(values)[1]
}

/// The ones a quarter, a half and three quarters of the way up; not numbers if there is none.
#[must_use]
pub fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values.get(values.len() * quarter / 4).copied().unwrap_or(f64::NAN))
}

/// The mean of the middle half; not a number if there is none. For values on a coarse grid, between whose steps their
/// median cannot tell.
#[must_use]
pub fn middle_mean(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let cut = values.len() / 4;
    let middle = &values[cut..values.len() - cut];
    middle.iter().sum::<f64>() / middle.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one_is_taken_in_whatever_order_they_come() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 3.0);
        assert!(median(Vec::new()).is_nan());
        assert_eq!(quartiles((0..8).rev().map(f64::from).collect()), [2.0, 4.0, 6.0]);
        assert_eq!(quartiles(vec![7.0]), [7.0; 3]);
    }

    #[test]
    fn a_mean_of_the_middle_half_forgets_the_outliers() {
        assert_eq!(middle_mean(vec![1000.0, 8.0, 16.0, -1000.0, 8.0, 8.0, 16.0, 16.0]), 12.0);
        assert_eq!(middle_mean(vec![5.0]), 5.0);
        assert!(middle_mean(Vec::new()).is_nan());
    }
}
