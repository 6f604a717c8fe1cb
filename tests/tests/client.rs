//! The checking client, in a lab, against a real Redis server behind the stand-in: it passes what is
//! honest and finds what is not.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of it is test code")]

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use tandem_tests::bed::{Bed, Pair, Program};
use tandem_tests::client::{Client, Load, Report};
use tandem_tests::config::{Guest, Pace, Spec};
use tandem_tests::lab::{self, GUEST};
use tandem_tests::standin::Misdeed;
use tandem_vmm::host::control::Role;
use tandem_vmm::host::shutdown::Shutdown;

/// A bed, or nothing and why.
fn bed(misdeed: Option<Misdeed>) -> Option<Bed> {
    let obstacle = lab::obstacle().or_else(|| {
        let redis = Command::new("redis-server").arg("--version").output();
        redis.err().map(|_| "redis-server is missing".to_owned())
    });
    if let Some(obstacle) = obstacle {
        println!("skipped: {obstacle}");
        return None;
    }
    let spec = Spec { name: "lab".to_owned(), guest: Guest::Embedded, pace: Pace::BUSY };
    let program = Program::stand_in(misdeed).unwrap();
    Some(Bed::new("test", program, spec, Shutdown::new().unwrap()).unwrap())
}

fn load(bed: &Bed) -> Client {
    let load = Load { patience: bed.patience(5.0), ..Load::new(bed.server(), 7) };
    let client = Client::start(Some(bed.lab.client()), load).unwrap();
    client.wait_for_replies(Instant::now(), bed.patience(5.0)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    client
}

fn kill_primary(bed: &Bed, pair: &mut Pair, client: Client) -> (Report, Duration) {
    let killed = Instant::now();
    pair.primary.process.kill();
    pair.backup.wait_for_role(&[Role::Live], bed.patience(5.0)).unwrap();
    client.wait_for_replies(Instant::now(), bed.patience(5.0)).unwrap();
    let report = client.finish().unwrap();
    let outage = report.outage(killed).unwrap();
    (report, outage)
}

#[test]
fn a_take_over_loses_nothing_and_its_length_is_measured() {
    let _alone = lab::alone().unwrap();
    let Some(mut bed) = bed(None) else { return };
    let mut pair = bed.pair().unwrap();
    let client = load(&bed);
    let (report, outage) = kill_primary(&bed, &mut pair, client);
    assert!(report.clean(), "{report:?}");
    assert!(report.acked > 100, "{}", report.acked);
    assert_eq!(report.connections_lost, 0);
    // Ten heartbeats of 20 ms missed; then at once.
    assert!(outage >= Duration::from_millis(180) && outage < Duration::from_secs(2), "{outage:?}");
}

#[test]
fn a_server_that_forgot_is_found_out() {
    let _alone = lab::alone().unwrap();
    let Some(mut bed) = bed(Some(Misdeed::Forget)) else { return };
    let mut pair = bed.pair().unwrap();
    let client = load(&bed);
    let (report, _) = kill_primary(&bed, &mut pair, client);
    assert!(report.lost > 100 && report.violation_count > 0 && !report.clean(), "{report:?}");
}

/// One INCR too many, in the middle of the run, on a key of the client's.
#[test]
fn one_change_that_nobody_asked_for_is_found() {
    let _alone = lab::alone().unwrap();
    let Some(mut bed) = bed(None) else { return };
    let side = bed.alone().unwrap();
    let client = load(&bed);
    let key = bed
        .lab
        .client()
        .enter(|| {
            let mut stream = TcpStream::connect(SocketAddrV4::new(GUEST, 6379)).unwrap();
            stream.write_all(b"INCR 7.0.0:n0\r\n").unwrap();
            let mut reply = [0; 64];
            let len = stream.read(&mut reply).unwrap();
            String::from_utf8_lossy(&reply[..len]).into_owned()
        })
        .unwrap();
    assert!(key.starts_with(':') && !key.starts_with(":1\r"), "the key is in use: {key}");
    let report = client.finish().unwrap();
    assert!(report.violation_count > 0 && report.lost == 0 && !report.clean(), "{report:?}");
    drop(side);
}

#[test]
fn a_lost_connection_is_counted_and_what_it_left_open_is_forgiven() {
    let _alone = lab::alone().unwrap();
    let Some(mut bed) = bed(None) else { return };
    let side = bed.alone().unwrap();
    let client = load(&bed);
    bed.lab
        .client()
        .enter(|| {
            let mut stream = TcpStream::connect(SocketAddrV4::new(GUEST, 6379)).unwrap();
            stream.write_all(b"CLIENT KILL TYPE normal SKIPME yes\r\n").unwrap();
            stream.read_exact(&mut [0; 2]).unwrap();
        })
        .unwrap();
    client.wait_for_replies(Instant::now(), bed.patience(5.0)).unwrap();
    let report = client.finish().unwrap();
    assert!(report.clean() && report.connections_lost == 8, "{report:?}");
    drop(side);
}
