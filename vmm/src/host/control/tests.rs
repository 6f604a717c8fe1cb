use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;

#[derive(Default)]
struct Source {
    asked: AtomicU64,
}

impl StatusSource for Source {
    fn status(&self) -> Status {
        let generation = self.asked.fetch_add(1, Ordering::Relaxed);
        let exits = (0..200).map(|reason| (format!("reason-{reason}"), u64::MAX)).collect();
        Status { name: "demo".into(), role: Role::Backup, generation, exits, ..Status::default() }
    }

    fn failover(&self) -> Result<String, String> {
        Err("a backup cannot hand over".into())
    }
}

fn server() -> (tempfile::TempDir, PathBuf, Server) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let server = Server::start(&path, Arc::new(Source::default())).unwrap();
    (dir, path, server)
}

#[test]
fn a_client_gets_the_status_and_the_refusal() {
    let (_dir, path, server) = server();
    let mut client = Client::connect(&path).unwrap();
    let status = client.status().unwrap();
    assert_eq!((status.name.as_str(), status.role, status.generation), ("demo", Role::Backup, 0));
    assert_eq!(status.exits.len(), 200);
    assert_eq!(client.status().unwrap().generation, 1, "the same connection, asked again");
    let refused = client.failover().unwrap_err();
    assert_eq!(refused.to_string(), "refused: a backup cannot hand over");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(server);
    assert!(!path.exists(), "the file goes with the server");
    assert!(matches!(Client::connect(&path), Err(ClientError::Absent(_))));
}

#[test]
fn a_stale_file_is_replaced_a_live_socket_and_a_plain_file_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(Client::connect(&path), Err(ClientError::Stale(_))));
    let first = Server::start(&path, Arc::new(Source::default())).unwrap();
    assert!(Client::connect(&path).unwrap().status().is_ok());
    let second = Server::start(&path, Arc::new(Source::default()));
    assert!(matches!(second, Err(ServeError::Taken(_))), "{second:?}");
    assert!(Client::connect(&path).unwrap().status().is_ok(), "the first goes on");
    drop(first);
    fs::write(&path, "precious").unwrap();
    let refused = Server::start(&path, Arc::new(Source::default()));
    assert!(matches!(refused, Err(ServeError::NotASocket(_))), "{refused:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_missing_directory_is_made_for_this_user_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tandem").join("sock");
    let _server = Server::start(&path, Arc::new(Source::default())).unwrap();
    assert!(Client::connect(&path).unwrap().status().is_ok());
    assert_eq!(fs::metadata(dir.path().join("tandem")).unwrap().permissions().mode() & 0o777, 0o700);
    let deeper = dir.path().join("a").join("b").join("sock");
    assert!(matches!(Server::start(&deeper, Arc::new(Source::default())), Err(ServeError::Bind { .. })));
}

#[test]
fn a_directory_locked_for_long_is_an_error_and_no_hang() {
    let dir = tempfile::tempdir().unwrap();
    let held = fs::File::open(dir.path()).unwrap();
    held.lock().unwrap();
    let refused = Server::start(&dir.path().join("sock"), Arc::new(Source::default()));
    assert!(matches!(refused, Err(ServeError::Bind { .. })), "{refused:?}");
}

#[test]
fn a_successors_socket_is_left_alone() {
    let (_dir, path, server) = server();
    fs::remove_file(&path).unwrap();
    let successor = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
    drop(successor);
}

#[test]
fn requests_may_come_in_pieces_or_many_at_once() {
    let (_dir, path, _server) = server();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"{\"cmd\":\"sta").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    stream.write_all(b"tus\"}\n{\"cmd\":\"failover\"}\nrubbish\n{\"cmd\":\"reboot\"}\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut next = || serde_json::from_str::<Reply>(&lines.next().unwrap().unwrap()).unwrap();
    assert!(matches!(next(), Reply::Status(_)));
    assert_eq!(next(), Reply::Error("a backup cannot hand over".into()));
    for _ in 0..2 {
        assert!(matches!(next(), Reply::Error(why) if why.starts_with("not a request: ")));
    }
}

#[test]
fn a_client_that_closes_its_writing_half_still_gets_its_answer() {
    let (_dir, path, _server) = server();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"{\"cmd\":\"status\"}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.ends_with("}\n"), "{reply}");
}

#[test]
fn an_endless_request_is_cut_off() {
    let (_dir, path, _server) = server();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.write_all(&vec![b'x'; 3 * LONGEST_REQUEST]);
    let mut reply = Vec::new();
    // Either the answer and the end, or a reset because of what was never read.
    let ended = stream.read_to_end(&mut reply);
    assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    let reply = String::from_utf8(reply).unwrap();
    assert!(reply.is_empty() || reply.contains("at most 4096 bytes"), "{reply}");
}

#[test]
fn idle_and_greedy_clients_do_not_keep_others_waiting() {
    let (_dir, path, server) = server();
    let _idle: Vec<_> = (0..40).map(|_| UnixStream::connect(&path).unwrap()).collect();
    // Asks without end and never reads: its replies fill the socket and then the bounded backlog.
    let mut greedy = UnixStream::connect(&path).unwrap();
    greedy.set_nonblocking(true).unwrap();
    while greedy.write(b"{\"cmd\":\"status\"}\n").is_ok() {}
    let asked = Instant::now();
    assert!(Client::connect(&path).unwrap().status().is_ok());
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let dropped = Instant::now();
    drop(server);
    assert!(dropped.elapsed() < Duration::from_secs(2), "{:?}", dropped.elapsed());
}

#[test]
fn json_tolerates_newer_and_older_peers() {
    let status: Status = serde_json::from_str(r#"{"name":"x","role":"live","colour":"blue"}"#).unwrap();
    assert_eq!((status.role, status.generation), (Role::Live, 0));
    for role in
        [Role::Solo, Role::Joining, Role::Primary, Role::Backup, Role::Arbitrating, Role::Live, Role::Halted]
    {
        assert_eq!(serde_json::to_string(&role).unwrap(), format!("{:?}", role.name()));
    }
}
