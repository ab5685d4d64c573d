//! Numbers as people read them.

use std::time::Duration;

use podmesh_proto::time::UnixSeconds;

/// Bytes in IEC units with two digits or more: `880B`, `9.8GiB`, `310MiB`.
pub(crate) fn bytes(count: u64) -> String {
    let (mut tenths, mut unit) = (u128::from(count) * 10, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if tenths < 10_235 {
            break;
        }
        tenths = (tenths + 512) / 1024;
        unit = larger;
    }
    if unit == "B" || tenths >= 100 || tenths % 10 == 0 {
        format!("{}{unit}", (tenths + 5) / 10)
    } else {
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    }
}

/// Seconds with one or two units: `41s`, `1m02s`, `3h11m`, `12d04h`.
pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// A time seen from `now`: `in 3h11m`, `41s ago`.
pub(crate) fn relative(time: UnixSeconds, now: UnixSeconds) -> String {
    if time > now {
        format!("in {}", duration(time.0.saturating_sub(now.0)))
    } else {
        format!("{} ago", duration(now.0.saturating_sub(time.0)))
    }
}

/// Milliseconds: `0.4ms`, `24.1ms`.
pub(crate) fn milliseconds(ms: f64) -> String {
    format!("{ms:.1}ms")
}

/// A share: `0%`, `0.2%`, `13%`.
pub(crate) fn percent(share: f64) -> String {
    if share < 10.0 && share.fract().abs() >= 0.05 {
        format!("{share:.1}%")
    } else {
        format!("{share:.0}%")
    }
}

/// A length of time from the command line: a number with `s`, `m`, `h`, `d` or `w`; seconds.
///
/// # Errors
/// No such text, or zero.
pub(crate) fn parse_duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a length of time: write 30s, 10m, 1h, 90d or 2w");
    let split = text
        .char_indices()
        .last()
        .map(|(position, _)| position)
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(factor) {
        Some(0) | None => Err(wrong()),
        Some(seconds) => Ok(seconds),
    }
}

/// How long to wait, from the command line: as [`parse_duration`], or a number with `ms`.
///
/// # Errors
/// No such text, or zero.
pub(crate) fn parse_patience(text: &str) -> Result<Duration, String> {
    let ms = text
        .strip_suffix("ms")
        .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    match ms.and_then(|number| number.parse().ok()) {
        Some(0) | None => parse_duration(text).map(Duration::from_secs),
        Some(ms) => Ok(Duration::from_millis(ms)),
    }
}

/// A number of things, `1 peer` or `2 peers`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_in_the_manual() {
        for (count, text) in [
            (0, "0B"),
            (880, "880B"),
            (1_023, "1023B"),
            (1_024, "1KiB"),
            (9_437_184, "9MiB"),
            (1_288_490_189, "1.2GiB"),
            (325_058_560, "310MiB"),
            (11_811_160_064, "11GiB"),
            (u64::MAX, "16EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [
            (41, "41s"),
            (62, "1m02s"),
            (11_460, "3h11m"),
            (1_051_200, "12d04h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(percent(0.0), "0%");
        assert_eq!(percent(0.2), "0.2%");
        assert_eq!(percent(12.6), "13%");
        assert_eq!(milliseconds(24.06), "24.1ms");
    }

    #[test]
    fn lengths_of_time_have_a_unit_and_are_not_zero() {
        assert_eq!(parse_duration("90d"), Ok(7_776_000));
        assert_eq!(parse_duration("1h"), Ok(3_600));
        for wrong in [
            "",
            "h",
            "5",
            "0s",
            "-1h",
            "+1h",
            "1.5h",
            "1y",
            "99999999999999999999s",
            "9ü",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
