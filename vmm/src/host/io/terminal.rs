//! The serial line's and the console's output.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::host::config::SerialOutput;

/// Bytes after which a line that does not end is written all the same.
const LONGEST_HELD: usize = 1024;

/// Writes the guest's terminal output line by line: a system call per byte would slow the guest.
pub struct Terminal {
    sink: Option<Box<dyn Write + Send>>,
    held: Vec<u8>,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl Terminal {
    /// Opens the output that the config names. An existing file is continued: after a failover both
    /// sides' output stands in it.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(output: &SerialOutput) -> io::Result<Self> {
        let sink: Option<Box<dyn Write + Send>> = match output {
            SerialOutput::Stdout => Some(Box::new(io::stdout())),
            SerialOutput::Nowhere => None,
            SerialOutput::File(path) => Some(Box::new(append(path)?)),
        };
        Ok(Self::new(sink))
    }

    /// A terminal that writes to `sink`, or nowhere.
    #[must_use]
    pub fn new(sink: Option<Box<dyn Write + Send>>) -> Self {
        Self { sink, held: Vec::with_capacity(LONGEST_HELD) }
    }

    /// Takes bytes from the guest.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.sink.is_none() {
            return;
        }
        for byte in bytes {
            self.held.push(*byte);
            if *byte == b'\n' || self.held.len() >= LONGEST_HELD {
                self.flush();
            }
        }
    }

    /// Writes what is held back.
    pub fn flush(&mut self) {
        if let Some(sink) = &mut self.sink
            && !self.held.is_empty()
        {
            let written = sink.write_all(&self.held).and_then(|()| sink.flush());
            if let Err(error) = written {
                // The guest must not stop because nobody listens any more.
                tracing::warn!(%error, "the guest's terminal output is lost from here on");
                self.sink = None;
            }
            self.held.clear();
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.flush();
    }
}
