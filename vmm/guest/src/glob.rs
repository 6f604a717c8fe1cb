//! Glob patterns as Redis matches them: `*`, `?`, `[a-z]`, `[^a]` and `\` to quote.

/// Whether `text` as a whole matches `pattern`. Linear in `text` for each `*` (the last star backtracks,
/// earlier ones never need to).
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            p += 1;
            star = Some((p, t));
            continue;
        }
        if t == text.len() && p == pattern.len() {
            return true;
        }
        if t < text.len()
            && p < pattern.len()
            && let Some(next) = one(pattern, p, text[t])
        {
            p = next;
            t += 1;
            continue;
        }
        match star {
            Some((after, from)) if from < text.len() => {
                star = Some((after, from + 1));
                p = after;
                t = from + 1;
            }
            _ => return false,
        }
    }
}

/// Matches one byte against the pattern item at `p`; where the next item starts, if it matched.
fn one(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    match pattern[p] {
        b'?' => Some(p + 1),
        b'[' => class(pattern, p + 1, byte),
        b'\\' if p + 1 < pattern.len() => (pattern[p + 1] == byte).then_some(p + 2),
        literal => (literal == byte).then_some(p + 1),
    }
}

/// Matches one byte against a class whose content starts at `p`. An unclosed class ends with the pattern.
fn class(pattern: &[u8], mut p: usize, byte: u8) -> Option<usize> {
    let negated = pattern.get(p) == Some(&b'^');
    if negated {
        p += 1;
    }
    let mut found = false;
    while p < pattern.len() && pattern[p] != b']' {
        if pattern[p] == b'\\' && p + 1 < pattern.len() {
            p += 1;
            found |= pattern[p] == byte;
        } else if p + 2 < pattern.len() && pattern[p + 1] == b'-' {
            let (low, high) = (pattern[p].min(pattern[p + 2]), pattern[p].max(pattern[p + 2]));
            found |= (low..=high).contains(&byte);
            p += 2;
        } else {
            found |= pattern[p] == byte;
        }
        p += 1;
    }
    (found != negated).then_some((p + 1).min(pattern.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_of_the_redis_manual() {
        for (pattern, text, expected) in [
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hbllo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h\\[llo", "h[llo", true),
            ("*", "", true),
            ("**a*b", "xaxxb", true),
            ("a*b*c", "abcbd", false),
            ("[", "a", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_patterns_end(pattern in proptest::collection::vec(any::<u8>(), 0..40),
                                  text in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = matches(&pattern, &text);
        }

        #[test]
        fn quoted_text_matches_itself_only(text in proptest::collection::vec(any::<u8>(), 0..20)) {
            let quoted: std::vec::Vec<u8> = text.iter().flat_map(|&b| [b'\\', b]).collect();
            prop_assert!(matches(&quoted, &text));
            let mut longer = text.clone();
            longer.push(b'x');
            prop_assert!(!matches(&quoted, &longer));
        }
    }
}
