//! iperf3 over loopback, one connection, client and server each on a core.

use anyhow::{Context, Result, ensure};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// iperf3, as it is installed here.
#[derive(Debug)]
pub(super) struct Iperf {
    cores: [usize; 2],
}

/// A process that must not outlive this one's interest in it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Iperf {
    /// The one in the path.
    ///
    /// # Errors
    /// There is none; how to get it.
    pub(super) fn find(cores: [usize; 2]) -> Result<Self, String> {
        let version = Command::new("iperf3").arg("--version").output();
        match version {
            Ok(version) if version.status.success() => Ok(Self { cores }),
            _ => Err("iperf3 is not installed: .ci/install bench".to_owned()),
        }
    }

    /// Gbit/s that arrive within `time`, whole seconds at least.
    pub(super) fn gbit_s(&self, time: Duration) -> Result<f64> {
        // A port that is free now; whoever takes it in between makes this fail, not lie.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let [client_core, server_core] = self.cores.map(|core| core.to_string());
        let server = Command::new("iperf3")
            .args([
                "--server",
                "--one-off",
                "--bind",
                "127.0.0.1",
                "--port",
                &port,
                "--affinity",
                &server_core,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start iperf3")?;
        let mut server = Server(server);
        let seconds = time.as_secs().max(1).to_string();
        let client = || {
            Command::new("iperf3")
                .args(["--client", "127.0.0.1", "--port", &port, "--affinity", &client_core])
                .args(["--time", &seconds, "--json"])
                .output()
                .context("cannot start iperf3")
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let said = client()?;
            // It says so in JSON, with or without success, when the server does not listen yet.
            let told: serde_json::Value =
                serde_json::from_slice(&said.stdout).context("iperf3 tells no JSON")?;
            if let Some(rate) = told["end"]["sum_received"]["bits_per_second"].as_f64() {
                return Ok(rate / 1e9);
            }
            ensure!(attempt < 50 && server.0.try_wait()?.is_none(), "iperf3: {}", told["error"]);
            sleep(Duration::from_millis(20));
        }
    }
}
