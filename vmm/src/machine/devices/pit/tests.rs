use super::model::Model;
use super::*;
use crate::machine::time::NANOS_PER_SECOND;
use proptest::prelude::*;

fn at(ticks: u64) -> VirtualTime {
    VirtualTime::at_tick(ticks, HERTZ)
}

fn out(pit: &mut Pit, now: VirtualTime, port: u16, bytes: &[u8]) {
    for &byte in bytes {
        assert_eq!(pit.write(now, port, &[byte]), None);
    }
}

fn inb(pit: &mut Pit, now: VirtualTime, port: u16) -> u8 {
    let mut data = [0];
    pit.read(now, port, &mut data);
    data[0]
}

fn count(pit: &mut Pit, now: VirtualTime, channel: u8) -> u16 {
    out(pit, now, 0x43, &[channel << 6]);
    let port = 0x40 + u16::from(channel);
    u16::from_le_bytes([inb(pit, now, port), inb(pit, now, port)])
}

/// Counter 0 with `control`, then `count`, at tick zero; what happened until then is forgotten.
fn programmed(control: u8, count: u16) -> Pit {
    let mut pit = Pit::new();
    out(&mut pit, at(0), 0x43, &[control]);
    out(&mut pit, at(0), 0x40, &count.to_le_bytes());
    pit.advance(at(0));
    pit
}

#[test]
fn mode_2_ticks_at_the_rate_of_linux() {
    // HZ=250: LATCH is 4773.
    let mut pit = programmed(0x34, 4773);
    let mut ticks = 1 + 4773;
    for _ in 0..1000 {
        assert_eq!(pit.deadline(), Some(at(ticks)));
        assert_eq!(pit.advance(at(ticks - 1)), Out0 { rises: 0, level: false });
        assert_eq!(pit.advance(at(ticks)), Out0 { rises: 1, level: true });
        ticks += 4773;
    }
    // A day in one step.
    let day = 86_400 * HERTZ;
    let rises = pit.advance(VirtualTime::from_nanos(86_400 * NANOS_PER_SECOND)).rises;
    assert_eq!(rises, (day - 1) / 4773 - 1000);
}

#[test]
fn mode_4_one_shot_is_exact() {
    // As Linux's i8253 clockevent in one-shot mode: the count alone is written for each event.
    let mut pit = programmed(0x38, 1000);
    let mut start = 0;
    for delta in [1000_u16, 24, 0x7fff, 1] {
        out(&mut pit, at(start), 0x40, &delta.to_le_bytes());
        let end = start + 1 + u64::from(delta);
        assert_eq!(pit.deadline(), Some(at(end + 1)));
        assert_eq!(pit.advance(at(end - 1)), Out0 { rises: 0, level: true });
        assert_eq!(pit.advance(at(end)), Out0 { rises: 0, level: false });
        assert_eq!(pit.advance(at(end + 1)), Out0 { rises: 1, level: true });
        assert_eq!(pit.deadline(), None);
        assert_eq!(pit.advance(at(end + 200_000)), Out0 { rises: 0, level: true });
        start = end + 200_000;
    }
}

#[test]
fn mode_4_reprogrammed_in_flight_fires_once() {
    let mut pit = programmed(0x38, 1000);
    pit.advance(at(600));
    out(&mut pit, at(600), 0x40, &700u16.to_le_bytes());
    assert_eq!(pit.deadline(), Some(at(600 + 702)));
    assert_eq!(pit.advance(at(1301)).rises, 0);
    assert_eq!(pit.advance(at(1302)).rises, 1);
}

#[test]
fn mode_0_goes_low_and_rises_once() {
    let mut pit = Pit::new();
    out(&mut pit, at(0), 0x43, &[0x30]);
    assert_eq!(pit.advance(at(0)), Out0 { rises: 0, level: false });
    assert_eq!(pit.deadline(), None);
    out(&mut pit, at(5), 0x40, &100u16.to_le_bytes());
    assert_eq!(pit.deadline(), Some(at(5 + 101)));
    out(&mut pit, at(50), 0x40, &[200]); // the first byte of two stops the count
    assert_eq!(pit.deadline(), None);
    assert_eq!(pit.advance(at(1000)), Out0 { rises: 0, level: false });
    out(&mut pit, at(1000), 0x40, &[0]);
    assert_eq!(pit.advance(at(1200)).rises, 0);
    assert_eq!(pit.advance(at(1201)), Out0 { rises: 1, level: true });
    assert_eq!(count(&mut pit, at(1201), 0), 0);
    assert_eq!(count(&mut pit, at(1202), 0), 0xffff);
    assert_eq!(pit.advance(at(1_000_000)), Out0 { rises: 0, level: true });
    out(&mut pit, at(1_000_000), 0x43, &[0x30]);
    assert!(!pit.advance(at(1_000_000)).level);
}

