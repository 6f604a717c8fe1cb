//! What makes two machines the same machine.
//!
//! An identity is a hash over everything the guest can see of its configuration, together with a list
//! of the parts, each with a digest and a short text of its own, so that a mismatch can be named.

use blake2::{Blake2s256, Digest};
use std::fmt;

/// Parts an identity has at most.
pub const MAX_PARTS: usize = 32;
/// Longest name of a part, in bytes.
pub const MAX_NAME: usize = 32;
/// Longest text of a part, in bytes. Longer ones are cut; their digest covers the whole content.
pub const MAX_TEXT: usize = 256;

/// Identity of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub(super) hash: [u8; 32],
    pub(super) parts: Vec<Part>,
}

/// One part of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub(super) name: String,
    pub(super) digest: [u8; 8],
    pub(super) text: String,
}

impl Identity {
    /// Starts an identity without parts.
    #[must_use]
    pub fn builder() -> IdentityBuilder {
        IdentityBuilder { hash: Blake2s256::new(), parts: Vec::new() }
    }

    /// The hash over all parts.
    #[must_use]
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The first eight bytes of the hash: what heartbeats carry.
    #[must_use]
    pub fn short(&self) -> [u8; 8] {
        let mut short = [0; 8];
        short.copy_from_slice(&self.hash[..8]);
        short
    }

    /// The parts, in the order they were added.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The parts that differ, with what they are here and there (none: the part is missing).
    pub(super) fn differences(&self, other: &Self) -> Vec<(String, Option<Part>, Option<Part>)> {
        let find = |parts: &[Part], name: &str| parts.iter().find(|part| part.name == name).cloned();
        let mut found = Vec::new();
        for part in &self.parts {
            let theirs = find(&other.parts, &part.name);
            if theirs.as_ref().map(|theirs| theirs.digest) != Some(part.digest) {
                found.push((part.name.clone(), Some(part.clone()), theirs));
            }
        }
        for part in &other.parts {
            if find(&self.parts, &part.name).is_none() {
                found.push((part.name.clone(), None, Some(part.clone())));
            }
        }
        found
    }
}

impl Part {
    /// Which part it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is, for people.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first eight bytes of its content's hash.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 8] {
        &self.digest
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text may come from the peer: no control characters reach a terminal.
        write!(f, "{} (", self.text.escape_debug())?;
        self.digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Collects the parts of an identity.
#[derive(Clone, Debug)]
pub struct IdentityBuilder {
    hash: Blake2s256,
    parts: Vec<Part>,
}

impl IdentityBuilder {
    /// Adds a part: its name (`kernel`, `cmdline` …), a text for people, and the content that must be
    /// equal on both sides. Name and text are cut to [`MAX_NAME`] and [`MAX_TEXT`]; the hash covers the
    /// whole of name and content. Parts past [`MAX_PARTS`] are hashed, but not listed.
    #[must_use]
    pub fn part(mut self, name: &str, text: &str, content: &[u8]) -> Self {
        let digest = Blake2s256::digest(content);
        self.hash.update((name.len() as u64).to_le_bytes());
        self.hash.update(name);
        self.hash.update(digest);
        if self.parts.len() < MAX_PARTS {
            let mut short = [0; 8];
            short.copy_from_slice(&digest[..8]);
            let cut = |text: &str, max| text[..text.floor_char_boundary(max)].to_owned();
            self.parts.push(Part { name: cut(name, MAX_NAME), digest: short, text: cut(text, MAX_TEXT) });
        }
        self
    }

    /// The identity.
    #[must_use]
    pub fn build(self) -> Identity {
        Identity { hash: self.hash.finalize().into(), parts: self.parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_the_part_and_both_values() {
        let ours = Identity::builder().part("kernel", "6.1", b"a").part("memory", "64 MiB", b"64").build();
        let theirs = Identity::builder().part("kernel", "6.2", b"b").part("initrd", "x", b"").build();
        let found = ours.differences(&theirs);
        let named: Vec<_> = found
            .iter()
            .map(|(name, ours, theirs)| {
                let text = |part: &Option<Part>| part.as_ref().map(|part| part.text.clone());
                (name.as_str(), text(ours), text(theirs))
            })
            .collect();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            named,
            [
                ("kernel", some("6.1"), some("6.2")),
                ("memory", some("64 MiB"), None),
                ("initrd", None, some("x"))
            ]
        );
        assert!(ours.differences(&ours).is_empty());
    }

    #[test]
    fn the_hash_covers_what_the_list_cuts_off() {
        let long = "é".repeat(300);
        let one = Identity::builder().part("cmdline", &long, b"1").build();
        assert!(one.parts()[0].text().len() <= MAX_TEXT);
        let mut many = (Identity::builder(), Identity::builder());
        for n in 0..40 {
            let name = n.to_string();
            many.0 = many.0.part(&name, "", b"same");
            many.1 = many.1.part(&name, "", if n == 39 { b"diff" } else { b"same" });
        }
        let (a, b) = (many.0.build(), many.1.build());
        assert!(a.differences(&b).is_empty());
        assert_ne!(a.hash(), b.hash());
    }

    #[test]
    fn moving_bytes_between_name_and_content_changes_the_hash() {
        let a = Identity::builder().part("ab", "", b"c").build();
        let b = Identity::builder().part("a", "", b"bc").build();
        assert_ne!(a.hash(), b.hash());
    }
}
