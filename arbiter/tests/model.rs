//! Model checking of the Disk Paxos state machine that runs in production: every interleaving of sector
//! reads and writes of a few contenders, with crashes, restarts, torn writes, ambiguous errors and stale
//! writes, up to small bounds.

#![allow(clippy::print_stdout)] // the size of each state space

use stateright::{Checker, HasDiscoveries, Model, Property};
use tandem_arbiter::paxos::{COPIES, Contender, Look, Sector, Step};
use tandem_arbiter::{Claim, Side, Token, VmId};

/// One contender of a scene.
#[derive(Debug, Clone, Copy)]
struct Role {
    side: Side,
    generation: u64,
    /// How often it may crash and come back as a new process with a new token.
    restarts: u8,
    /// It reads the four sectors one by one, in any order, instead of all at once.
    piecemeal: bool,
}

const fn role(side: Side, generation: u64, restarts: u8) -> Role {
    Role { side, generation, restarts, piecemeal: false }
}

const fn piecemeal(side: Side, generation: u64) -> Role {
    Role { side, generation, restarts: 0, piecemeal: true }
}

/// Who takes part, and what may happen to them.
#[derive(Debug, Clone)]
struct Scene {
    roles: Vec<Role>,
    /// A sector reads as garbage while it is written, and stays so when its writer crashes or fails meanwhile.
    tearing: bool,
    /// How many writes in all may end in an error, having taken effect, or not, or being held up.
    errors: u8,
    /// A write that is held up, by an error or the crash of its writer, may reach the disk at any later time.
    /// There is at most one at a time.
    late: bool,
    /// Contests with a higher round are cut off.
    rounds: u64,
}

/// A sector of the slot as it is on the disk. All generations of the model share one slot: the ring has
/// wrapped around to the same sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Cell {
    generation: u64,
    sector: Sector,
}

type Disk = [[Cell; COPIES]; 2];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Doing {
    /// Reading: which sectors have been read so far.
    Look(Box<[[Option<Cell>; COPIES]; 2]>),
    /// About to write.
    Write(usize, Cell),
    /// Halfway through a write.
    Writing(usize, Cell),
    Ended(Step),
    Crashed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    contender: Contender,
    doing: Doing,
    restarts: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    disk: Disk,
    processes: Vec<Process>,
    errors: u8,
    /// A write held up on its way to the disk.
    late: Option<(Side, usize, Cell)>,
    /// The token that some contender has seen decided, per generation; it outlives the contender.
    decided: [Option<Token>; 3],
    /// Two contenders saw different claims decided.
    disagreed: bool,
    /// A claim was won in a generation after a later one was decided.
    late_win: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    LookAtAll(usize),
    Read(usize, usize, usize),
    Begin(usize),
    Finish(usize),
    /// The write ends in an error.
    Fail(usize, Fate),
    /// The process dies; what it was writing shares this fate.
    Crash(usize, Fate),
    Restart(usize),
    /// The write that was held up reaches the disk.
    Land,
}

/// What becomes of a write that is not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// Not done, or torn if it had begun.
    Undone,
    Late,
}

impl Doing {
    fn start() -> Self {
        Self::Look(Box::new([[None; COPIES]; 2]))
    }
}

impl Process {
    fn new(index: usize, role: Role, restarts: u8) -> Self {
        let life = (index * 16) as u8 + role.restarts - restarts;
        let claim = Claim {
            vm: VmId([0; 16]),
            generation: role.generation,
            side: role.side,
            token: Token([life; 16]),
            time_ms: 0,
        };
        // Incarnations are random numbers: in half of the roles the later life has the lower one.
        let incarnation = if index.is_multiple_of(2) { u64::from(life) } else { u64::from(255 - life) };
        Self { contender: Contender::new(claim, incarnation), doing: Doing::start(), restarts }
    }

    fn proposal(&self) -> &Claim {
        self.contender.proposal()
    }

    fn follow(&mut self, step: Step) {
        self.doing = match step {
            // A reader so slow that it met both copies of a side being written reads again.
            Step::Look | Step::Preempted | Step::Unreadable(_) => Doing::start(),
            Step::Write { copy, block } => {
                let generation = self.proposal().generation;
                Doing::Write(copy, Cell { generation, sector: Sector::Block(block) })
            }
            Step::Decided(_) | Step::Superseded(_) => Doing::Ended(step),
        };
    }

