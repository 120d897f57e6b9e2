//! Whether counts are as even as chance allows.

/// Three standard deviations of a count: `total` draws that each hit with probability `share`.
#[must_use]
pub fn three_sigma(total: u32, share: f64) -> f64 {
    3.0 * (f64::from(total) * share * (1.0 - share)).sqrt()
}

/// Whether a count is within three standard deviations of its expectation; a fair one is 99.7 times
/// of 100.
#[must_use]
pub fn within_three_sigma(count: u32, total: u32, share: f64) -> bool {
    deviation(count, total, share) <= three_sigma(total, share)
}

/// Four standard deviations of a count: `total` draws that each hit with probability `share`.
#[must_use]
pub fn four_sigma(total: u32, share: f64) -> f64 {
    three_sigma(total, share) * 4.0 / 3.0
}

/// Whether a count is within four standard deviations of its expectation; a fair one is 15,999 times of
/// 16,000: for who asks only once.
#[must_use]
pub fn within_four_sigma(count: u32, total: u32, share: f64) -> bool {
    deviation(count, total, share) <= four_sigma(total, share)
}

fn deviation(count: u32, total: u32, share: f64) -> f64 {
    (f64::from(count) - f64::from(total) * share).abs()
}

/// Pearson's χ² of counts against weights, which need not sum up to 1.
#[must_use]
pub fn chi_square(counts: &[u32], weights: &[f64]) -> f64 {
    assert_eq!(counts.len(), weights.len(), "a weight for each count");
    let total = f64::from(counts.iter().sum::<u32>());
    let weight: f64 = weights.iter().sum();
    let terms = counts.iter().zip(weights).map(|(count, share)| {
        let expected = total * share / weight;
        (f64::from(*count) - expected).powi(2) / expected
    });
    terms.sum()
}

/// What χ² of fair counts exceeds once in a thousand times, for 1 to 9 degrees of freedom (one less
/// than there are counts). From the tables of the NIST Engineering Statistics Handbook, 1.3.6.7.4.
#[must_use]
pub fn chi_square_limit(degrees_of_freedom: usize) -> f64 {
    const LIMITS: [f64; 9] =
        [10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322, 26.125, 27.877];
    assert!((1..=9).contains(&degrees_of_freedom), "the table has 1 to 9 degrees of freedom");
    LIMITS[degrees_of_freedom - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_the_article_are_fair() {
        assert!(within_three_sigma(158, 300, 0.5));
        assert!(within_three_sigma(125, 300, 0.5));
        assert!(!within_three_sigma(123, 300, 0.5));
    }

    #[test]
    fn four_sigma_are_a_third_more_than_three() {
        // σ of 3,600 draws that hit once in ten times is 18.
        assert!(within_four_sigma(432, 3_600, 0.1) && within_four_sigma(288, 3_600, 0.1));
        assert!(!within_four_sigma(433, 3_600, 0.1) && !within_four_sigma(287, 3_600, 0.1));
    }

    #[test]
    fn chi_square_is_the_textbooks() {
        // A die thrown 60 times: 5, 8, 9, 8, 10, 20.
        let chi = chi_square(&[5, 8, 9, 8, 10, 20], &[1.0; 6]);
        assert!((chi - 13.4).abs() < 1e-9, "{chi}");
        assert!(chi < chi_square_limit(5));
        assert!(chi_square(&[700, 200, 100], &[70.0, 20.0, 10.0]) < 1e-9);
        assert!(chi_square(&[300, 0], &[1.0, 1.0]) > chi_square_limit(1));
    }
}
