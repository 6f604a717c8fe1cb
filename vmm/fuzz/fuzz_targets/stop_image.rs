//! Images of forced stops: packed bytes as they come, and archives of any bytes, packed here.
//!
//! `cargo +nightly fuzz run stop_image fuzz/corpus/stop_image fuzz/seeds/stop_image` in `vmm/`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use tandem_vmm::machine::memory::GuestRam;
use tandem_vmm::replay::shipped::Shipped;
use tandem_vmm::replay::stop::{Packing, StopCounts, StopImage};

static RAM: LazyLock<GuestRam> = LazyLock::new(|| GuestRam::new(2 << 20).expect("memory"));

fuzz_target!(|input: &[u8]| {
    let Some((mode, bytes)) = input.split_first() else { return };
    let image = if mode & 1 == 0 { StopImage::unpack(bytes) } else { StopImage::from_archive(bytes) };
    let Ok(image) = image else { return };
    let mut counts = StopCounts::default();
    if image.load_pages(&RAM, &mut Shipped::default(), &mut counts).is_ok() {
        assert_eq!(counts.pages, image.pages.len() as u64);
    }
    std::hint::black_box(image.vcpu.general().is_ok());
    // What was read can be written, and read again.
    for packing in [Packing::Plain, Packing::Lz4] {
        let again = StopImage::unpack(&image.pack(true, packing).expect("small")).expect("an image");
        assert_eq!(again, image);
    }
});
