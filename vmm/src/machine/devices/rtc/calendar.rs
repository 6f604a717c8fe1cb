//! Days and dates of the Gregorian calendar, as pure arithmetic.

/// Seconds in a day.
pub(super) const DAY: i64 = 86_400;

/// A date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
}

/// Days in 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;
/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;

impl Date {
    /// The date that lies `days` after 1 January 1970.
    pub(super) fn from_days(days: i64) -> Self {
        // Years begin on 1 March here, so that the leap day is the last of its year.
        let era = (days + EPOCH).div_euclid(ERA);
        let of_era = (days + EPOCH).rem_euclid(ERA);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153; // March is 0
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self { year: era * 400 + year + i64::from(month <= 2), month: month as u8, day: day as u8 }
    }

    /// Days since 1 January 1970.
    pub(super) fn to_days(self) -> i64 {
        let month = i64::from(self.month);
        let year = self.year - i64::from(month <= 2);
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day) - 1;
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - EPOCH
    }
}

/// How many days `month` (1 to 12) of `year` has.
pub(super) fn days_in_month(year: i64, month: u8) -> u8 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The day of the week, 1 for Sunday to 7 for Saturday.
pub(super) fn weekday(days: i64) -> u8 {
    ((days + 4).rem_euclid(7) + 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_ten_thousand_years_follows_the_one_before() {
        let mut date = Date { year: 0, month: 1, day: 1 };
        let mut days = date.to_days();
        assert_eq!(days, -719_528);
        while date.year < 10_000 {
            assert_eq!(date.to_days(), days);
            assert_eq!(Date::from_days(days), date);
            days += 1;
            date.day += 1;
            if date.day > days_in_month(date.year, date.month) {
                date.day = 1;
                date.month += 1;
            }
            if date.month > 12 {
                date.month = 1;
                date.year += 1;
            }
        }
    }

    #[test]
    fn known_days() {
        assert_eq!(Date::from_days(0), Date { year: 1970, month: 1, day: 1 });
        assert_eq!(weekday(0), 5); // a Thursday
        assert_eq!(Date { year: 2026, month: 11, day: 23 }.to_days(), 20_780);
        assert_eq!(weekday(20_780), 2); // a Monday
        assert_eq!(days_in_month(1900, 2), 28);
        assert_eq!(days_in_month(2000, 2), 29);
    }
}
