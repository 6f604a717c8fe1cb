//! What is wrong with a config file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// One mistake in a config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, counted from one; zero when the file as a whole is meant.
    pub line: usize,
    /// The key with its section, as in `machine.memory_mib` or `net[1].mac`; empty when the text is not
    /// TOML at all.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// A config file that cannot be used: every mistake found in it, in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as it was named by the caller.
    pub file: PathBuf,
    /// At least one mistake.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// A mistake of the file as a whole: it cannot be read, or a section is missing.
    #[must_use]
    pub fn whole_file(file: &Path, key: &str, message: impl Into<String>) -> Self {
        let problem = Problem { line: 0, key: key.to_owned(), message: message.into() };
        Self { file: file.to_owned(), problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.file.display())?;
            if problem.line > 0 {
                write!(f, ":{}", problem.line)?;
            }
            if !problem.key.is_empty() {
                write!(f, ": {}", problem.key)?;
            }
            write!(f, ": {}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The line that byte `offset` of `text` is on, counted from one.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// The candidate that `word` was most likely meant to be, if one is near enough: at most a third of its
/// letters away, counting a swap of neighbours as one.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance, on the first 64 characters of each.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let substitution = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitution.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_its_neighbour_and_a_strange_one_does_not() {
        let keys = ["memory_mib", "kernel", "tick_bound_ms", "tsc"];
        assert_eq!(nearest("memory_mb", keys.into_iter()), Some("memory_mib"));
        assert_eq!(nearest("kernle", keys.into_iter()), Some("kernel"));
        assert_eq!(nearest("tick_bound", keys.into_iter()), Some("tick_bound_ms"));
        assert_eq!(nearest("tcs", keys.into_iter()), Some("tsc"));
        assert_eq!(nearest("colour", keys.into_iter()), None);
    }

    #[test]
    fn lines_count_from_one_and_an_offset_past_the_end_is_the_last_line() {
        assert_eq!(line_of("a\nb\nc", 0), 1);
        assert_eq!(line_of("a\nb\nc", 2), 2);
        assert_eq!(line_of("a\nb\nc", 99), 3);
    }
}
