//! How a command ends: its exit status, and its error as one chain.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// How a command ended that told everything it had to tell itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Status 0.
    Done,
    /// Status 1: something is wrong and was printed as part of the answer.
    Failed,
    /// Status 3: the run differs from its log.
    Diverged,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Failed => Self::FAILURE,
            Outcome::Diverged => Self::from(3),
        }
    }
}

/// An error and what caused it, one a line, the same text never twice.
pub(super) struct Chain<'a>(pub(super) &'a anyhow::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        for (index, error) in self.0.chain().enumerate() {
            let text = error.to_string();
            if index > 0 && said.contains(&text) {
                continue;
            }
            match index {
                0 => write!(f, "error: {}", text.replace('\n', "\n       "))?,
                _ => write!(f, "\n  caused by: {}", text.replace('\n', "\n             "))?,
            }
            said.push_str(&text);
        }
        Ok(())
    }
}

/// Whether the error is only that nobody reads our output any more, as in `tandem check | head`.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_chain_is_told_once_and_indented() {
        let error = anyhow!("no such key").context("cannot read it").context("two\nlines");
        assert_eq!(
            Chain(&error).to_string(),
            "error: two\n       lines\n  caused by: cannot read it\n  caused by: no such key"
        );
        let error = anyhow!("inner").context("outer: inner");
        assert_eq!(Chain(&error).to_string(), "error: outer: inner");
    }
}
