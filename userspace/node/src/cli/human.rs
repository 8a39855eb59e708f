//! Durations and instants in the forms that Docker's users know.
//!
//! `About a minute` is go-units' `HumanDuration`, `1m30s` is Go's `time.ParseDuration`, and
//! instants are RFC 3339 with as many digits of a second as they have.

use std::time::Duration;

/// `Less than a second`, `5 seconds`, `About an hour`, `3 weeks`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    // Rounded to whole hours, as go-units does.
    let hours = (seconds + 1_800) / 3_600;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3_600 / 24 / 365),
    }
}

/// `5 seconds ago`, from an instant in nanoseconds since the epoch.
pub fn ago(then_ns: u64, now_ns: u64) -> String {
    let passed = Duration::from_nanos(now_ns.saturating_sub(then_ns));
    format!("{} ago", duration(passed).to_lowercase())
}

/// Reads `300ms`, `10s`, `1m30s`, `2h`.
///
/// # Errors
/// A text that is not a sum of numbers with units.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || "use a duration such as 500ms, 10s or 1m30s".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(error());
    }
    let mut rest = text;
    let mut nanos = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let number: f64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        nanos += number
            * match &rest[..end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3_600e9,
                _ => return Err(error()),
            };
        rest = &rest[end..];
    }
    // A century is more than any grace period and far inside the 64 bits of the wire form.
    if nanos > 100.0 * 365.0 * 86_400e9 {
        return Err("a duration may be at most a hundred years".to_owned());
    }
    Duration::try_from_secs_f64(nanos / 1e9).map_err(|_| error())
}

/// `2026-11-20T20:30:32.5Z`, from nanoseconds since the epoch.
pub fn rfc3339(ns: u64) -> String {
    let (seconds, fraction) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let fraction = match fraction {
        0 => String::new(),
        fraction => format!(".{}", format!("{fraction:09}").trim_end_matches('0')),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Year, month and day of a day since 1 January 1970, in the Gregorian calendar.
///
/// Years are counted from 1 March, so that the leap day comes last in its year.
fn civil(days: u64) -> (u64, u64, u64) {
    /// From 1 March of year 0 to 1 January 1970.
    const TO_EPOCH: u64 = 719_468;
    const ERA: u64 = 146_097;
    let days = days + TO_EPOCH;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let january_or_february = month >= 10;
    let month_of_year = if january_or_february { month - 9 } else { month + 3 };
    (era * 400 + year + u64::from(january_or_february), month_of_year, day_of_month)
}

/// `20MiB`, `1.953GiB`: four digits and a binary unit, as go-units' `BytesSize` has it.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = UNITS.len().min(1 + bytes.max(1).ilog2() as usize / 10) - 1;
    // Digits of a size to look at, not to count with.
    #[allow(clippy::cast_precision_loss, reason = "only four digits are shown")]
    let size = bytes as f64 / 1024f64.powi(i32::try_from(unit).unwrap_or(0));
    let digits = match size {
        size if size < 10.0 => 3,
        size if size < 100.0 => 2,
        size if size < 1_000.0 => 1,
        _ => 0,
    };
    let text = format!("{size:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0') } else { &text };
    format!("{}{}", text.trim_end_matches('.'), UNITS[unit])
}

/// `running` as `Running`.
pub fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// The clock, in nanoseconds since the epoch.
pub fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_worded_as_docker_words_them() {
        let check = |seconds, expected: &str| {
            assert_eq!(duration(Duration::from_secs(seconds)), expected, "{seconds}");
        };
        check(0, "Less than a second");
        check(1, "1 second");
        check(59, "59 seconds");
        check(60, "About a minute");
        check(119, "About a minute");
        check(120, "2 minutes");
        check(3_600, "About an hour");
        check(5_400, "2 hours");
        check(47 * 3_600, "47 hours");
        check(48 * 3_600, "2 days");
        check(14 * 86_400, "2 weeks");
        check(60 * 86_400, "2 months");
        check(730 * 86_400, "2 years");
        assert_eq!(ago(1_000_000_000, 6_500_000_000), "5 seconds ago");
        assert_eq!(ago(2, 1), "less than a second ago", "clocks of two hosts differ");
    }

    #[test]
    fn sizes_have_four_digits_and_a_binary_unit() {
        let check = |size, expected: &str| assert_eq!(bytes(size), expected, "{size}");
        check(0, "0B");
        check(1_023, "1023B");
        check(1_024, "1KiB");
        check(20 << 20, "20MiB");
        check(2_097_356_800, "1.953GiB");
        check(16_500_000_000, "15.37GiB");
        check(u64::MAX, "16EiB");
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let check = |text: &str, millis| {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        };
        check("0", 0);
        check("300ms", 300);
        check("1.5s", 1_500);
        check("1m30s", 90_000);
        check("2h", 7_200_000);
        for bad in ["", "10", "s", "1x", "-1s", "1s2", "9999999h", "1..5s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn instants_are_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400_000_000_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_206_632_500_000_000), "2026-11-20T20:30:32.5Z");
        assert_eq!(rfc3339(4_107_542_400_000_000_001), "2100-03-01T00:00:00.000000001Z");
    }
}