#[test]
fn mode_3_halves() {
    for (count, high) in [(10, 5), (11, 6), (3, 2), (2, 1), (0, 0x8000)] {
        let mut pit = programmed(0x36, count);
        let period = if count == 0 { 0x1_0000 } else { u64::from(count) };
        for n in 0..5 {
            let start = 1 + n * period;
            assert!(pit.advance(at(start)).level, "{count}");
            assert!(pit.advance(at(start + high - 1)).level, "{count}");
            assert!(!pit.advance(at(start + high)).level, "{count}");
            assert!(!pit.advance(at(start + period - 1)).level, "{count}");
        }
    }
}

#[test]
fn mode_3_counts_by_twos() {
    let mut pit = programmed(0x36, 7);
    let seen: Vec<u16> = (1..=8).map(|tick| count(&mut pit, at(tick), 0)).collect();
    assert_eq!(seen, [6, 4, 2, 0, 6, 4, 2, 6]);
}

#[test]
fn mode_2_new_count_waits_for_the_end_of_the_period() {
    let mut pit = programmed(0x34, 100);
    pit.advance(at(30));
    out(&mut pit, at(30), 0x40, &50u16.to_le_bytes());
    assert_eq!(pit.deadline(), Some(at(101)));
    assert_eq!(pit.advance(at(101)).rises, 1);
    assert_eq!(pit.deadline(), Some(at(151)));
}

#[test]
fn a_loop_of_reads_sees_time_pass() {
    let mut pit = programmed(0x34, 11932);
    let mut last = count(&mut pit, at(1), 0);
    assert_eq!(last, 11932);
    for tick in 2..11932 {
        let now = count(&mut pit, at(tick), 0);
        assert_eq!(now, last - 1);
        last = now;
    }
}

#[test]
fn counter_2_by_port_61() {
    // As pit_calibrate_tsc: gate up, speaker off, mode 0, wait for OUT2.
    let mut pit = Pit::new();
    let gate = inb(&mut pit, at(0), 0x61) & !0x02 | 0x01;
    out(&mut pit, at(0), 0x61, &[gate]);
    out(&mut pit, at(0), 0x43, &[0xb0]);
    out(&mut pit, at(0), 0x42, &11931u16.to_le_bytes());
    assert_eq!(inb(&mut pit, at(11931), 0x61) & 0x23, 0x01);
    assert_eq!(inb(&mut pit, at(11932), 0x61) & 0x23, 0x21);
    // With the gate down the count stands still.
    out(&mut pit, at(11932), 0x42, &1000u16.to_le_bytes());
    out(&mut pit, at(12000), 0x61, &[0]);
    let still = count(&mut pit, at(12000), 2);
    assert_eq!(count(&mut pit, at(20000), 2), still);
    out(&mut pit, at(20000), 0x61, &[1]);
    assert_eq!(count(&mut pit, at(20010), 2), still - 10);
}

#[test]
fn modes_1_and_5_wait_for_the_gate() {
    let mut pit = Pit::new();
    out(&mut pit, at(0), 0x43, &[0xb2]);
    out(&mut pit, at(0), 0x42, &100u16.to_le_bytes());
    assert_eq!(inb(&mut pit, at(5000), 0x61) & OUT2, OUT2);
    out(&mut pit, at(5000), 0x61, &[1]);
    assert_eq!(inb(&mut pit, at(5001), 0x61) & OUT2, 0);
    out(&mut pit, at(5050), 0x61, &[0]);
    out(&mut pit, at(5050), 0x61, &[1]); // retriggered
    assert_eq!(inb(&mut pit, at(5150), 0x61) & OUT2, 0);
    assert_eq!(inb(&mut pit, at(5151), 0x61) & OUT2, OUT2);

    out(&mut pit, at(6000), 0x43, &[0xba]);
    out(&mut pit, at(6000), 0x42, &100u16.to_le_bytes());
    out(&mut pit, at(6000), 0x61, &[0]);
    out(&mut pit, at(6000), 0x61, &[1]);
    out(&mut pit, at(6000), 0x61, &[0]);
    for (tick, level) in [(6100, OUT2), (6101, 0), (6102, OUT2)] {
        assert_eq!(inb(&mut pit, at(tick), 0x61) & OUT2, level);
    }
}

