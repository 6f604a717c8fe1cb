//! 10,000 races for each kind of storage between processes that are killed and frozen at random moments:
//! in each, exactly one token is decided, whoever lives to ask.
//!
//! This program starts itself again as the contenders. `TANDEM_RACES` sets another number of races,
//! `TANDEM_SEED` another seed.

#![allow(clippy::print_stdout)] // one line of figures for each kind of storage

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tandem_arbiter::{Arbiter, Claim, InitOptions, Side, Token, Verdict, VmId};

const VM: VmId = VmId(*b"contention test!");
const ROLE: &str = "TANDEM_CONTENDER";

fn main() {
    if let Ok(side) = std::env::var(ROLE) {
        return contend(side.parse().expect("a side"));
    }
    // As under the standard harness: a filter that does not name this test leaves it out.
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if std::env::args().any(|arg| arg == "--list")
        || !filters.is_empty() && !filters.iter().any(|f| "contention".contains(f.as_str()))
    {
        return;
    }
    let number =
        |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (races, seed) = (number("TANDEM_RACES", 10_000), number("TANDEM_SEED", 1));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let started = Instant::now();
    let run = |name: &'static str, kind: u64, lanes: u64| {
        let lanes: Vec<_> = (0..lanes)
            .map(|lane| {
                let path = dir.path().join(format!("{name}-{lane}"));
                if name == "link" {
                    std::fs::create_dir(&path).expect("a directory");
                }
                let races = races / lanes + u64::from(lane < races % lanes);
                std::thread::spawn(move || run_lane(name, &path, races, seed ^ kind << 32 ^ lane << 40))
            })
            .collect();
        move || {
            let figures = lanes.into_iter().map(|lane| lane.join().expect("no panic"));
            let sum = figures.fold(Figures::default(), |sum, lane| sum.plus(&lane));
            println!("{name}: {sum} seed={seed} seconds={:.1}", started.elapsed().as_secs_f64());
            assert!(sum.sound(), "{name}: see the line above");
        }
    };
    let (disk, link) = (run("disk", 1, 4), run("link", 2, 2));
    link();
    disk();
}

/// A contender: claims what it is told on standard input, answers on standard output.
fn contend(side: Side) {
    let path = std::env::args().nth(1).expect("the arbiter's path");
    let mut arbiter = Arbiter::open(path.as_ref()).expect("opens");
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let (generation, token) = line.split_once(' ').expect("generation and token");
        let generation = generation.parse().expect("a generation");
        let claim =
            Claim { vm: VM, generation, side, token: token.parse().expect("a token"), time_ms: generation };
        let answer = loop {
            match arbiter.claim(&claim) {
                Ok(Verdict::Won) => break format!("decided {}", claim.token),
                Ok(Verdict::Lost { winner }) => break format!("decided {}", winner.token),
                Ok(Verdict::Superseded { by }) => break format!("superseded {by}"),
                Ok(Verdict::Contended { .. }) => {}
                Err(error) => break format!("error {error:?}"),
            }
        };
        writeln!(out, "{answer}").and_then(|()| out.flush()).expect("the parent reads");
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// This token is decided.
    Decided(Token),
    Superseded,
    /// The contender died without an answer.
    None,
}

