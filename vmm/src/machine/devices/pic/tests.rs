use super::*;
use proptest::prelude::*;

const NOW: VirtualTime = VirtualTime::ZERO;

fn out(pic: &mut Pic, port: u16, value: u8) {
    assert_eq!(pic.write(NOW, port, &[value]), None);
}

fn inb(pic: &mut Pic, port: u16) -> u8 {
    let mut data = [0];
    pic.read(NOW, port, &mut data);
    data[0]
}

/// As Linux's init_8259A leaves it: vectors 0x30 and 0x38, given ICW4, all unmasked.
fn initialised(icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (port, value) in [
        (0x21, 0xff),
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, icw4),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, 0x01 | icw4 & 0x02),
        (0x21, 0x00),
        (0xa1, 0x00),
    ] {
        out(&mut pic, port, value);
    }
    pic
}

fn pulse(pic: &mut Pic, irq: u8) {
    pic.set_line(irq, false);
    pic.set_line(irq, true);
}

#[test]
fn silent_until_initialised() {
    let mut pic = Pic::new();
    for irq in 0..16 {
        pulse(&mut pic, irq);
        assert!(!pic.pending());
    }
    out(&mut pic, 0x20, 0x11);
    out(&mut pic, 0x21, 0x30);
    assert!(!pic.pending());
}

#[test]
fn icw1_wants_a_new_edge() {
    let mut pic = Pic::new();
    pic.set_line(0, true);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01)] {
        out(&mut pic, port, value);
    }
    assert!(!pic.pending());
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn edge_is_served_once() {
    let mut pic = initialised(1);
    pic.set_line(4, true);
    assert_eq!(inb(&mut pic, 0x20), 0x10);
    assert_eq!(pic.acknowledge(), 0x34);
    assert_eq!(inb(&mut pic, 0x20), 0x00);
    out(&mut pic, 0x20, 0x20);
    pic.set_line(4, true);
    assert!(!pic.pending());
    pulse(&mut pic, 4);
    assert!(pic.pending());
}

#[test]
fn level_is_served_while_high() {
    let mut pic = initialised(1);
    out(&mut pic, 0x4d0, 0xff);
    out(&mut pic, 0x4d1, 0xff);
    assert_eq!((inb(&mut pic, 0x4d0), inb(&mut pic, 0x4d1)), (0xf8, 0xde));
    for irq in [5, 11] {
        pic.set_line(irq, true);
        for _ in 0..3 {
            assert_eq!(pic.acknowledge(), 0x30 + irq);
            assert!(!pic.pending());
            out(&mut pic, 0xa0, 0x20);
            out(&mut pic, 0x20, 0x20);
            assert!(pic.pending());
        }
        pic.set_line(irq, false);
        assert!(!pic.pending());
    }
}

#[test]
fn falling_line_leads_to_spurious_ir7() {
    let mut pic = initialised(1);
    pulse(&mut pic, 3);
    assert!(pic.pending());
    pic.set_line(3, false);
    assert!(!pic.pending());
    assert_eq!(pic.acknowledge(), 0x37);
    out(&mut pic, 0x20, 0x0b);
    assert_eq!(inb(&mut pic, 0x20), 0, "nothing is in service after a spurious interrupt");
}

#[test]
fn slave_that_lost_its_request_says_ir15() {
    // Between the master's and the slave's half of one INTA cycle; the pair itself is always in step.
    let mut pic = initialised(1);
    pulse(&mut pic, 9);
    pic.state.slave.set_line(1, false);
    assert_eq!(pic.acknowledge(), 0x3f);
    assert_eq!(pic.state.master.isr, 1 << CASCADE);
    assert_eq!(pic.state.slave.isr, 0);
}

#[test]
fn priorities_nest() {
    let mut pic = initialised(1);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x36);
    pulse(&mut pic, 7);
    assert!(!pic.pending());
    pulse(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x3c);
    pulse(&mut pic, 8);
    assert!(!pic.pending(), "the master's IR2 is in service");
    out(&mut pic, 0xa0, 0x64); // specific EOI, level 4
    out(&mut pic, 0x20, 0x62); // specific EOI, level 2
    assert_eq!(pic.acknowledge(), 0x38);
    out(&mut pic, 0xa0, 0x20);
    out(&mut pic, 0x20, 0x20);
    assert!(!pic.pending(), "6 is still in service");
    out(&mut pic, 0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x37);
}

