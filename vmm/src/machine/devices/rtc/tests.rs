use super::*;
use proptest::prelude::*;

const NO_MEMORY: MemorySize = MemorySize { below_4g: 0, above_4g: 0 };
const MILLI: u64 = 1_000_000;

/// Monday 23 November 2026, 05:16:29 UTC.
const BOOT: u64 = 1_795_410_989;

fn ms(millis: u64) -> VirtualTime {
    VirtualTime::from_nanos(millis * MILLI)
}

fn set(rtc: &mut Rtc, now: VirtualTime, register: usize, value: u8) {
    assert_eq!(rtc.write(now, 0x70, &[register as u8 | 0x80]), None);
    assert_eq!(rtc.write(now, 0x71, &[value]), None);
}

fn get(rtc: &mut Rtc, now: VirtualTime, register: usize) -> u8 {
    assert_eq!(rtc.write(now, 0x70, &[register as u8]), None);
    let mut data = [0];
    rtc.read(now, 0x71, &mut data);
    data[0]
}

/// Century, year, month, day, hour, minute, second, weekday: as the registers show them.
fn shown(rtc: &mut Rtc, now: VirtualTime) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS, WEEKDAY].map(|r| get(rtc, now, r))
}

#[test]
fn shows_the_time_of_boot_and_goes_on() {
    let mut rtc = Rtc::new(BOOT, NO_MEMORY);
    assert_eq!(shown(&mut rtc, ms(0)), [0x20, 0x26, 0x11, 0x23, 0x05, 0x16, 0x29, 2]);
    assert_eq!(shown(&mut rtc, ms(999)), [0x20, 0x26, 0x11, 0x23, 0x05, 0x16, 0x29, 2]);
    assert_eq!(shown(&mut rtc, ms(1000)), [0x20, 0x26, 0x11, 0x23, 0x05, 0x16, 0x30, 2]);
    assert_eq!(get(&mut rtc, ms(1000), CENTURY_PS2), 0x20);
    assert_eq!(get(&mut rtc, ms(1000), D), 0x80);
}

#[test]
fn turns_of_day_month_and_year() {
    for (last_second, next) in [
        (1_709_164_799, [0x20, 0x24, 0x02, 0x29, 0, 0, 0, 5]), // leap day
        (1_677_628_799, [0x20, 0x23, 0x03, 0x01, 0, 0, 0, 4]), // none in 2023
        (1_714_521_599, [0x20, 0x24, 0x05, 0x01, 0, 0, 0, 4]),
        (946_684_799, [0x20, 0x00, 0x01, 0x01, 0, 0, 0, 7]),
        (4_107_542_399, [0x21, 0x00, 0x03, 0x01, 0, 0, 0, 2]), // 2100 is no leap year
    ] {
        let mut rtc = Rtc::new(last_second, NO_MEMORY);
        assert_eq!(shown(&mut rtc, ms(500))[4..7], [0x23, 0x59, 0x59]);
        assert_eq!(shown(&mut rtc, ms(1000)), next);
    }
}

#[test]
fn binary_and_twelve_hours() {
    for (hour, decimal, binary) in
        [(0, 0x12, 12), (1, 0x01, 1), (11, 0x11, 11), (12, 0x92, 0x8c), (13, 0x81, 0x81), (23, 0x91, 0x8b)]
    {
        let mut rtc = Rtc::new(1_795_392_000 + hour * 3600 + 59 * 60, NO_MEMORY);
        set(&mut rtc, ms(0), B, B_BINARY | B_24_HOURS);
        assert_eq!(get(&mut rtc, ms(0), HOURS), hour as u8);
        assert_eq!(get(&mut rtc, ms(0), MINUTES), 59);
        set(&mut rtc, ms(0), B, B_BINARY);
        assert_eq!(get(&mut rtc, ms(0), HOURS), binary);
        set(&mut rtc, ms(0), B, 0);
        assert_eq!(get(&mut rtc, ms(0), HOURS), decimal);
        // What it shows it also takes.
        set(&mut rtc, ms(0), HOURS, decimal);
        set(&mut rtc, ms(0), B, B_24_HOURS | B_BINARY);
        assert_eq!(get(&mut rtc, ms(0), HOURS), hour as u8);
    }
}

