//! Times as users write them.

use std::time::Duration;

/// Longest time anything takes: 30 days.
const LONGEST: Duration = Duration::from_hours(30 * 24);

/// Reads a time of up to 30 days: `30s`, `2h5m`, or a number of seconds.
pub fn read(text: &str) -> Result<Duration, String> {
    let read = match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    match read {
        Ok(time) if time > LONGEST => Err(format!("invalid time {text:?}: expected 30d at most")),
        Ok(time) => Ok(time),
        Err(_) => Err(format!(
            "invalid time {text:?}: expected a time like 30s or 2h5m, or whole seconds"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, seconds) in
            [("30", 30), ("30s", 30), ("2h5m", 7_500), ("1m 30s", 90), ("30d", 2_592_000)]
        {
            assert_eq!(read(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(read("0"), Ok(Duration::ZERO));
    }
}