    fn looked(&mut self, seen: Disk) -> Step {
        let generation = self.proposal().generation;
        let readable = seen.iter().flatten().filter(|cell| cell.sector != Sector::Unreadable);
        let look = Look {
            newest: readable.map(|cell| cell.generation).max().unwrap_or(0),
            sectors: seen.map(|copies| {
                copies.map(|cell| match cell.sector {
                    Sector::Unreadable => Sector::Unreadable,
                    _ if cell.generation != generation => Sector::Vacant,
                    sector => sector,
                })
            }),
        };
        let step = self.contender.looked(&look);
        self.follow(step);
        step
    }
}

impl State {
    /// Notes what `step` of a process reveals.
    fn observe(&mut self, process: usize, step: Step) {
        if let Step::Decided(claim) = step {
            let generation = claim.generation as usize;
            let before = self.decided[generation].replace(claim.token);
            self.disagreed |= before.is_some_and(|token| token != claim.token);
            let won = claim.token == self.processes[process].proposal().token;
            self.late_win |= won && self.decided[generation + 1..].iter().any(Option::is_some);
        }
    }

    fn looked(&mut self, process: usize, seen: Disk) {
        let step = self.processes[process].looked(seen);
        self.observe(process, step);
    }

    fn put(&mut self, process: usize, copy: usize, cell: Cell) {
        let side = self.processes[process].proposal().side;
        self.disk[side.index()][copy] = cell;
    }

    fn end_write(&mut self, process: usize, fate: Fate) {
        if let Doing::Write(copy, cell) | Doing::Writing(copy, cell) = self.processes[process].doing {
            match fate {
                Fate::Done => self.put(process, copy, cell),
                Fate::Undone => {}
                Fate::Late => self.late = Some((self.processes[process].proposal().side, copy, cell)),
            }
        }
    }

    /// Whether `process`, left alone with the disk as it is, comes to an end.
    fn finishes_alone(&self, process: &Process) -> bool {
        let (mut disk, mut process) = (self.disk, process.clone());
        for _ in 0..64 {
            match process.doing {
                Doing::Look(_) => {
                    let _ = process.looked(disk);
                }
                Doing::Write(copy, cell) | Doing::Writing(copy, cell) => {
                    disk[process.proposal().side.index()][copy] = cell;
                    process.doing = Doing::start();
                }
                Doing::Ended(Step::Decided(_) | Step::Superseded(_)) | Doing::Crashed => return true,
                Doing::Ended(_) => return false,
            }
        }
        false
    }

    fn verdicts(&self) -> impl Iterator<Item = (&Process, Claim)> {
        self.processes.iter().filter_map(|process| match process.doing {
            Doing::Ended(Step::Decided(claim)) => Some((process, claim)),
            _ => None,
        })
    }

    fn winners(&self, generation: u64) -> usize {
        self.verdicts()
            .filter(|(process, claim)| claim.generation == generation && claim == process.proposal())
            .count()
    }
}