#[test]
fn linux_sets_the_time() {
    // mc146818_set_time: SET, divider in reset, the registers, then both back.
    let mut rtc = Rtc::new(BOOT, NO_MEMORY);
    let now = ms(10_300);
    set(&mut rtc, now, B, B_24_HOURS | B_SET);
    set(&mut rtc, now, A, A_POWER_ON | 0x70);
    let time =
        [(YEAR, 0x28), (MONTH, 0x02), (DAY_OF_MONTH, 0x29), (HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x58)];
    for (register, value) in time.into_iter().chain([(CENTURY, 0x20), (WEEKDAY, 3)]) {
        set(&mut rtc, now, register, value);
    }
    assert_eq!(get(&mut rtc, ms(20_000), SECONDS), 0x58, "it stands still");
    set(&mut rtc, ms(20_000), B, B_24_HOURS);
    set(&mut rtc, ms(20_000), A, A_POWER_ON);
    // The first update comes half a second after the divider's reset.
    assert_eq!(shown(&mut rtc, ms(20_499)), [0x20, 0x28, 0x02, 0x29, 0x23, 0x59, 0x58, 3]);
    assert_eq!(shown(&mut rtc, ms(20_500)), [0x20, 0x28, 0x02, 0x29, 0x23, 0x59, 0x59, 3]);
    assert_eq!(shown(&mut rtc, ms(21_500)), [0x20, 0x28, 0x03, 0x01, 0x00, 0x00, 0x00, 4]);
}

#[test]
fn values_out_of_range_become_the_nearest() {
    let mut rtc = Rtc::new(BOOT, NO_MEMORY);
    set(&mut rtc, ms(0), B, B_24_HOURS | B_SET);
    for register in [SECONDS, MINUTES, HOURS, WEEKDAY, DAY_OF_MONTH, YEAR, CENTURY] {
        set(&mut rtc, ms(0), register, 0xff);
    }
    set(&mut rtc, ms(0), MONTH, 0x02);
    set(&mut rtc, ms(0), B, B_24_HOURS);
    assert_eq!(shown(&mut rtc, ms(0)), [0x99, 0x99, 0x02, 0x28, 0x23, 0x59, 0x59, 7]);
}

#[test]
fn update_in_progress_warns() {
    let mut rtc = Rtc::new(BOOT, NO_MEMORY);
    for (nanos, uip) in
        [(0, 0), (999_755_000, 0), (999_756_000, 0x80), (999_999_999, 0x80), (1_000_000_000, 0)]
    {
        assert_eq!(get(&mut rtc, VirtualTime::from_nanos(nanos), A), A_POWER_ON | uip, "{nanos}");
    }
    set(&mut rtc, ms(1000), B, B_24_HOURS | B_SET);
    assert_eq!(get(&mut rtc, VirtualTime::from_nanos(1_999_999_999), A), A_POWER_ON);
}

#[test]
fn update_ended_interrupts_each_second() {
    let mut rtc = Rtc::new(BOOT, NO_MEMORY);
    set(&mut rtc, ms(100), B, B_24_HOURS | UPDATE_ENDED);
    for second in 1..5 {
        assert_eq!(rtc.deadline(), Some(ms(second * 1000)));
        rtc.advance(ms(second * 1000));
        assert!(rtc.interrupt());
        assert_eq!(rtc.deadline(), None);
        assert_eq!(get(&mut rtc, ms(second * 1000), C), C_REQUEST | PERIODIC | UPDATE_ENDED);
        assert!(!rtc.interrupt());
    }
    set(&mut rtc, ms(5000), B, B_24_HOURS | UPDATE_ENDED | B_SET);
    assert_eq!(get(&mut rtc, ms(5000), B), B_24_HOURS | B_SET, "SET takes UIE away");
}

#[test]
fn periodic_interrupt_by_rate() {
    for (rate, hertz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut rtc = Rtc::new(BOOT, NO_MEMORY);
        set(&mut rtc, ms(0), A, 0x20 | rate);
        set(&mut rtc, ms(0), B, B_24_HOURS | PERIODIC);
        let mut interrupts = 0;
        while let Some(deadline) = rtc.deadline().filter(|deadline| *deadline <= ms(2000)) {
            rtc.advance(deadline);
            assert!(rtc.interrupt());
            get(&mut rtc, deadline, C);
            interrupts += 1;
        }
        assert_eq!(interrupts, 2 * hertz);
    }
    let mut rtc = Rtc::new(BOOT, NO_MEMORY);
    set(&mut rtc, ms(0), A, 0x20);
    set(&mut rtc, ms(0), B, B_24_HOURS | PERIODIC);
    assert_eq!(rtc.deadline(), None);
}

