//! A hash of the whole store: equal for equal content, whatever the order in which it came about.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::store::{Entry, Store, Value};

/// The digest: the sum of one 128-bit XXH3 per key, over key, expiry, type and content. Zero when empty.
#[must_use]
pub fn digest(store: &Store) -> u128 {
    store.iter().fold(0, |sum, (key, entry)| sum.wrapping_add(of_entry(key, entry)))
}

fn of_entry(key: &[u8], entry: &Entry) -> u128 {
    let mut hash = Xxh3::new();
    part(&mut hash, key);
    hash.update(&entry.expires.unwrap_or(u64::MAX).to_le_bytes());
    hash.update(entry.value.type_name().as_bytes());
    match &entry.value {
        Value::Str(text) => part(&mut hash, text),
        Value::List(list) => list.iter().for_each(|item| part(&mut hash, item)),
        Value::Set(set) => {
            let sum = set.iter().fold(0u128, |sum, member| sum.wrapping_add(xxh3_128(member)));
            hash.update(&sum.to_le_bytes());
        }
        Value::Hash(map) => {
            let sum = map.iter().fold(0u128, |sum, (field, value)| {
                let mut pair = Xxh3::new();
                part(&mut pair, field);
                part(&mut pair, value);
                sum.wrapping_add(pair.digest128())
            });
            hash.update(&sum.to_le_bytes());
        }
        Value::Sorted(sorted) => {
            for (score, member) in sorted.members() {
                hash.update(&score.to_bits().to_le_bytes());
                part(&mut hash, member);
            }
        }
    }
    hash.digest128()
}

fn part(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::run;

    #[test]
    fn order_does_not_matter_and_content_does() {
        let digest_of = |script: &str| {
            let mut engine = crate::command::Engine::new();
            for line in script.split(';') {
                run(&mut engine, line);
            }
            digest(engine.store())
        };
        let base = digest_of("SET a 1;SET b 2;SADD s x y;HSET h f v g w;RPUSH l 1 2;ZADD z 1 m 2 n");
        assert_eq!(base, digest_of("ZADD z 2 n 1 m;RPUSH l 1 2;HSET h g w f v;SADD s y x;SET b 2;SET a 1"));
        for other in [
            "SET a 2",
            "RPUSH l 3",
            "HSET h f w",
            "SADD s z",
            "ZADD z 3 m",
            "PEXPIRE a 1000",
            "DEL a",
            "SET ab 1",
        ] {
            let changed = digest_of(&std::format!(
                "SET a 1;SET b 2;SADD s x y;HSET h f v g w;RPUSH l 1 2;ZADD z 1 m 2 n;{other}"
            ));
            assert_ne!(base, changed, "{other}");
        }
        assert_eq!(digest_of("SET a 1;DEL a"), 0);
    }
}
