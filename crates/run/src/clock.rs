//! The time, as RFC 3339 in UTC with milliseconds. Thirty lines do not justify a calendar crate.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, such as `2026-11-24T09:53:00.125Z`.
pub fn now() -> String {
    format(since_epoch().as_millis() as u64)
}

/// Time since 1970; zero if the clock stands before that.
pub fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn format(millis: u64) -> String {
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01. Years begin in March here, so that the leap day is the last
/// day of a year, and 400 of them always have 146,097 days.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: `date -u -d @SECONDS +%FT%TZ` of GNU coreutils.
    #[test]
    fn dates_agree_with_those_of_gnu_date() {
        assert_eq!(format(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(format(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(format(951_825_600_000), "2000-02-29T12:00:00.000Z");
        assert_eq!(format(951_868_800_000), "2000-03-01T00:00:00.000Z");
        assert_eq!(format(1_795_513_980_125), "2026-11-24T09:53:00.125Z");
        assert_eq!(format(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }
}
