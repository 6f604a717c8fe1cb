//! A process that may not use io_uring is told so, and what to do.

#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};
use tandem_logchan::transport::TransportError;
use tandem_logchan::transport::tcp::{self, TcpConfig};

/// Lets io_uring_setup fail with this error on the calling thread, as a container's policy does.
fn forbid_uring(errno: i32) {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: plain system calls with a valid program; they bind this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter), 0);
    }
}

#[test]
fn the_error_names_the_sysctl() {
    tcp::probe().unwrap();
    for errno in [libc::EPERM, libc::ENOSYS] {
        let told = std::thread::spawn(move || {
            forbid_uring(errno);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let refused = tcp::primary(stream, &TcpConfig::default()).unwrap_err();
            assert!(matches!(refused, TransportError::NoUring { .. }));
            tcp::probe().unwrap_err().to_string()
        })
        .join()
        .unwrap();
        assert!(told.contains("kernel.io_uring_disabled"), "{told}");
    }
}