#[test]
fn latch_holds_and_readback_tells_status() {
    let mut pit = programmed(0x34, 0x1234);
    assert_eq!(count(&mut pit, at(0x35), 0), 0x1200);
    out(&mut pit, at(0x35), 0x43, &[0x00]);
    out(&mut pit, at(0x135), 0x43, &[0x00]); // ignored: the first is not read yet
    assert_eq!([inb(&mut pit, at(0x135), 0x40), inb(&mut pit, at(0x235), 0x40)], [0x00, 0x12]);
    // Status, then count, of counter 0 only.
    out(&mut pit, at(0x335), 0x43, &[0xc2]);
    let bytes = [(); 3].map(|()| inb(&mut pit, at(0x400), 0x40));
    assert_eq!(bytes, [0x80 | 0x34, 0x00, 0x0f]);
    // A count written and not loaded yet sets the null-count bit.
    out(&mut pit, at(0x400), 0x40, &[0, 0x10]);
    out(&mut pit, at(0x400), 0x43, &[0xe2]);
    out(&mut pit, at(0x1235), 0x43, &[0xe2]); // ignored, though OUT and the null count changed since
    assert_eq!(inb(&mut pit, at(0x1235), 0x40), 0xc0 | 0x34);
    assert_eq!(inb(&mut pit, at(0x400), 0x43), 0xff);
}

#[test]
fn single_byte_access_and_decimal() {
    let mut pit = Pit::new();
    out(&mut pit, at(0), 0x43, &[0x14]);
    out(&mut pit, at(0), 0x40, &[50]);
    assert_eq!(inb(&mut pit, at(11), 0x40), 40);
    assert_eq!(inb(&mut pit, at(12), 0x40), 39);
    out(&mut pit, at(100), 0x43, &[0x24]);
    out(&mut pit, at(100), 0x40, &[2]);
    assert_eq!(inb(&mut pit, at(101), 0x40), 2);
    assert_eq!(inb(&mut pit, at(102), 0x40), 1);
    out(&mut pit, at(1000), 0x43, &[0x31]);
    out(&mut pit, at(1000), 0x40, &[0x00, 0x10]);
    assert_eq!(count(&mut pit, at(1002), 0), 0x0999);
    assert_eq!(count(&mut pit, at(2001), 0), 0x0000);
    assert_eq!(count(&mut pit, at(2002), 0), 0x9999);
}

#[test]
fn refresh_toggles_every_15_microseconds() {
    let mut pit = Pit::new();
    let toggles = (0..1_000_000 / 500)
        .map(|n| inb(&mut pit, VirtualTime::from_nanos(n * 500), 0x61) & REFRESH)
        .collect::<Vec<_>>();
    let edges = toggles.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!(edges, 66); // 1 ms / 15.0857 µs
}

#[derive(Clone, Debug)]
enum Op {
    Control(u8),
    Count(u16),
    Half(u8),
    Gate(bool),
    Ticks(u64),
    Latch,
}

