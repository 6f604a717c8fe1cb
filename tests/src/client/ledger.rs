//! What a client was told, and what must therefore be true.
//!
//! One ledger belongs to one connection and to keys of its own, so that every reply has exactly one
//! right value: requests of one connection take effect in order, and nobody else touches the keys. When
//! the connection is lost, the requests without a reply may or may not have taken effect; the ledger is
//! then closed, and its keys must hold something between the last acknowledged and the last sent.

use std::collections::VecDeque;

use super::resp::{Reply, request};
use crate::random::Random;

/// Keys of either kind that a ledger uses.
const KEYS: usize = 4;

/// What kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Counted up by INCR.
    Counter,
    /// Set by SET, to a value never used before.
    Register,
}

/// One key: how often it was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Track {
    /// Changes sent.
    sent: u64,
    /// Changes acknowledged.
    acked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// INCR of that counter: its reply must be that value.
    Incr(usize, u64),
    /// SET of that register for the so-manieth time.
    Set(usize, u64),
    /// GET of that register: its reply must be of that change.
    Get(usize, u64),
}

/// A reply or a key that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: expected {expected}, found {found}")]
pub struct Violation {
    /// The key.
    pub key: String,
    /// What it had to be.
    pub expected: String,
    /// What it is.
    pub found: String,
    /// Acknowledged changes that are gone.
    pub lost: u64,
}

/// One connection's memory.
#[derive(Debug)]
pub struct Ledger {
    name: String,
    counters: [Track; KEYS],
    registers: [Track; KEYS],
    outstanding: VecDeque<Operation>,
    acked: u64,
}

impl Ledger {
    /// An empty one; `name` is in the names of its keys and must be used once.
    #[must_use]
    pub fn new(name: String) -> Self {
        Self {
            name,
            counters: Default::default(),
            registers: Default::default(),
            outstanding: VecDeque::new(),
            acked: 0,
        }
    }

    /// Requests without a reply.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Acknowledged changes: INCR and SET.
    #[must_use]
    pub const fn acked(&self) -> u64 {
        self.acked
    }

    /// Appends the next request: five of eight an INCR or SET, the others a GET.
    pub fn next(&mut self, random: &mut Random, out: &mut Vec<u8>) {
        let key = random.within(0..=KEYS as u64 - 1) as usize;
        let operation = match random.within(0..=7) {
            0..=2 => {
                self.counters[key].sent += 1;
                let key_name = self.key(Kind::Counter, key);
                request(&[b"INCR", key_name.as_bytes()], out);
                Operation::Incr(key, self.counters[key].sent)
            }
            3..=5 => {
                self.registers[key].sent += 1;
                let key_name = self.key(Kind::Register, key);
                let value = value(&key_name, self.registers[key].sent);
                request(&[b"SET", key_name.as_bytes(), value.as_bytes()], out);
                Operation::Set(key, self.registers[key].sent)
            }
            _ => {
                request(&[b"GET", self.key(Kind::Register, key).as_bytes()], out);
                Operation::Get(key, self.registers[key].sent)
            }
        };
        self.outstanding.push_back(operation);
    }

    /// Takes the reply to the oldest request without one.
    ///
    /// # Errors
    /// When it is not what it must be: something acknowledged was lost, or done twice.
    pub fn reply(&mut self, reply: &Reply) -> Result<(), Violation> {
        let Some(operation) = self.outstanding.pop_front() else {
            return Err(self.violation(&self.name, "no reply", reply, 0));
        };
        match operation {
            Operation::Incr(key, expected) => {
                self.counters[key].acked = expected;
                self.acked += 1;
                if *reply == Reply::Integer(expected as i64) {
                    return Ok(());
                }
                let found = if let Reply::Integer(found) = reply { (*found).max(0) as u64 } else { expected };
                let key = self.key(Kind::Counter, key);
                Err(self.violation(&key, &expected.to_string(), reply, expected.saturating_sub(found)))
            }
            Operation::Set(key, expected) => {
                self.registers[key].acked = expected;
                self.acked += 1;
                if *reply == Reply::Simple("OK".to_owned()) {
                    return Ok(());
                }
                Err(self.violation(&self.key(Kind::Register, key), "OK", reply, 0))
            }
            Operation::Get(key, expected) => {
                let key = self.key(Kind::Register, key);
                let (found, wanted) = (change(&key, reply), value(&key, expected));
                if found == Some(expected) {
                    return Ok(());
                }
                let lost = found.map_or(0, |found| expected.saturating_sub(found));
                Err(self.violation(&key, if expected == 0 { "nothing" } else { &wanted }, reply, lost))
            }
        }
    }

    /// Every key that was used, with its name: what to ask for in the end, and where to take the answer.
    #[must_use]
    pub fn keys(&self) -> Vec<(Kind, usize, String)> {
        let of = |kind, tracks: &[Track; KEYS]| -> Vec<_> {
            tracks
                .iter()
                .enumerate()
                .filter(|(_, track)| track.sent > 0)
                .map(|(index, _)| (kind, index, self.key(kind, index)))
                .collect()
        };
        [of(Kind::Counter, &self.counters), of(Kind::Register, &self.registers)].concat()
    }

