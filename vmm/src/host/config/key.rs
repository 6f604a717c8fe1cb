//! The pre-shared key of a pair.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Bytes in a key.
pub const KEY_LEN: usize = 32;

/// Why the key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error(
        "there is no key file {file}; make one with: openssl rand -hex 32 > {file} && chmod 600 {file}, and copy it \
         to the other host"
    )]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read the key file {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not 64 hex digits.
    #[error("{file} is not a key: expected 64 hex digits; make one with: openssl rand -hex 32 > {file}")]
    Form {
        /// The file.
        file: PathBuf,
    },
    /// Anybody may read or change it.
    #[error("{file} is open to other users (mode {mode:03o}); close it with: chmod 600 {file}")]
    Open {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Reads the key: 64 hex digits, white space around them ignored, in a file that only its owner and
/// group can read.
///
/// # Errors
/// See [`KeyError`]; each says what to do.
pub fn read_key(file: &Path) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyError::Missing { file: file.to_owned() },
        _ => KeyError::Read { file: file.to_owned(), source },
    };
    let mut opened = File::open(file).map_err(failed)?;
    let mode = opened.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(KeyError::Open { file: file.to_owned(), mode });
    }
    let mut text = Zeroizing::new([0; 256]);
    let mut len = 0;
    while len < text.len() {
        match opened.read(&mut text[len..]).map_err(failed)? {
            0 => break,
            more => len += more,
        }
    }
    parse_key(text[..len].trim_ascii()).ok_or_else(|| KeyError::Form { file: file.to_owned() })
}

fn parse_key(digits: &[u8]) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    if digits.len() != 2 * KEY_LEN {
        return None;
    }
    let mut key = Zeroizing::new([0; KEY_LEN]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn key_file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pair.key");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        (dir, file)
    }

    #[test]
    fn sixty_four_digits_are_a_key() {
        let (_dir, file) = key_file(&format!("{}\n", "0aF1".repeat(16)), 0o600);
        let key = read_key(&file).unwrap();
        assert_eq!(key[..4], [0x0a, 0xf1, 0x0a, 0xf1]);
    }

    #[test]
    fn anything_else_is_not() {
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"0".repeat(4096)] {
            let (_dir, file) = key_file(text, 0o600);
            assert!(matches!(read_key(&file), Err(KeyError::Form { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_dir, file) = key_file(&"00".repeat(32), 0o644);
        let error = read_key(&file).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
