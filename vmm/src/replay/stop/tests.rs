use super::*;

#[test]
fn resets_are_frequent_after_a_stop_and_become_rare() {
    let mut policy = ResetPolicy::new(0);
    assert!(!policy.due(ResetPolicy::LONGEST - 1));
    policy.stopped(0, 0);
    let resets: Vec<u64> = (0..1000).map(|ms| ms * 1_000_000).filter(|now| policy.due(*now)).collect();
    assert_eq!(resets[..4], [1_000_000, 3_000_000, 7_000_000, 15_000_000]);
    assert!(resets.len() < 20);
    policy.stopped(0, 5_000_000);
    let resets: Vec<u64> = (0..300).map(|ms| ms * 1_000_000).filter(|now| policy.due(*now)).collect();
    assert_eq!(resets, [40_000_000, 120_000_000, 248_000_000]);
}

#[test]
fn images_survive_packing_and_damage_is_an_error() {
    let image = StopImage {
        vcpu: VcpuImage { regs: vec![1; 144], ..VcpuImage::default() },
        part: 0,
        pages: vec![3, 9],
        changed: vec![u64::MAX, 1],
        lines: vec![7; PAGE_SIZE + LINE],
    };
    let plain = image.pack(false, Packing::Plain).unwrap();
    assert_eq!(is_last(&plain), Some(false));
    let packed = image.pack(true, Packing::Lz4).unwrap();
    assert!(packed.len() < 400, "{}", packed.len());
    assert_eq!(is_last(&packed), Some(true));
    for part in [&plain, &packed] {
        assert_eq!(StopImage::unpack(part).unwrap(), image);
        assert!(StopImage::unpack(&part[..part.len() - 1]).is_err());
        assert!(StopImage::unpack(&[&[part[0] ^ 2], &part[1..]].concat()).is_err(), "the other way");
    }
    assert!(StopImage::unpack(&[0xff; 40]).is_err());
    let large = [&packed[..1], &(PART_LIMIT as u32).to_le_bytes(), &packed[5..]].concat();
    assert!(matches!(StopImage::unpack(&large), Err(StopError::Damaged("too large"))));
    assert!(StopImage::unpack(&[]).is_err());
    assert_eq!((is_last(&[]), is_last(&[7])), (None, None));
    let odd = StopImage { pages: vec![1], ..StopImage::default() };
    assert!(StopImage::unpack(&odd.pack(true, Packing::Plain).unwrap()).is_err());
}

#[test]
fn a_stop_with_many_pages_comes_in_parts_that_fit_a_frame() {
    let ram = GuestRam::new(16 << 20).unwrap();
    let vcpu = VcpuImage { regs: vec![1; 144], ..VcpuImage::default() };
    let numbers: Vec<u64> = (256..256 + 2 * PART_PAGES as u64 + 5).collect();
    let mut state = 1u64;
    for &number in &numbers {
        // Nothing that could be compressed.
        let page = std::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        ram.write_page(number, &page).unwrap();
    }
    let stopped = Stopped { vcpu, pages: numbers.clone() };
    assert_eq!((stopped.parts(), stopped.pages()), (3, numbers.len()));
    let copy = GuestRam::new(16 << 20).unwrap();
    let (mut packer, mut shipped) = (Packer::default(), Shipped::default());
    let mut counts = StopCounts::default();
    let mut loaded = Vec::new();
    for number in 0..stopped.parts() {
        let packing = if number == 1 { Packing::Plain } else { Packing::Lz4 };
        let packed = packer.part(&stopped, number, &ram, packing).unwrap();
        assert!(packed.len() < 2 << 20, "{}", packed.len());
        assert_eq!(is_last(packed), Some(number == 2));
        let part = StopImage::unpack(packed).unwrap();
        assert_eq!(part.vcpu == stopped.vcpu, number == 2);
        part.load_pages(&copy, &mut shipped, &mut counts).unwrap();
        assert!(part.load_pages(&copy, &mut shipped, &mut counts).is_err(), "a part counts once");
        loaded.extend(part.pages);
    }
    assert_eq!(loaded, numbers);
    assert_eq!((counts.pages, counts.already_there), (numbers.len() as u64, 0));
    let (mut a, mut b) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    for &number in &numbers {
        ram.read_page(number, &mut a).unwrap();
        copy.read_page(number, &mut b).unwrap();
        assert_eq!(a, b);
    }
    let nothing = Stopped::default();
    assert_eq!(nothing.parts(), 1);
    assert_eq!(is_last(packer.part(&nothing, 0, &ram, Packing::Plain).unwrap()), Some(true));
}