    /// Judges what a GET of a key says in the end.
    ///
    /// # Errors
    /// When it is less than what was acknowledged, or more than what was sent.
    pub fn judge(&self, kind: Kind, index: usize, reply: &Reply) -> Result<(), Violation> {
        let track = match kind {
            Kind::Counter => self.counters[index],
            Kind::Register => self.registers[index],
        };
        let key = self.key(kind, index);
        let found = match (kind, reply) {
            (Kind::Counter, Reply::Nil) => Some(0),
            (Kind::Counter, Reply::Bulk(digits)) => {
                std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok())
            }
            (Kind::Counter, _) => None,
            (Kind::Register, reply) => change(&key, reply),
        };
        if found.is_some_and(|found| (track.acked..=track.sent).contains(&found)) {
            return Ok(());
        }
        let lost = found.map_or(track.acked, |found| track.acked.saturating_sub(found));
        let expected = match kind {
            Kind::Counter => format!("{} to {}", track.acked, track.sent),
            Kind::Register => format!("{} or later", value(&key, track.acked)),
        };
        Err(self.violation(&key, &expected, reply, lost))
    }

    fn key(&self, kind: Kind, index: usize) -> String {
        let letter = match kind {
            Kind::Counter => 'n',
            Kind::Register => 'r',
        };
        format!("{}:{letter}{index}", self.name)
    }

    fn violation(&self, key: &str, expected: &str, reply: &Reply, lost: u64) -> Violation {
        let found = match reply {
            Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Reply::Nil => "nothing".to_owned(),
            other => format!("{other:?}"),
        };
        Violation { key: key.to_owned(), expected: expected.to_owned(), found, lost }
    }
}

/// The value of a register's so-manieth change: unlike any other of any key.
fn value(key: &str, change: u64) -> String {
    format!("{key}={change}")
}

/// Which change of the register a GET shows: 0 before the first, `None` for what was never set.
fn change(key: &str, reply: &Reply) -> Option<u64> {
    match reply {
        Reply::Nil => Some(0),
        Reply::Bulk(bytes) => {
            std::str::from_utf8(bytes).ok()?.strip_prefix(key)?.strip_prefix('=')?.parse().ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A server in memory.
    #[derive(Default)]
    struct Model(HashMap<String, String>);

    impl Model {
        fn serve(&mut self, bytes: &[u8]) -> Reply {
            let text = std::str::from_utf8(bytes).unwrap();
            let words: Vec<_> =
                text.split("\r\n").skip(2).step_by(2).filter(|word| !word.is_empty()).collect();
            match words[..] {
                ["INCR", key] => {
                    let value: i64 = self.0.get(key).map_or(0, |value| value.parse().unwrap()) + 1;
                    self.0.insert(key.to_owned(), value.to_string());
                    Reply::Integer(value)
                }
                ["SET", key, value] => {
                    self.0.insert(key.to_owned(), value.to_owned());
                    Reply::Simple("OK".to_owned())
                }
                ["GET", key] => self.get(key),
                _ => panic!("{words:?}"),
            }
        }

        fn get(&self, key: &str) -> Reply {
            self.0.get(key).map_or(Reply::Nil, |value| Reply::Bulk(value.clone().into_bytes()))
        }

        fn verify(&self, ledger: &Ledger) -> Vec<Violation> {
            ledger
                .keys()
                .into_iter()
                .filter_map(|(kind, index, key)| ledger.judge(kind, index, &self.get(&key)).err())
                .collect()
        }
    }

    /// Runs so many requests, each answered at once but the last `unanswered`, of which `served` take effect.
    fn run(seed: u64, requests: usize, unanswered: usize, served: usize) -> (Ledger, Model) {
        let (mut ledger, mut model, mut random) =
            (Ledger::new("c".to_owned()), Model::default(), Random::new(seed));
        for number in 0..requests {
            let mut bytes = vec![];
            ledger.next(&mut random, &mut bytes);
            let from_end = requests - number;
            if from_end > unanswered {
                ledger.reply(&model.serve(&bytes)).unwrap();
            } else if unanswered - from_end < served {
                model.serve(&bytes);
            }
        }
        (ledger, model)
    }

    #[test]
    fn an_honest_server_passes_wherever_the_connection_breaks() {
        for seed in 0..200 {
            for served in 0..=5 {
                let (ledger, model) = run(seed, 60, 5, served);
                assert_eq!(model.verify(&ledger), [], "seed {seed}, {served} of 5 served");
                assert_eq!(ledger.outstanding(), 5);
            }
        }
    }

    #[test]
    fn every_lost_change_is_found_and_counted() {
        let (ledger, model) = run(3, 500, 0, 0);
        for (kind, index, key) in ledger.keys() {
            let Reply::Bulk(now) = model.get(&key) else { panic!("{key}") };
            let now = String::from_utf8(now).unwrap();
            let (before, number) = match kind {
                Kind::Counter => (String::new(), now.parse::<u64>().unwrap()),
                Kind::Register => {
                    let (name, number) = now.split_once('=').unwrap();
                    (format!("{name}="), number.parse().unwrap())
                }
            };
            let older = Reply::Bulk(format!("{before}{}", number - 2).into_bytes());
            assert_eq!(ledger.judge(kind, index, &older).unwrap_err().lost, 2);
            assert_eq!(ledger.judge(kind, index, &Reply::Nil).unwrap_err().lost, number);
            let newer = Reply::Bulk(format!("{before}{}", number + 1).into_bytes());
            assert_eq!(ledger.judge(kind, index, &newer).unwrap_err().lost, 0, "never sent");
        }
    }

    #[test]
    fn a_wrong_reply_is_found_at_once() {
        let (mut ledger, mut model) = run(9, 100, 0, 0);
        model.0.clear();
        let mut random = Random::new(1);
        let mut found = 0;
        for _ in 0..20 {
            let mut bytes = vec![];
            ledger.next(&mut random, &mut bytes);
            found += u64::from(ledger.reply(&model.serve(&bytes)).is_err());
        }
        assert!(found > 5, "{found}");
        assert!(ledger.reply(&Reply::Nil).is_err(), "nothing was asked");
    }
}
