//! What the sides logged, in order of time.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// One line of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it was logged.
    pub at: SystemTime,
    /// Its level: INFO, WARN ….
    pub level: String,
    /// What it says, with its fields.
    pub text: String,
}

/// Reads what `tandem --log-format json` wrote to standard error. Lines that are something else are left out.
#[must_use]
pub fn read(path: &Path) -> Vec<Event> {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().filter_map(event).collect()
}

fn event(line: &str) -> Option<Event> {
    let Value::Object(fields) = serde_json::from_str(line).ok()? else { return None };
    let text = |key: &str| fields.get(key)?.as_str();
    let mut said = text("message")?.to_owned();
    for (key, value) in &fields {
        if ["timestamp", "level", "message", "target", "span", "spans"].contains(&key.as_str()) {
            continue;
        }
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        said.push_str(&format!(" {key}={value}"));
    }
    Some(Event { at: time(text("timestamp")?)?, level: text("level")?.to_owned(), text: said })
}

/// `2026-11-23T06:43:31.123456Z`, or seconds since 1970.
fn time(text: &str) -> Option<SystemTime> {
    if let Ok(seconds) = text.parse::<f64>() {
        return UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?);
    }
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':');
    let (hours, minutes) = (clock.next()?.parse::<u32>().ok()?, clock.next()?.parse::<u32>().ok()?);
    let seconds: f64 = clock.next()?.parse().ok()?;
    let days = u64::try_from(days_from_civil(year, month, day)).ok()?;
    let whole = days * 86_400 + u64::from(hours * 3600 + minutes * 60);
    UNIX_EPOCH.checked_add(Duration::from_secs(whole) + Duration::try_from_secs_f64(seconds).ok()?)
}

/// Days since 1970-01-01 in the Gregorian calendar; years begin in March, so that a leap day is the last.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_json_log_become_events() {
        let line = r#"{"timestamp":"2026-11-23T06:43:31.250000Z","level":"INFO","message":"won","generation":2,"target":"t"}"#;
        let event = event(line).unwrap();
        assert_eq!((event.level.as_str(), event.text.as_str()), ("INFO", "won generation=2"));
        let since = event.at.duration_since(UNIX_EPOCH).unwrap();
        assert_eq!((since.as_secs(), since.subsec_millis()), (1_795_416_211, 250));
        assert_eq!(super::event("thread panicked"), None);
        assert_eq!(super::event("{}"), None);
    }

    #[test]
    fn times_are_of_the_calendar() {
        let seconds = |text| time(text).map(|at| at.duration_since(UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2000-02-29T12:00:00.5Z"), Some(951_825_600));
        assert_eq!(seconds("2100-03-01T00:00:00Z"), Some(4_107_542_400));
        assert_eq!(seconds("12.5"), Some(12));
        for wrong in ["", "now", "1960-01-01T00:00:00Z", "2000-01-01", "2000-01-01T1Z", "-5"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
