//! The output gate, an arbiter's claim, and the digest's fold.

#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tandem_arbiter::{Arbiter, Claim, InitOptions, Side, Token, Verdict, VmId};
use tandem_vmm::replay::trace::ExitRecord;
use tandem_vmm::role::gate::Gate;
use tandem_vmm::role::{Moment, Timing};

/// One output: bound to its frame, acknowledged, asked for, released.
fn gate(c: &mut Criterion) {
    let mut gate = Gate::new(&Timing::default(), 4096);
    let mut sequence = 0;
    c.bench_function("gate, one output through", |b| {
        b.iter(|| {
            sequence += 1;
            let number = gate.bind(sequence).unwrap();
            gate.on_ack(sequence);
            black_box(gate.releasable(Moment::from_nanos(sequence)));
            gate.released(number + 1);
        });
    });
}

/// A claim that nobody contests, on storage in memory: the arbiter's own cost, without a disk's.
fn claims(c: &mut Criterion) {
    let (vm, options) = (VmId([7; 16]), InitOptions { overwrite: true, ..InitOptions::default() });
    let directory = std::env::temp_dir().join(format!("tandem-bench-arbiter-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let claim = Claim { vm, generation: 1, side: Side::Primary, token: Token([1; 16]), time_ms: 0 };
    let file = directory.join("arbiter");
    c.bench_function("arbiter claim, Disk Paxos in a file", |b| {
        b.iter_batched(
            || Arbiter::init(&file, vm, &options).unwrap(),
            |mut arbiter| assert_eq!(arbiter.claim(&claim).unwrap(), Verdict::Won),
            BatchSize::PerIteration,
        );
    });
    let links = directory.join("links");
    c.bench_function("arbiter claim, link in a directory", |b| {
        b.iter_batched(
            || {
                let _ = std::fs::remove_dir_all(&links);
                std::fs::create_dir(&links).unwrap();
                Arbiter::init(&links, vm, &options).unwrap()
            },
            |mut arbiter| assert_eq!(arbiter.claim(&claim).unwrap(), Verdict::Won),
            BatchSize::PerIteration,
        );
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

/// One exit into the running digest.
fn digest(c: &mut Criterion) {
    let record = ExitRecord::default();
    let mut digest = 0;
    c.bench_function("digest fold, one exit", |b| {
        b.iter(|| {
            digest = black_box(&record).fold(digest);
            digest
        });
    });
}

criterion_group!(benches, gate, claims, digest);
criterion_main!(benches);
