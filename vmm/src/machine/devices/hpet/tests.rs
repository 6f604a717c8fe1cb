use super::*;
use proptest::prelude::*;

const fn at(nanos: u64) -> VirtualTime {
    VirtualTime::from_nanos(nanos)
}

fn read<const N: usize>(hpet: &mut Hpet, now: u64, offset: u64) -> [u8; N] {
    let mut data = [0xee; N];
    hpet.read(at(now), offset, &mut data);
    data
}

fn counter(hpet: &mut Hpet, now: u64) -> u64 {
    u64::from_le_bytes(read(hpet, now, 0xf0))
}

#[test]
fn it_says_what_it_is() {
    let mut hpet = Hpet::new();
    let words: [u8; 8] = read(&mut hpet, 0, 0);
    let capabilities = u64::from_le_bytes(words);
    assert_eq!(capabilities >> 32, 10_000_000, "femtoseconds; 100,000,000 is the most that is allowed");
    assert_eq!(capabilities & 0xff, 1);
    assert_eq!((capabilities >> 8 & 0x1f) + 1, 3, "comparators");
    assert_eq!(capabilities >> 13 & 0b111, 1, "64 bits, not capable of replacing the 8254");
    // Comparators: no route, no capability.
    for offset in (0x100..0x160).step_by(8).chain([0x20, 0xff8]) {
        hpet.write(at(0), offset, &[0xff; 8]);
        assert_eq!(read(&mut hpet, 0, offset), [0; 8], "{offset:#x}");
    }
}

#[test]
fn it_counts_when_it_is_told_to() {
    let mut hpet = Hpet::new();
    assert_eq!(counter(&mut hpet, 5_000), 0);
    hpet.write(at(5_000), 0xf0, &100u64.to_le_bytes());
    hpet.write(at(5_000), 0x10, &1u32.to_le_bytes());
    assert_eq!(read(&mut hpet, 5_000, 0x10), [1, 0, 0, 0]);
    assert_eq!(counter(&mut hpet, 5_000), 100);
    assert_eq!(counter(&mut hpet, 5_009), 100);
    assert_eq!(counter(&mut hpet, 5_010), 101);
    let half: [u8; 4] = read(&mut hpet, 5_010, 0xf4);
    assert_eq!(half, [0; 4]);
    hpet.write(at(5_020), 0xf4, &7u32.to_le_bytes());
    assert_eq!(counter(&mut hpet, 5_020), 7 << 32 | 102);
    hpet.write(at(5_030), 0x10, &0u32.to_le_bytes());
    assert_eq!(counter(&mut hpet, 1_000_000), 7 << 32 | 103, "it stands");
}

/// Linux's `hpet_counting`: between its two readings it reads the TSC.
#[test]
fn linux_finds_it_counting_and_is_stopped_then() {
    let mut hpet = Hpet::new();
    let start = |hpet: &mut Hpet| {
        for (offset, value) in [(0x10, 0u32), (0xf0, 0), (0xf4, 0), (0x10, 1)] {
            hpet.exit(at(1000), false);
            hpet.write(at(1000), offset, &value.to_le_bytes());
        }
        assert!(!hpet.exposes_tsc(true), "the first");
        hpet.exit(at(1000), true);
        u32::from_le_bytes(read(hpet, 1000, 0xf0))
    };
    let first = start(&mut hpet);
    assert!(hpet.exposes_tsc(true) && !hpet.exposes_tsc(false) && !hpet.has_exposed_tsc());
    hpet.exit(at(1000), true);
    // Time was not read anew for this one, and need not have moved.
    let second = u32::from_le_bytes(read(&mut hpet, 1000, 0xf0));
    assert!(first < second);
    assert!(hpet.has_exposed_tsc() && !hpet.exposes_tsc(true));
    hpet.forced_stop(at(1000));
    assert!(!hpet.has_exposed_tsc());
    // Where nothing is logged nobody stops it.
    start(&mut hpet);
    hpet.exit(at(1000), true);
    hpet.exit(at(1000), true);
    assert!(!hpet.has_exposed_tsc());
    // Another exit in between: something else goes on.
    start(&mut hpet);
    hpet.exit(at(1000), false);
    assert!(!hpet.exposes_tsc(true));
}

/// While exits are dense, the page says what an exit would have.
#[test]
fn the_page_has_the_registers() {
    let mut hpet = Hpet::new();
    hpet.write(at(0), 0x10, &1u32.to_le_bytes());
    let mut now = 0;
    while hpet.shown(at(now)).is_none() {
        now += 1000;
        assert!(now < 1_000_000);
        hpet.exit(at(now), now % 2000 == 0);
    }
    let shown = hpet.shown(at(now + 7)).unwrap();
    assert_eq!(shown, [(0, CAPABILITIES), (0x10, 1), (0xf0, now / 10)]);
    hpet.forced_stop(at(now));
    assert_eq!(hpet.shown(at(now)), None);
}

proptest! {
    /// By exits or from the page, whatever is asked for: the counter does not go back, and no access panics.
    #[test]
    fn it_never_goes_back(steps in prop::collection::vec((0u64..3_000_000, 0u64..0x1010, 0usize..10, 0u8..5), 1..200)) {
        let mut hpet = Hpet::new();
        hpet.write(at(0), 0x10, &1u32.to_le_bytes());
        let (mut now, mut last) = (0, 0);
        for (step, offset, len, what) in steps {
            now += step;
            hpet.exit(at(now), what == 0);
            let mut data = [0xff; 10];
            match what {
                0 => hpet.read(at(now), 0xf0, &mut data[..8]),
                1 => hpet.read(at(now), offset, &mut data[..len]),
                // The registers of the comparators, and none.
                2 => hpet.write(at(now), offset | 0x100, &data[..len]),
                3 => hpet.forced_stop(at(now)),
                _ => hpet.wakes(at(now)),
            }
            let counter = hpet.shown(at(now)).map_or(hpet.counter(at(now)), |shown| shown[2].1);
            prop_assert!(counter >= last);
            prop_assert!(counter <= now / PERIOD + 1);
            last = counter;
        }
    }
}
