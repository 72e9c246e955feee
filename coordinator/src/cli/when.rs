//! Times and durations as an operator writes and reads them.
//!
//! Programs get RFC 3339 in UTC; people get "in 29 days". The one place of the
//! CLI that reads the clock is [`now`].

use std::time::{SystemTime, UNIX_EPOCH};

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;

/// Seconds since the Unix epoch.
#[allow(clippy::disallowed_methods, reason = "a command line has no other clock to ask")]
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX))
}

/// RFC 3339 in UTC; `None` for 0, which means never on the wire.
pub(crate) fn rfc3339(seconds: i64) -> Option<String> {
    if seconds == 0 {
        return None;
    }
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok()
}

/// "2026-11-24 07:30:05" in UTC for people, "never" for 0; breaks into two lines in a narrow table.
pub(crate) fn second(seconds: i64) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    match OffsetDateTime::from_unix_timestamp(seconds) {
        _ if seconds == 0 => "never".into(),
        Ok(at) => at.format(&form).unwrap_or_else(|_| seconds.to_string()),
        Err(_) => seconds.to_string(),
    }
}

/// "2026-11-24 07:30 UTC" for people, "never" for 0.
pub(crate) fn minute(seconds: i64) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    match OffsetDateTime::from_unix_timestamp(seconds) {
        _ if seconds == 0 => "never".into(),
        Ok(at) => at.format(&form).unwrap_or_else(|_| seconds.to_string()),
        Err(_) => seconds.to_string(),
    }
}

/// "in 3 days", "5 min ago", "never" for 0.
pub(crate) fn relative(seconds: i64, now: i64) -> String {
    if seconds == 0 {
        return "never".into();
    }
    let distance = span(seconds.abs_diff(now));
    if seconds > now { format!("in {distance}") } else { format!("{distance} ago") }
}

/// A span of seconds in its largest fitting unit: "45 s", "12 min", "3 h", "29 days", "4 years".
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / MINUTE),
        7200..172_800 => format!("{} h", seconds / HOUR),
        172_800..63_072_000 => format!("{} days", seconds / DAY),
        _ => format!("{} years", seconds / (365 * DAY)),
    }
}

/// Like [`span`], exact to the second: "1 min 32 s", "2 h 0 min 5 s".
pub(crate) fn exact(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / HOUR, seconds % HOUR / MINUTE, seconds % MINUTE);
    match (hours, minutes) {
        (0, 0) => format!("{rest} s"),
        (0, _) => format!("{minutes} min {rest} s"),
        _ => format!("{hours} h {minutes} min {rest} s"),
    }
}

/// Seconds of "720h", "30d", "1h30m", "2w", "45s".
pub(crate) fn duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a duration such as 30d, 720h, 90m or 45s");
    let mut total: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        // Every unit is one ASCII letter, so the next slice starts at a character.
        let unit = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => MINUTE,
            b'h' => HOUR,
            b'd' => DAY,
            b'w' => WEEK,
            _ => return Err(wrong()),
        };
        total = number.checked_mul(unit).and_then(|n| total.checked_add(n)).ok_or_else(wrong)?;
        rest = &rest[digits + 1..];
    }
    Ok(total)
}

/// Seconds as the shortest text [`duration`] reads back: "30d", "36h", "90m", "45s".
pub(crate) fn short(seconds: u64) -> String {
    match seconds {
        s if s > 0 && s % DAY == 0 => format!("{}d", s / DAY),
        s if s > 0 && s % HOUR == 0 => format!("{}h", s / HOUR),
        s if s > 0 && s % MINUTE == 0 => format!("{}m", s / MINUTE),
        s => format!("{s}s"),
    }
}

/// A moment: RFC 3339, a date (its first second, UTC), or a duration from `now`.
pub(crate) fn moment(text: &str, now: i64) -> Result<i64, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at.unix_timestamp());
    }
    if let Ok(date) = Date::parse(text, &format_description!("[year]-[month]-[day]")) {
        return Ok(date.midnight().assume_utc().unix_timestamp());
    }
    duration(text).ok().and_then(|seconds| now.checked_add(seconds.try_into().ok()?)).ok_or_else(|| {
        format!("{text:?} is neither a date (2027-01-31, RFC 3339) nor a duration from now (30d)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_as_people_write_them() {
        assert_eq!(duration("720h"), Ok(2_592_000));
        assert_eq!(duration("30d"), Ok(2_592_000));
        assert_eq!(duration("1h30m"), Ok(5400));
        for wrong in ["", "30", "d", "-1d", "1y", "1d ", "99999999999999999999d", "9999999999999999w", "1é"]
        {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn moments_as_people_write_them() {
        assert_eq!(moment("1970-01-02", 0), Ok(86_400));
        assert_eq!(moment("1970-01-01T01:00:00+01:00", 5), Ok(0));
        assert_eq!(moment("2d", 100), Ok(172_900));
        assert!(moment("soon", 0).is_err());
    }

    #[test]
    fn reads_well() {
        assert_eq!(relative(0, 100), "never");
        assert_eq!(relative(190, 100), "in 90 s");
        assert_eq!(relative(0x7fff_ffff, 0x7fff_ffff - 10 * 86_400), "in 10 days");
        assert_eq!(exact(92), "1 min 32 s");
        assert_eq!(rfc3339(1_790_000_000).as_deref(), Some("2026-09-21T14:13:20Z"));
        assert_eq!(rfc3339(0), None);
        assert_eq!(rfc3339(i64::MAX), None);
    }

    proptest! {
        #[test]
        fn short_reads_back(seconds in 0u64..10_000_000) {
            prop_assert_eq!(duration(&short(seconds)), Ok(seconds));
        }

        #[test]
        fn never_panics(text in ".{0,40}", now in any::<i64>(), at in any::<i64>()) {
            let _ = moment(&text, now);
            let _ = relative(at, now);
            let _ = minute(at);
        }
    }
}