#[test]
fn alarm() {
    let mut rtc = Rtc::new(BOOT, NO_MEMORY); // 05:16:29
    for (alarm, seconds) in [
        ([0x05, 0x16, 0x30], 1),
        ([0x05, 0x16, 0x29], 86_400),
        ([0x05, 0x17, 0x00], 31),
        ([0xff, 0x16, 0x00], 3_571),
        ([0xff, 0xff, 0x05], 36),
        ([0xc0, 0xc0, 0xc0], 1),
        ([0x00, 0x00, 0x00], 67_411),
        ([0x05, 0xff, 0xff], 1),
        ([0x04, 0xff, 0xff], 81_811),
    ] {
        let mut rtc = rtc.clone();
        for (register, value) in [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM].into_iter().zip(alarm) {
            set(&mut rtc, ms(0), register, value);
        }
        set(&mut rtc, ms(0), B, B_24_HOURS | ALARM);
        assert_eq!(rtc.deadline(), Some(ms(seconds * 1000)), "{alarm:x?}");
        rtc.advance(ms(seconds * 1000 - 1));
        assert!(!rtc.interrupt());
        rtc.advance(ms(seconds * 1000));
        assert!(rtc.interrupt());
    }
    set(&mut rtc, ms(0), HOURS_ALARM, 0x24); // never
    set(&mut rtc, ms(0), B, B_24_HOURS | ALARM);
    assert_eq!(rtc.deadline(), None);
    rtc.advance(ms(200_000_000));
    assert!(!rtc.interrupt());
}

#[test]
fn alarm_at_the_last_second_of_a_minute() {
    let mut rtc = Rtc::new(BOOT + 29, NO_MEMORY); // 05:16:58
    set(&mut rtc, ms(0), HOURS_ALARM, 0xff);
    set(&mut rtc, ms(0), MINUTES_ALARM, 0xff);
    set(&mut rtc, ms(0), SECONDS_ALARM, 0x59);
    set(&mut rtc, ms(0), B, B_24_HOURS | ALARM);
    assert_eq!(rtc.deadline(), Some(ms(1000)));
}

#[test]
fn alarm_in_twelve_hours_and_binary() {
    let mut rtc = Rtc::new(BOOT, NO_MEMORY);
    set(&mut rtc, ms(0), B, B_BINARY | ALARM);
    for (register, value) in [(HOURS_ALARM, PM | 12), (MINUTES_ALARM, 0), (SECONDS_ALARM, 59)] {
        set(&mut rtc, ms(0), register, value);
    }
    assert_eq!(rtc.deadline(), Some(ms(1000 * (6 * 3600 + 43 * 60 + 31 + 59))));
}

#[test]
fn memory_tells_its_size_and_keeps_what_is_written() {
    const GIB: u64 = 1 << 30;
    let mut rtc = Rtc::new(BOOT, MemorySize { below_4g: 3 * GIB, above_4g: 5 * GIB });
    let now = ms(0);
    let word = |rtc: &mut Rtc, at| u16::from_le_bytes([get(rtc, now, at), get(rtc, now, at + 1)]);
    assert_eq!(word(&mut rtc, 0x15), 640);
    assert_eq!((word(&mut rtc, 0x17), word(&mut rtc, 0x30)), (0xffff, 0xffff));
    assert_eq!(u64::from(word(&mut rtc, 0x34)) << 16, 3 * GIB - (16 << 20));
    assert_eq!((u64::from(word(&mut rtc, 0x5b)) | u64::from(get(&mut rtc, now, 0x5d)) << 16) << 16, 5 * GIB);
    let mut small = Rtc::new(BOOT, MemorySize { below_4g: 8 << 20, above_4g: 0 });
    assert_eq!((word(&mut small, 0x17), word(&mut small, 0x34)), (7 << 10, 0));
    for register in (0x0e..0x80).filter(|&register| ![CENTURY, CENTURY_PS2].contains(&register)) {
        set(&mut rtc, now, register, !(register as u8));
        assert_eq!(get(&mut rtc, now, register), !(register as u8));
    }
}

fn access() -> impl Strategy<Value = (u64, bool, u16, Vec<u8>)> {
    let step = prop_oneof![4 => 0u64..2_000_000_000, 2 => 0u64..1_000_000, 1 => 0u64..100_000_000_000_000];
    let port = prop_oneof![8 => 0x70u16..0x72, 1 => 0x6eu16..0x74];
    let data = prop_oneof![
        4 => (0u8..0x10).prop_map(|register| vec![register]),
        4 => prop::collection::vec(any::<u8>(), 1),
        1 => prop::collection::vec(any::<u8>(), 0..9)
    ];
    (step, any::<bool>(), port, data)
}