/// A contending process.
struct Contender {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Contender {
    fn start(path: &Path, side: Side) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg(path)
            .env(ROLE, side.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    fn go(&mut self, generation: u64, token: Token) {
        writeln!(self.input, "{generation} {token}").expect("the contender lives");
    }

    fn answer(&mut self) -> Answer {
        let mut line = String::new();
        let length = self.output.read_line(&mut line).expect("readable");
        if length == 0 || !line.ends_with('\n') {
            return Answer::None;
        }
        match line.trim().split_once(' ').expect("two words") {
            ("decided", token) => Answer::Decided(token.parse().expect("a token")),
            ("superseded", _) => Answer::Superseded,
            _ => panic!("a contender failed: {line}"),
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("kills");
    }

    fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved; the process is a child not yet waited for, so its id is its own.
        let result = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(result, 0, "signal {signal}");
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[derive(Debug, Default)]
struct Figures {
    races: u64,
    winners: u64,
    kills: u64,
    /// Kills before the contender had answered.
    kills_unanswered: u64,
    freezes: u64,
    /// Races in which all died before anyone was told, so that a later claimer decided or found out.
    decided_later: u64,
    /// Claims of a past generation, and those refused.
    stale: u64,
    superseded: u64,
    by_backup: u64,
    two_winners: u64,
}

impl Figures {
    fn plus(self, other: &Self) -> Self {
        Self {
            races: self.races + other.races,
            winners: self.winners + other.winners,
            kills: self.kills + other.kills,
            kills_unanswered: self.kills_unanswered + other.kills_unanswered,
            freezes: self.freezes + other.freezes,
            decided_later: self.decided_later + other.decided_later,
            stale: self.stale + other.stale,
            superseded: self.superseded + other.superseded,
            by_backup: self.by_backup + other.by_backup,
            two_winners: self.two_winners + other.two_winners,
        }
    }

    fn sound(&self) -> bool {
        self.two_winners == 0
            && self.winners == self.races
            && self.superseded == self.stale
            && self.kills > self.races / 10
            && self.kills_unanswered > self.kills / 10
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "races={} winners={} kills={} kills_unanswered={} freezes={} decided_later={} superseded={}/{} \
             by_backup={} two_winners={}",
            self.races,
            self.winners,
            self.kills,
            self.kills_unanswered,
            self.freezes,
            self.decided_later,
            self.superseded,
            self.stale,
            self.by_backup,
            self.two_winners
        )
    }
}

/// What is known of one generation.
#[derive(Default)]
struct Generation {
    decided: Option<Token>,
    disagreed: bool,
}

impl Generation {
    fn note(&mut self, answer: &Answer) {
        if let Answer::Decided(token) = answer {
            self.disagreed |= *self.decided.get_or_insert(*token) != *token;
        }
    }
}

struct Arena {
    path: PathBuf,
    random: Random,
    tokens: u64,
    sides: [Contender; 2],
    figures: Figures,
}

impl Arena {
    fn start(path: &Path, seed: u64) -> Self {
        let sides = Side::ALL.map(|side| Contender::start(path, side));
        Self { path: path.to_owned(), random: Random(seed), tokens: 0, sides, figures: Figures::default() }
    }

    /// A token never used before, that tells the side.
    fn token(&mut self, side: Side) -> Token {
        self.tokens += 1;
        let mut token = [side.index() as u8; 16];
        token[..8].copy_from_slice(&self.tokens.to_be_bytes());
        Token(token)
    }

    fn go(&mut self, generation: u64, side: Side) {
        let token = self.token(side);
        self.sides[side.index()].go(generation, token);
    }

    fn answer(&mut self, side: Side) -> Answer {
        self.sides[side.index()].answer()
    }

    fn restart(&mut self, side: Side) -> Contender {
        let fresh = Contender::start(&self.path, side);
        std::mem::replace(&mut self.sides[side.index()], fresh)
    }

    /// Up to 16 ms, mostly much less: a claim takes 1 ms on an idle machine and 10 ms on a busy one.
    fn random_moment(&mut self) -> Duration {
        let longest = 1 << (4 + self.random.below(11));
        Duration::from_micros(self.random.below(longest))
    }

    fn race(&mut self, generation: u64) {
        let mut known = Generation::default();
        let first = Side::ALL[self.random.below(2) as usize];
        let second = Side::ALL[1 - first.index()];
        let fate = self.random.below(100);
        let victim = [first, second][self.random.below(2) as usize];
        self.go(generation, first);
        self.go(generation, second);
        match fate {
            0..12 => self.kill(generation, &[victim], &mut known),
            12..15 => self.kill(generation, &Side::ALL, &mut known),
            15..17 => self.freeze(generation, victim, &mut known),
            _ => {
                for side in Side::ALL {
                    known.note(&self.answer(side));
                }
            }
        }
        match known.decided {
            Some(token) if !known.disagreed => {
                self.figures.winners += 1;
                self.figures.by_backup += u64::from(token.0[15]);
            }
            _ => self.figures.two_winners += 1,
        }
    }

    fn kill(&mut self, generation: u64, victims: &[Side], known: &mut Generation) {
        let moment = self.random_moment();
        std::thread::sleep(moment);
        for victim in victims {
            self.sides[victim.index()].kill();
            self.figures.kills += 1;
        }
        let mut told = false;
        for side in Side::ALL {
            let answer = self.answer(side);
            known.note(&answer);
            told |= answer != Answer::None;
            self.figures.kills_unanswered += u64::from(answer == Answer::None);
        }
        self.figures.decided_later += u64::from(!told);
        for victim in victims {
            drop(self.restart(*victim));
            self.go(generation, *victim);
            known.note(&self.answer(*victim));
        }
    }

    /// Freezes a contender, starts another in its place, and lets the frozen one go on afterwards: in the same
    /// generation or in the next one.
    fn freeze(&mut self, generation: u64, victim: Side, known: &mut Generation) {
        let moment = self.random_moment();
        std::thread::sleep(moment);
        self.sides[victim.index()].signal(libc::SIGSTOP);
        self.figures.freezes += 1;
        let mut frozen = self.restart(victim);
        self.go(generation, victim);
        if self.random.below(2) == 0 {
            frozen.signal(libc::SIGCONT); // it and its replacement claim at the same time
        }
        for side in Side::ALL {
            known.note(&self.answer(side));
        }
        frozen.signal(libc::SIGCONT);
        known.note(&frozen.answer());
        self.go(generation, victim);
        known.note(&self.answer(victim));
    }
}

/// Races one after the other on an arbiter of their own.
fn run_lane(name: &str, path: &Path, races: u64, seed: u64) -> Figures {
    let mut arbiter = Arbiter::init(path, VM, &InitOptions::default()).expect("init");
    if let Some(notice) = arbiter.notice() {
        println!("{name}: {notice}");
    }
    let mut arena = Arena::start(path, seed);
    for generation in 1..=races {
        arena.race(generation);
        if generation > 1 && generation.is_multiple_of(10) {
            // Whoever slept through a generation cannot claim it.
            let side = Side::ALL[arena.random.below(2) as usize];
            arena.go(generation - 1, side);
            arena.figures.stale += 1;
            arena.figures.superseded += u64::from(arena.answer(side) == Answer::Superseded);
        }
    }
    let state = arbiter.show().expect("shows");
    assert_eq!(state.claims.last().map(|claim| claim.generation), Some(races), "{state}");
    assert!(state.damage.is_empty(), "{state}");
    arena.figures.races = races;
    arena.figures
}