#[test]
fn special_fully_nested_lets_the_slave_interrupt_itself() {
    let mut pic = initialised(0x11);
    pulse(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x3c);
    pulse(&mut pic, 3);
    assert!(!pic.pending(), "3 ranks below the cascade");
    pulse(&mut pic, 8);
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn auto_eoi_serves_all_requests_of_the_slave() {
    let mut pic = initialised(0x03);
    pulse(&mut pic, 9);
    pulse(&mut pic, 10);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    assert_eq!(pic.acknowledge(), 0x39);
    assert_eq!(pic.acknowledge(), 0x3a);
    assert!(!pic.pending());
}

#[test]
fn rotation() {
    let mut pic = initialised(1);
    out(&mut pic, 0x20, 0xc4); // set priority: 4 lowest, 5 highest
    pulse(&mut pic, 0);
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x35);
    out(&mut pic, 0x20, 0xa0); // rotate on non-specific EOI: 5 lowest
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x30);
    out(&mut pic, 0x20, 0xe0); // rotate on specific EOI: 0 lowest
    assert_eq!(pic.state.master.lowest, 0);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn rotation_in_auto_eoi_mode() {
    let mut pic = initialised(3);
    out(&mut pic, 0x20, 0x80);
    for _ in 0..3 {
        pulse(&mut pic, 0);
        pulse(&mut pic, 1);
        assert_eq!((pic.acknowledge(), pic.acknowledge()), (0x30, 0x31));
    }
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x30);
    pulse(&mut pic, 0);
    pulse(&mut pic, 1);
    assert_eq!((pic.acknowledge(), pic.acknowledge()), (0x31, 0x30));
}

#[test]
fn poll_acknowledges() {
    let mut pic = initialised(1);
    out(&mut pic, 0x20, 0x0c);
    assert_eq!(inb(&mut pic, 0x20), 0);
    pulse(&mut pic, 10);
    out(&mut pic, 0x20, 0x0c);
    assert_eq!(inb(&mut pic, 0x20), 0x82);
    out(&mut pic, 0xa0, 0x0c);
    assert_eq!(inb(&mut pic, 0xa0), 0x82);
    out(&mut pic, 0xa0, 0x0b);
    assert_eq!(inb(&mut pic, 0xa0), 0x04);
}

#[test]
fn special_mask_mode_frees_the_levels_below() {
    let mut pic = initialised(1);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    pulse(&mut pic, 5);
    assert!(!pic.pending());
    out(&mut pic, 0x21, 0x02);
    out(&mut pic, 0x20, 0x68);
    assert_eq!(pic.acknowledge(), 0x35);
    out(&mut pic, 0x20, 0x20); // must not end the masked level 1
    out(&mut pic, 0x20, 0x0b);
    assert_eq!(inb(&mut pic, 0x20), 0x02);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Line(u8, bool),
    Write(u16, u8),
    Read(u16),
    Acknowledge,
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1])
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u8..18, any::<bool>()).prop_map(|(irq, level)| Op::Line(irq, level)),
        2 => (port(), any::<u8>()).prop_map(|(port, value)| Op::Write(port, value)),
        // Commands without ICW1, masks that leave much open: most of a guest's life.
        4 => (prop::sample::select(vec![0x20, 0xa0]), any::<u8>()).prop_map(|(port, v)| Op::Write(port, v & !0x10)),
        1 => (prop::sample::select(vec![0x21, 0xa1]), any::<u8>(), any::<u8>()).prop_map(|(port, a, b)| Op::Write(port, a & b)),
        2 => port().prop_map(Op::Read),
        3 => Just(Op::Acknowledge),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn behaves_as_the_model(
        master in any::<[u8; 4]>(), slave in any::<[u8; 4]>(), plain in any::<bool>(),
        ops in prop::collection::vec(op(), 1..120)
    ) {
        let mut pic = Pic::new();
        let mut model = model::Pair::new();
        let mut words = vec![];
        for (port, icw, third) in [(0x20, master, 4), (0xa0, slave, 2)] {
            words.push((port, icw[0] & 3 | if plain { 0x11 } else { 0x10 }));
            words.push((port + 1, icw[1]));
            words.push((port + 1, if plain { third } else { icw[2] }));
            words.push((port + 1, icw[3] & 0x13));
            words.push((port + 1, 0));
        }
        for op in words.into_iter().map(|(port, value)| Op::Write(port, value)).chain(ops) {
            match op {
                Op::Line(irq, level) => {
                    pic.set_line(irq, level);
                    model.drive(irq, level);
                }
                Op::Write(port, value) => {
                    prop_assert_eq!(pic.write(NOW, port, &[value]), None);
                    model.write(port, value);
                }
                Op::Read(port) => prop_assert_eq!(inb(&mut pic, port), model.read(port)),
                Op::Acknowledge => prop_assert_eq!(pic.acknowledge(), model.acknowledge()),
            }
            prop_assert_eq!(pic.pending(), model.pending());
        }
    }

    #[test]
    fn equal_inputs_make_equal_states(
        accesses in prop::collection::vec((any::<bool>(), 0u16..=0x4d4, prop::collection::vec(any::<u8>(), 0..9)), 0..60)
    ) {
        let mut pics = [Pic::new(), Pic::new()];
        for (write, port, mut data) in accesses {
            for pic in &mut pics {
                if write {
                    prop_assert_eq!(pic.write(NOW, port, &data), None);
                } else {
                    pic.read(NOW, port, &mut data);
                }
                pic.set_line(data.first().copied().unwrap_or(0), write);
            }
        }
        prop_assert_eq!(&pics[0], &pics[1]);
    }
}
