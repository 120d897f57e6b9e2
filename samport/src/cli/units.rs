//! Numbers as people read them.

use std::time::Duration;

/// A time, to its largest unit or two.
pub(super) fn time(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}min", seconds / 60),
        seconds @ 3_600..172_800 => format!("{}h{:02}min", seconds / 3_600, seconds % 3_600 / 60),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A number of bytes.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0);
    let Some((unit, shift)) = unit else { return format!("{bytes} B") };
    // In tenths, rounded down: a limit is never shown as more than it is.
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A number of things in a time, to a tenth.
#[allow(
    clippy::cast_precision_loss,
    reason = "exact to 2^53, which is more digits than anyone reads"
)]
pub(super) fn rate(things: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { things as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (125, "2min"),
            (3_900, "1h05min"),
            (90_000, "25h00min"),
            (200_000, "2 days"),
        ] {
            assert_eq!(time(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn bytes_have_the_unit_that_fits() {
        for (number, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (33_554_432, "32.0 MiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn no_time_has_no_rate() {
        assert_eq!(rate(5, Duration::from_millis(500)).to_string(), "10");
        assert_eq!(rate(5, Duration::ZERO).to_string(), "0");
    }
}