fn op() -> impl Strategy<Value = Op> {
    let digits = |n: u16| (n % 10) | (n / 10 % 10) << 4 | (n / 100 % 10) << 8 | (n / 1000 % 10) << 12;
    prop_oneof![
        1 => (1u8..4, 0u8..16).prop_map(|(rw, low)| Op::Control(rw << 4 | low)),
        3 => prop_oneof![0u16..20, 0u16..10000].prop_map(move |n| Op::Count(digits(n))),
        1 => (0u8..16).prop_map(Op::Half),
        2 => any::<bool>().prop_map(Op::Gate),
        8 => prop_oneof![4 => 0u64..6, 4 => 0u64..400, 1 => 0u64..140_000].prop_map(Op::Ticks),
        2 => Just(Op::Latch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn counts_as_the_data_sheet_one_clock_at_a_time(ops in prop::collection::vec(op(), 1..60)) {
        let mut counter = Counter::new(true);
        let mut model = Model::new(true);
        for op in ops {
            match op {
                Op::Control(value) => {
                    counter.write_control(value);
                    model.control(value);
                }
                Op::Count(value) => {
                    for byte in value.to_le_bytes() {
                        counter.write(byte);
                        model.write(byte);
                    }
                }
                Op::Half(byte) => {
                    counter.write(byte & 7);
                    model.write(byte & 7);
                }
                Op::Gate(gate) => {
                    counter.set_gate(gate);
                    model.gate(gate);
                }
                Op::Ticks(ticks) => {
                    let expected = counter.ticks_to_rise();
                    let before = model.rises;
                    counter.run(ticks);
                    for tick in 1..=ticks {
                        model.clock();
                        if model.rises > before {
                            prop_assert!(expected.is_some_and(|first| first <= tick));
                        } else {
                            prop_assert!(expected.is_none_or(|first| first > tick));
                        }
                    }
                }
                Op::Latch => {
                    counter.latch_count();
                    let bytes = model.shows().to_le_bytes();
                    match model.rw {
                        1 => prop_assert_eq!(counter.read(), bytes[0]),
                        2 => prop_assert_eq!(counter.read(), bytes[1]),
                        _ => prop_assert_eq!([counter.read(), counter.read()], bytes),
                    }
                }
            }
            prop_assert_eq!(counter.out(), model.out);
            prop_assert_eq!(counter.take_rises(), std::mem::take(&mut model.rises));
        }
    }
}

/// Any access, well-formed or not, at any time.
fn access() -> impl Strategy<Value = (u64, bool, u16, Vec<u8>)> {
    let port = prop_oneof![8 => 0x3eu16..0x48, 2 => Just(0x61u16), 1 => any::<u16>()];
    let data = prop_oneof![8 => prop::collection::vec(any::<u8>(), 1), 1 => prop::collection::vec(any::<u8>(), 0..9)];
    let step = prop_oneof![4 => 0u64..3000, 2 => 0u64..100_000_000, 1 => any::<u64>()];
    (step, any::<bool>(), port, data)
}

proptest! {
    #[test]
    fn rises_do_not_depend_on_who_looks_when(
        accesses in prop::collection::vec(access(), 1..40),
        looks in prop::collection::vec(0u64..1000, 0..20)
    ) {
        let mut rare = Pit::new();
        let mut often = Pit::new();
        let mut now = VirtualTime::ZERO;
        let (mut rare_rises, mut often_rises) = (0, 0);
        for (step, write, port, mut data) in accesses {
            let then = now + step;
            for look in &looks {
                let part = u128::from(step) * u128::from(*look) / 1000;
                often_rises += often.advance(now + part as u64).rises;
            }
            now = then;
            if write {
                prop_assert_eq!(rare.write(now, port, &data), often.write(now, port, &data));
            } else {
                let mut again = data.clone();
                rare.read(now, port, &mut data);
                often.read(now, port, &mut again);
                prop_assert_eq!(data, again);
            }
        }
        let (a, b) = (rare.advance(now), often.advance(now));
        rare_rises += a.rises;
        often_rises += b.rises;
        prop_assert_eq!(rare_rises, often_rises);
        prop_assert_eq!(a.level, b.level);
        prop_assert_eq!(rare, often);
    }

    #[test]
    fn deadline_is_the_first_rise(accesses in prop::collection::vec(access(), 1..40)) {
        let mut pit = Pit::new();
        let mut now = VirtualTime::ZERO;
        for (step, _, port, data) in accesses {
            now = now + step % 1_000_000_000;
            prop_assert_eq!(pit.write(now, port, &data), None);
            pit.advance(now);
            let mut later = pit.clone();
            match pit.deadline() {
                Some(deadline) => {
                    prop_assert!(deadline > now);
                    let before = VirtualTime::from_nanos(deadline.as_nanos() - 1);
                    prop_assert_eq!(later.advance(before).rises, 0);
                    prop_assert_eq!(later.advance(deadline).rises, 1);
                }
                None => prop_assert_eq!(later.advance(now + 3_600 * NANOS_PER_SECOND).rises, 0),
            }
        }
    }
}
