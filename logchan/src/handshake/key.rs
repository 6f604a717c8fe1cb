//! The pre-shared key and what is derived from it.

use blake2::Blake2sMac256;
use blake2::digest::{KeyInit, Mac};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest key file that is read: the digits and some white space.
const MAX_FILE: u64 = 1024;

/// 32 secret bytes that both hosts have. Whoever has them can be primary or backup.
#[derive(Clone)]
pub struct PreSharedKey(Zeroizing<[u8; 32]>);

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the key file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("the key file {} must hold 64 hexadecimal digits; `openssl rand -hex 32` makes some", .0.display())]
    Format(PathBuf),
}

impl PreSharedKey {
    /// A key from its bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads a key from a file of 64 hexadecimal digits, white space around them allowed. A file that
    /// others than its owner may read is used, with a warning.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let read = |source| KeyError::Read { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(read)?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().map_err(read)?.permissions());
        if mode & 0o044 != 0 {
            tracing::warn!(path = %path.display(), "others may read the key file; chmod 600 it");
        }
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize));
        file.take(MAX_FILE).read_to_end(&mut text).map_err(read)?;
        Self::from_hex(text.trim_ascii()).ok_or_else(|| KeyError::Format(path.to_owned()))
    }

    fn from_hex(digits: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; 32]);
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(digits.as_chunks::<2>().0) {
            let nibble = |digit: u8| char::from(digit).to_digit(16);
            *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
        }
        Some(Self(key))
    }

    /// A key for one purpose: different purposes get keys that tell nothing of each other.
    pub(crate) fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let mut mac = <Blake2sMac256 as KeyInit>::new((&*self.0).into());
        mac.update(purpose.as_bytes());
        let mut derived = Zeroizing::new([0; 32]);
        derived.copy_from_slice(&mac.finalize().into_bytes());
        derived
    }
}

impl fmt::Debug for PreSharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreSharedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_key_file_holds_64_hex_digits() {
        let key = PreSharedKey::from_file(file(&format!("{}\n", "aB".repeat(32))).path()).unwrap();
        assert_eq!(*key.0, [0xab; 32]);
        assert_eq!(format!("{key:?}"), "PreSharedKey(..)");
        for wrong in ["", "ab", &"ab".repeat(33), &"ag".repeat(32), &"a".repeat(5000)] {
            assert!(matches!(PreSharedKey::from_file(file(wrong).path()), Err(KeyError::Format(_))));
        }
        assert!(matches!(PreSharedKey::from_file(Path::new("/nonexistent")), Err(KeyError::Read { .. })));
    }

    #[test]
    fn keys_for_different_purposes_differ() {
        let key = PreSharedKey::new([1; 32]);
        assert_ne!(*key.derive("a"), *key.derive("b"));
        assert_ne!(*key.derive("a"), *PreSharedKey::new([2; 32]).derive("a"));
        assert_ne!(*key.derive("a"), [0; 32]);
    }
}
