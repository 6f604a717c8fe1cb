//! Entries copied, summed and sent by plain system calls, and nothing else: what of iperf3's rate is left to any channel
//! whose entries are encoded into a buffer and checked by both ends.

use anyhow::{Result, anyhow};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tandem_logchan::checksum::crc32c;

use crate::pin;

/// Bytes that each system call moves at most: as many as iperf3's do.
const BLOCK: usize = 128 << 10;

/// Gbit/s of entries of so many bytes (a divisor of 128 KiB) within `time`. The calling thread sends; who receives is on
/// `core`.
pub(super) fn gbit_s(entry: usize, time: Duration, core: usize) -> Result<f64> {
    let (mut stream, theirs) = super::streams()?;
    let receiver = std::thread::spawn(move || receive(theirs, entry, core));
    let payload = vec![7; entry];
    let mut block = vec![0; BLOCK];
    let start = Instant::now();
    while start.elapsed() < time {
        for slot in block.chunks_exact_mut(entry) {
            slot.copy_from_slice(black_box(&payload));
            black_box(crc32c(slot));
        }
        stream.write_all(&block)?;
    }
    drop(stream);
    let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
    Ok(received as f64 * 8.0 / start.elapsed().as_nanos() as f64)
}

/// Takes in and sums whole entries until the sender ends. Their bytes.
fn receive(mut stream: TcpStream, entry: usize, core: usize) -> Result<u64> {
    let _pinned = pin::to_core(core)?;
    let mut block = vec![0; BLOCK];
    let (mut rest, mut received) = (0, 0);
    loop {
        let len = match stream.read(&mut block[rest..])? {
            0 => return Ok(received),
            len => rest + len,
        };
        let whole = len / entry * entry;
        for slot in block[..whole].chunks_exact(entry) {
            black_box(crc32c(slot));
        }
        received += whole as u64;
        block.copy_within(whole..len, 0);
        rest = len - whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_all_sizes_arrive() {
        for entry in super::super::throughput::SIZES {
            assert!(gbit_s(entry, Duration::from_millis(20), 0).unwrap() > 0.0, "{entry}");
        }
    }
}