impl Model for Scene {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let vacant = Cell { generation: 0, sector: Sector::Vacant };
        let processes =
            self.roles.iter().enumerate().map(|(index, role)| Process::new(index, *role, role.restarts));
        vec![State {
            disk: [[vacant; COPIES]; 2],
            processes: processes.collect(),
            errors: self.errors,
            late: None,
            decided: [None; 3],
            disagreed: false,
            late_win: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, process) in state.processes.iter().enumerate() {
            match &process.doing {
                Doing::Look(seen) if self.roles[index].piecemeal => {
                    let unread = (0..2).flat_map(|side| (0..COPIES).map(move |copy| (side, copy)));
                    let unread = unread.filter(|(side, copy)| seen[*side][*copy].is_none());
                    actions.extend(unread.map(|(side, copy)| Action::Read(index, side, copy)));
                }
                Doing::Look(_) => actions.push(Action::LookAtAll(index)),
                Doing::Write(..) if self.tearing => actions.push(Action::Begin(index)),
                Doing::Write(..) | Doing::Writing(..) => actions.push(Action::Finish(index)),
                Doing::Crashed => actions.push(Action::Restart(index)),
                Doing::Ended(_) => {}
            }
            if process.restarts > 0 && process.doing != Doing::Crashed {
                actions.push(Action::Crash(index, Fate::Undone));
            }
            let (Doing::Write(..) | Doing::Writing(..)) = process.doing else { continue };
            if state.errors > 0 {
                actions.extend([Action::Fail(index, Fate::Undone), Action::Fail(index, Fate::Done)]);
            }
            if self.late && state.late.is_none() && matches!(process.doing, Doing::Write(..)) {
                if state.errors > 0 {
                    actions.push(Action::Fail(index, Fate::Late));
                }
                if process.restarts > 0 {
                    actions.push(Action::Crash(index, Fate::Late));
                }
            }
        }
        if state.late.is_some() {
            actions.push(Action::Land);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::LookAtAll(index) => {
                let seen = state.disk;
                state.looked(index, seen);
            }
            Action::Read(index, side, copy) => {
                let Doing::Look(seen) = &mut state.processes[index].doing else { return None };
                seen[side][copy] = Some(state.disk[side][copy]);
                if let [[Some(a), Some(b)], [Some(c), Some(d)]] = **seen {
                    state.looked(index, [[a, b], [c, d]]);
                }
            }
            Action::Begin(index) => {
                let Doing::Write(copy, cell) = state.processes[index].doing else { return None };
                state.put(index, copy, Cell { sector: Sector::Unreadable, ..cell });
                state.processes[index].doing = Doing::Writing(copy, cell);
            }
            Action::Finish(index) => {
                state.end_write(index, Fate::Done);
                state.processes[index].doing = Doing::start();
            }
            Action::Fail(index, fate) => {
                state.errors -= 1;
                state.end_write(index, fate);
                state.processes[index].doing = Doing::start();
            }
            Action::Crash(index, fate) => {
                state.end_write(index, fate);
                state.processes[index].doing = Doing::Crashed;
            }
            Action::Land => {
                let (side, copy, cell) = state.late.take()?;
                state.disk[side.index()][copy] = cell;
            }
            Action::Restart(index) => {
                let restarts = state.processes[index].restarts - 1;
                state.processes[index] = Process::new(index, self.roles[index], restarts);
            }
        }
        Some(state)
    }

    fn within_boundary(&self, state: &State) -> bool {
        let promised = |sector| match sector {
            Sector::Block(block) => block.promised.round,
            Sector::Vacant | Sector::Unreadable => 0,
        };
        let written = state.disk.iter().flatten().all(|cell| promised(cell.sector) <= self.rounds);
        written
            && state.processes.iter().all(|process| match process.doing {
                Doing::Write(_, cell) | Doing::Writing(_, cell) => promised(cell.sector) <= self.rounds,
                _ => true,
            })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("all who see a decision see the same", |_, state: &State| !state.disagreed),
            Property::always("at most one winner per generation", |_, state: &State| {
                (1..3).all(|generation| state.winners(generation) <= 1)
            }),
            Property::always(
                "what is decided was proposed in that generation",
                |scene: &Self, state: &State| {
                    state.verdicts().all(|(process, claim)| {
                        let proposer = scene.roles[usize::from(claim.token.0[0] / 16)];
                        claim.generation == process.proposal().generation
                            && (proposer.generation, proposer.side) == (claim.generation, claim.side)
                    })
                },
            ),
            Property::always("a crash leaves every slot readable", |_, state: &State| {
                !state.disk.iter().any(|copies| copies.iter().all(|cell| cell.sector == Sector::Unreadable))
            }),
            Property::sometimes("the primary wins", |_, state: &State| {
                state.verdicts().any(|(p, claim)| claim == *p.proposal() && claim.side == Side::Primary)
            }),
            Property::sometimes("the backup wins", |_, state: &State| {
                state.verdicts().any(|(p, claim)| claim == *p.proposal() && claim.side == Side::Backup)
            }),
            Property::sometimes("a loser learns who won", |_, state: &State| {
                state.verdicts().any(|(p, claim)| claim != *p.proposal())
            }),
        ];
        if THOROUGH || self.roles.len() == 2 {
            properties.push(Property::always("whoever is left alone comes to an end", |_, state: &State| {
                state.processes.iter().all(|process| state.finishes_alone(process))
            }));
        }
        if !self.roles.iter().any(|role| role.piecemeal) {
            properties
                .push(Property::always("no win after a later generation is decided", |_, s: &State| {
                    !s.late_win
                }));
        }
        if self.roles.iter().any(|role| role.generation > 1) {
            properties.push(Property::sometimes("a stale contender is superseded", |_, state: &State| {
                state.processes.iter().any(|p| matches!(p.doing, Doing::Ended(Step::Superseded(_))))
            }));
        }
        if self.roles.iter().any(|role| role.restarts > 0) {
            properties.push(Property::sometimes("the dead win", |_, state: &State| {
                state.verdicts().any(|(_, claim)| {
                    !state.processes.iter().any(|process| process.proposal().token == claim.token)
                })
            }));
        }
        properties
    }
}