proptest! {
    #[test]
    fn agrees_with_the_c_library(boot in 0..LAST_SECOND / 2, later in 0..LAST_SECOND / 16, half in any::<bool>(), binary in any::<bool>()) {
        let mut rtc = Rtc::new(boot, NO_MEMORY);
        set(&mut rtc, ms(0), B, if half { 0 } else { B_24_HOURS } | if binary { B_BINARY } else { 0 });
        let now = VirtualTime::from_nanos(later * NANOS_PER_SECOND);
        let registers = shown(&mut rtc, now);

        let time = (boot + later) as libc::time_t;
        // SAFETY: `tm` is plain data for which all zeroes are valid, and both pointers are to locals.
        let tm = unsafe {
            let mut tm = std::mem::zeroed();
            assert!(!libc::gmtime_r(&time, &mut tm).is_null());
            tm
        };
        let hour = match (half, tm.tm_hour) {
            (false, hour) => hour,
            (true, 0 | 12) => 12,
            (true, hour) => hour % 12,
        };
        let year = tm.tm_year + 1900;
        let fields = [year / 100, year % 100, tm.tm_mon + 1, tm.tm_mday, hour, tm.tm_min, tm.tm_sec, tm.tm_wday + 1];
        let mut expected = fields.map(|field| {
            let digits = if binary { format!("{field:x}") } else { field.to_string() };
            u8::from_str_radix(&digits, 16).expect("two digits")
        });
        if half && tm.tm_hour >= 12 {
            expected[4] |= PM;
        }
        prop_assert_eq!(registers, expected);

        // Set to what it showed, it shows that again, and goes on from there.
        let mut other = Rtc::new(0, NO_MEMORY);
        let b = get(&mut rtc, now, B);
        set(&mut other, ms(0), B, b | B_SET);
        for (register, value) in [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS, WEEKDAY].into_iter().zip(registers) {
            set(&mut other, ms(0), register, value);
        }
        set(&mut other, ms(700), B, b);
        prop_assert_eq!(shown(&mut other, ms(999)), registers);
        prop_assert_eq!(shown(&mut other, ms(1000)), shown(&mut rtc, now + NANOS_PER_SECOND));
    }

    #[test]
    fn the_outcome_does_not_depend_on_who_looks_when(
        boot in any::<u64>(), accesses in prop::collection::vec(access(), 1..40), looks in prop::collection::vec(0u64..1000, 0..10)
    ) {
        let mut rare = Rtc::new(boot, NO_MEMORY);
        let mut often = rare.clone();
        let mut now = VirtualTime::ZERO;
        for (step, write, port, mut data) in accesses {
            for look in &looks {
                often.advance(now + step / 1000 * look);
            }
            now = now + step;
            if write {
                prop_assert_eq!(rare.write(now, port, &data), None);
                prop_assert_eq!(often.write(now, port, &data), None);
            } else {
                let mut again = data.clone();
                rare.read(now, port, &mut data);
                often.read(now, port, &mut again);
                prop_assert_eq!(data, again);
            }
            rare.advance(now);
            often.advance(now);
            prop_assert_eq!(rare.interrupt(), often.interrupt());
            prop_assert_eq!(rare.deadline(), often.deadline());
        }
        prop_assert_eq!(rare, often);
    }

    #[test]
    fn deadline_is_when_the_line_rises(accesses in prop::collection::vec(access(), 1..40)) {
        let mut rtc = Rtc::new(BOOT, NO_MEMORY);
        let mut now = VirtualTime::ZERO;
        for (step, write, port, mut data) in accesses {
            now = now + step;
            if write {
                prop_assert_eq!(rtc.write(now, port, &data), None);
            } else {
                rtc.read(now, port, &mut data);
            }
            rtc.advance(now);
            let mut later = rtc.clone();
            match rtc.deadline() {
                Some(deadline) => {
                    prop_assert!(deadline > now && !rtc.interrupt());
                    later.advance(VirtualTime::from_nanos(deadline.as_nanos() - 1));
                    prop_assert!(!later.interrupt());
                    later.advance(deadline);
                    prop_assert!(later.interrupt());
                }
                None => {
                    later.advance(now + 3 * 86_400 * NANOS_PER_SECOND);
                    prop_assert_eq!(later.interrupt(), rtc.interrupt());
                }
            }
        }
    }

    #[test]
    fn any_time_and_access_is_survived(accesses in prop::collection::vec((any::<u64>(), access()), 1..40)) {
        let mut rtc = Rtc::new(u64::MAX, NO_MEMORY);
        for (nanos, (_, write, port, mut data)) in accesses {
            let now = VirtualTime::from_nanos(nanos);
            if write {
                prop_assert_eq!(rtc.write(now, port, &data), None);
            } else {
                rtc.read(now, port, &mut data);
            }
            rtc.advance(now);
            let _ = rtc.deadline();
        }
    }
}
