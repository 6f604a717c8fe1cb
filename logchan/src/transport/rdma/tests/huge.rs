//! The ring's pages: huge ones where there are some, others where there are none or too few.

use super::*;
use std::fs;

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";
const RING: usize = 4 << 20;

/// Pages of 2 MiB that are set aside for as long as this lives.
struct HugePages;

impl HugePages {
    /// As many as the kernel finds; of a machine that is not this test's own, none are taken.
    fn reserve(pages: u64) -> Option<Self> {
        if std::env::var_os("TANDEM_IN_VNG").is_none() {
            println!("skipped: huge pages are reserved in a virtual machine only");
            return None;
        }
        if let Err(error) = fs::write(RESERVED, pages.to_string()) {
            println!("skipped: {RESERVED}: {error}");
            return None;
        }
        let got = fs::read_to_string(RESERVED).unwrap();
        assert_eq!(got.trim(), pages.to_string(), "the kernel has no room for so many");
        Some(Self)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(RESERVED, "0");
    }
}

/// Size of the pages behind an address, in KiB, by `/proc/self/smaps`.
fn page_kib(address: usize) -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let number = |hex| usize::from_str_radix(hex, 16).unwrap();
            inside = (number(from)..number(to)).contains(&address);
        } else if inside && first == "KernelPageSize:" {
            return line.split_whitespace().nth(1).unwrap().parse().unwrap();
        }
    }
    panic!("{address:x} is not mapped");
}

/// Links, sends once around the ring, and says how large the ring's pages are.
fn pages_of_a_ring(bed: &Bed) -> u64 {
    let (mut send, _acks, mut log) = bed.link(RdmaConfig { ring: RING, ..small(Completion::Events) });
    let ring = &log.connection().ring;
    assert_eq!(ring.len(), RING);
    let kib = page_kib(ring.as_ptr() as usize);
    let piece: Vec<u8> = (0..64 << 10).map(|n| n as u8).collect();
    for _ in 0..=RING / piece.len() {
        commit(&mut send, &piece);
        send.flush().unwrap();
        assert!(receive(&mut log, piece.len()) == piece);
    }
    kib
}

#[test]
fn the_ring_is_in_huge_pages_where_there_are_enough() {
    let Some(bed) = Bed::find() else { return };
    let Some(pages) = HugePages::reserve(RING as u64 >> 21) else { return };
    assert_eq!(pages_of_a_ring(&bed), 2048);
    // Given back with the connection, and had again.
    assert_eq!(pages_of_a_ring(&bed), 2048);
    drop(pages);
    assert_eq!(pages_of_a_ring(&bed), 4, "there are none");
    let Some(_pages) = HugePages::reserve(1) else { return };
    assert_eq!(pages_of_a_ring(&bed), 4, "one is too few");
}