fn check(name: &str, scene: Scene) {
    let started = std::time::Instant::now();
    let checker = scene.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "model {name}: states={} unique={} depth={} seconds={:.1}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64()
    );
    checker.assert_properties();
}

use Side::{Backup, Primary};

/// Debug builds check smaller state spaces.
const THOROUGH: bool = !cfg!(debug_assertions);

const CALM: Scene = Scene { roles: Vec::new(), tearing: false, errors: 0, late: false, rounds: 2 };

#[test]
fn two_contenders_reading_sector_by_sector() {
    let roles = vec![piecemeal(Primary, 1), piecemeal(Backup, 1)];
    check("piecemeal", Scene { roles, tearing: THOROUGH, ..CALM });
}

#[test]
fn crashes_and_torn_writes_between_any_two_sector_writes() {
    let roles = vec![role(Primary, 1, 1), role(Backup, 1, 1)];
    let rounds = if THOROUGH { 4 } else { 3 };
    check("crashes", Scene { roles, tearing: true, rounds, ..CALM });
}

#[test]
fn ambiguous_write_errors() {
    let roles = vec![role(Primary, 1, 0), role(Backup, 1, u8::from(THOROUGH))];
    check("errors", Scene { roles, tearing: true, errors: 2, rounds: 3, ..CALM });
}

#[test]
fn writes_held_up_on_the_way_to_the_disk() {
    let roles = vec![role(Primary, 1, 0), role(Backup, 1, 1)];
    let rounds = if THOROUGH { 3 } else { 2 };
    check("late", Scene { roles, errors: 1, late: true, rounds, ..CALM });
}

#[test]
fn a_frozen_process_beside_its_replacement() {
    let roles = vec![role(Primary, 1, 0), role(Primary, 1, 0), role(Backup, 1, 0)];
    check("frozen", Scene { roles, ..CALM });
}

#[test]
fn a_replacement_reading_sector_by_sector() {
    let roles = vec![role(Primary, 1, 0), piecemeal(Primary, 1), role(Backup, 1, 0)];
    check("replacement", Scene { roles, rounds: 1, ..CALM });
}

#[test]
fn a_later_generation_in_the_same_sectors() {
    let roles = vec![role(Primary, 1, 0), role(Backup, 1, 0), role(Primary, 2, 0)];
    check("generations", Scene { roles, ..CALM });
}

#[test]
#[ignore = "takes ten minutes and ten gigabytes"]
fn larger_scenes() {
    let roles = vec![role(Primary, 1, 0), role(Primary, 1, 0), role(Backup, 1, 0)];
    check("frozen, three rounds", Scene { roles, rounds: 3, ..CALM });
    let roles = vec![role(Primary, 1, 0), role(Backup, 1, 0), role(Primary, 2, 0), role(Backup, 2, 0)];
    check("generations, four contenders", Scene { roles, ..CALM });
    let roles = vec![role(Primary, 1, 1), role(Backup, 1, 1)];
    check("late, with errors", Scene { roles, errors: 1, late: true, rounds: 3, ..CALM });
    let replaced = [role(Primary, 1, 0), role(Primary, 1, 0), role(Backup, 1, 0), piecemeal(Backup, 1)];
    check("both sides replaced", Scene { roles: replaced.into(), rounds: 1, ..CALM });
}
