//! QEMU's machine protocol: a line of JSON to ask, lines of JSON with the answer and with events.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// For an answer, in software emulation too.
const ANSWER: Duration = Duration::from_secs(30);

/// One QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    name: &'static str,
    stream: BufReader<UnixStream>,
    /// What of a line has come.
    part: String,
    events: VecDeque<String>,
}

impl Qmp {
    /// Waits for the socket, and for QEMU to be ready to take commands.
    ///
    /// # Errors
    /// When there is none within `patience`.
    pub(super) fn connect(name: &'static str, socket: &Path, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("the {name} does not come up"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let mut qmp =
            Self { name, stream: BufReader::new(stream), part: String::new(), events: VecDeque::new() };
        if qmp.line(ANSWER)?.is_none() {
            bail!("the {name} does not greet");
        }
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// One command and what it returns.
    ///
    /// # Errors
    /// When QEMU refuses it, or does not answer.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        writeln!(self.stream.get_mut(), "{text}").with_context(|| format!("the {} is gone", self.name))?;
        loop {
            let Some(mut line) = self.line(ANSWER)? else {
                bail!("the {} does not answer {command} within {ANSWER:?}", self.name);
            };
            if let Some(event) = line["event"].as_str() {
                self.events.push_back(event.to_owned());
            } else if let Some(why) = line["error"]["desc"].as_str() {
                bail!("the {} refuses {command}: {why}", self.name);
            } else if line.get("return").is_some() {
                return Ok(line["return"].take());
            }
        }
    }

    /// A command of the human monitor, which answers with text only when something is wrong.
    ///
    /// # Errors
    /// As [`Qmp::ask`], and with that text.
    pub(super) fn monitor(&mut self, line: &str) -> Result<()> {
        let said = self.ask("human-monitor-command", json!({ "command-line": line }))?;
        match said.as_str().map(str::trim) {
            None | Some("") => Ok(()),
            Some(text) => bail!("the {} says to {line}: {text}", self.name),
        }
    }

    /// The next event, if one comes in time.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub(super) fn event(&mut self, patience: Duration) -> Result<Option<String>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        Ok(self.line(patience)?.and_then(|line| line["event"].as_str().map(str::to_owned)))
    }

    fn line(&mut self, patience: Duration) -> Result<Option<Value>> {
        self.stream.get_mut().set_read_timeout(Some(patience))?;
        match self.stream.read_line(&mut self.part) {
            Ok(0) => bail!("the {} has ended", self.name),
            Ok(_) if self.part.ends_with('\n') => {
                let line = std::mem::take(&mut self.part);
                Ok(Some(serde_json::from_str(&line).context("QEMU says nothing sensible")?))
            }
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("the {} is gone", self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn answers_are_told_from_events_and_refusals() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let qemu = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            let say = |text: &str, stream: &mut BufReader<UnixStream>| {
                writeln!(stream.get_mut(), "{text}").unwrap();
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                line
            };
            let asked = say(r#"{"QMP":{}}"#, &mut stream);
            assert!(asked.contains("qmp_capabilities"), "{asked}");
            let asked = say(r#"{"return":{}}"#, &mut stream);
            assert!(asked.contains(r#""command-line":"info x""#), "{asked}");
            let asked = say("{\"event\":\"STOP\"}\n{\"return\":\"no such thing\\r\\n\"}", &mut stream);
            assert!(asked.contains("migrate"), "{asked}");
            writeln!(stream.get_mut(), r#"{{"error":{{"class":"X","desc":"not now"}}}}"#).unwrap();
        });
        let mut qmp = Qmp::connect("primary", &socket, Duration::from_secs(5)).unwrap();
        let said = qmp.monitor("info x").unwrap_err().to_string();
        assert!(said.contains("no such thing"), "{said}");
        let said = qmp.ask("migrate", json!({ "uri": "tcp:x" })).unwrap_err().to_string();
        assert_eq!(said, "the primary refuses migrate: not now");
        assert_eq!(qmp.event(Duration::from_millis(10)).unwrap().as_deref(), Some("STOP"));
        qemu.join().unwrap();
        assert!(qmp.event(Duration::from_secs(1)).is_err(), "it has ended");
    }
}
