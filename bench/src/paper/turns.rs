//! Turns of a run: the same rows on each kind of VM, alternating, and what they come to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::Orders;
use super::progress::Progress;
use super::size::Size;
use super::stage::{Kind, Measured, Stage, Vm};
use crate::report::stats::Spread;
use crate::report::{Event, Row, RowReport};

/// What is kept for the end of a run: the report, and what ends its last pair.
const RESERVE: Duration = Duration::from_secs(5);

/// All turns of all rows so far.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Turns {
    #[serde(with = "pairs")]
    measured: BTreeMap<(Row, Kind), Vec<Measured>>,
    #[serde(with = "pairs")]
    failed: BTreeMap<(Row, Kind), String>,
    /// Of a pair whose guest idled, in Mbit/s; or why it is not known.
    pub(crate) idle: Option<Result<f64, String>>,
    /// Of a pair whose primary was killed.
    pub(crate) failover: Option<Result<(f64, Vec<Event>), String>>,
}

/// What a turn is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// These.
    pub(crate) rows: &'a [Row],
    /// So much of each.
    pub(crate) size: &'a Size,
    /// Whether a pair is watched idling, and then loses its primary.
    pub(crate) end: bool,
}

/// JSON has no maps by such keys.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'a, K: Deserialize<'a> + Ord, V: Deserialize<'a>, D: Deserializer<'a>>(
        deserializer: D,
    ) -> Result<BTreeMap<K, V>, D::Error> {
        Vec::<(K, V)>::deserialize(deserializer).map(BTreeMap::from_iter)
    }
}

impl Turns {
    /// Adds what was measured elsewhere on other kinds of VMs.
    pub(crate) fn merge(&mut self, other: Self) {
        self.measured.extend(other.measured);
        self.failed.extend(other.failed);
        self.idle = other.idle.or(self.idle.take());
        self.failover = other.failover.or(self.failover.take());
    }

    /// One turn: a VM boots, every row is measured on it, it ends. What fails is noted, and the rest goes on.
    pub(crate) fn turn(&mut self, stage: &mut Stage, kind: Kind, asked: &Asked<'_>, progress: &mut Progress) {
        let serve = asked.end || asked.rows.iter().any(|row| !row.is_batch());
        let batch: Vec<_> =
            Row::ALL.into_iter().filter(|row| row.is_batch() && asked.rows.contains(row)).collect();
        let orders = Orders { batch: asked.size.batch(&batch), serve };
        progress.step(&format!("the {} VM boots", kind.name()));
        let mut vm = match stage.boot(kind, &orders) {
            Ok(vm) => vm,
            Err(error) => {
                progress.say(&format!("{error:#}"));
                return self.lost(kind, asked.rows, asked.end, &format!("{error:#}"));
            }
        };
        self.rows(stage, &mut vm, kind, asked, &batch, progress);
        stage.end(vm);
    }

    fn rows(
        &mut self,
        stage: &mut Stage,
        vm: &mut Vm,
        kind: Kind,
        asked: &Asked<'_>,
        batch: &[Row],
        progress: &mut Progress,
    ) {
        for row in batch {
            progress.step(&format!("{} on the {} VM", row.name(), kind.name()));
            let measured = stage.batch(vm, *row);
            if let Err(why) = self.note(*row, kind, measured, progress) {
                return self.lost(kind, asked.rows, asked.end, &why);
            }
        }
        let clients: Vec<_> = asked.rows.iter().copied().filter(|row| !row.is_batch()).collect();
        if clients.is_empty() && !asked.end {
            return;
        }
        if let Err(error) = stage.serving(vm) {
            return self.lost(kind, asked.rows, asked.end, &format!("{error:#}"));
        }
        for row in clients {
            progress.step(&format!("{} on the {} VM", row.name(), kind.name()));
            let measured = if stage.left() < RESERVE {
                Err(anyhow::anyhow!("the time for this run was up"))
            } else {
                stage.load(vm, row, asked.size)
            };
            // Another row may do better.
            let _ = self.note(row, kind, measured, progress);
        }
        if asked.end && kind == Kind::Pair {
            progress.step("the pair idles, then its primary is killed");
            self.idle = Some(
                stage
                    .idle(vm, asked.size)
                    .map(|usage| usage.log_mbit_s)
                    .map_err(|error| format!("{error:#}")),
            );
            self.failover = Some(stage.failover(vm).map_err(|error| format!("{error:#}")));
        }
    }

    fn note(
        &mut self,
        row: Row,
        kind: Kind,
        measured: anyhow::Result<Measured>,
        progress: &Progress,
    ) -> Result<(), String> {
        match measured {
            Ok(measured) => {
                if let Some(rate) = Spread::of(measured.rates.iter().copied()) {
                    let Spread { median, least, most, .. } = rate;
                    progress.say(&format!(
                        "{}, {}: {median:.3} {} ({least:.3} to {most:.3})",
                        row.name(),
                        kind.name(),
                        row.unit()
                    ));
                }
                self.measured.entry((row, kind)).or_default().push(measured);
                Ok(())
            }
            Err(error) => {
                let why = format!("{error:#}");
                progress.say(&format!("{}, {}: {why}", row.name(), kind.name()));
                self.failed.insert((row, kind), why.clone());
                Err(why)
            }
        }
    }

    /// These rows are not measured on this kind of VM.
    pub(crate) fn leave_out(&mut self, kind: Kind, rows: &[Row], why: &str) {
        for row in rows {
            self.failed.insert((*row, kind), why.to_owned());
        }
    }

    /// What was not measured yet of these rows, and at the `end`, has this reason.
    pub(crate) fn lost(&mut self, kind: Kind, rows: &[Row], end: bool, why: &str) {
        for row in rows {
            if !self.measured.contains_key(&(*row, kind)) {
                self.failed.entry((*row, kind)).or_insert_with(|| why.to_owned());
            }
        }
        if end && kind == Kind::Pair {
            self.idle.get_or_insert_with(|| Err(why.to_owned()));
            self.failover.get_or_insert_with(|| Err(why.to_owned()));
        }
    }

    fn of(&self, row: Row, kind: Kind) -> &[Measured] {
        self.measured.get(&(row, kind)).map_or(&[], Vec::as_slice)
    }

    fn rate(&self, row: Row, kind: Kind) -> Option<Spread> {
        Spread::of(self.of(row, kind).iter().flat_map(|turn| turn.rates.iter().copied()))
    }

    /// Why a row has no figure for this kind of VM.
    fn why(&self, row: Row, kind: Kind) -> Option<String> {
        let why = self.failed.get(&(row, kind))?;
        Some(format!("{}: {why}", kind.name()))
    }

    /// What a row comes to.
    pub(crate) fn report(&self, row: Row, kinds: &[Kind]) -> RowReport {
        let [alone, pair, qemu, same_clock] =
            [Kind::Alone, Kind::Pair, Kind::Qemu, Kind::SameClock].map(|kind| self.rate(row, kind));
        let mut hashes: Vec<_> =
            kinds.iter().flat_map(|kind| self.of(row, *kind)).filter_map(|turn| turn.hash.as_ref()).collect();
        hashes.dedup();
        let same = hashes.len() < 2;
        let over = |one: Option<Spread>, other: Option<Spread>| if same { one?.over(other?) } else { None };
        let (ratio, solo_over_qemu) = (over(pair, alone), over(alone, qemu));
        let same_clock_over_qemu = over(same_clock, qemu);
        let usages: Vec<_> = self.of(row, Kind::Pair).iter().map(|turn| &turn.usage).collect();
        let log_mbit_s = Spread::of(usages.iter().map(|usage| usage.log_mbit_s)).map(|spread| spread.median);
        let differs = (!same).then(|| format!("the guests computed different things: {hashes:?}"));
        let missing = |kind: Kind| {
            let why = self.why(row, kind);
            why.or_else(|| {
                (kinds.contains(&kind) && self.of(row, kind).is_empty())
                    .then(|| format!("{}: not reached", kind.name()))
            })
        };
        let paper = row.paper();
        RowReport {
            row,
            stand_in: row.stand_in(),
            unit: row.unit(),
            alone,
            pair,
            qemu,
            ratio,
            solo_over_qemu,
            same_clock,
            same_clock_over_qemu,
            log_mbit_s,
            paper,
            ratio_difference: ratio.map(|ratio| ratio.median - paper.ratio),
            log_difference: log_mbit_s.map(|log| log - paper.log_mbit_s),
            usage: usages.last().map(|usage| (*usage).clone()),
            usage_alone: self.of(row, Kind::Alone).last().map(|turn| turn.usage.clone()),
            reason: differs.or_else(|| missing(Kind::Alone)).or_else(|| missing(Kind::Pair)),
            reason_qemu: missing(Kind::Qemu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Usage;

    fn measured(rates: &[f64], hash: &str) -> Measured {
        let usage = Usage { log_mbit_s: 4.0, ..Usage::default() };
        Measured { rates: rates.to_vec(), usage, hash: Some(hash.to_owned()) }
    }

    #[test]
    fn a_row_is_the_medians_of_its_turns() {
        let mut turns = Turns::default();
        turns
            .measured
            .insert((Row::Compile, Kind::Alone), vec![measured(&[1.0, 2.0], "a"), measured(&[3.0], "a")]);
        turns.measured.insert((Row::Compile, Kind::Pair), vec![measured(&[1.5], "a")]);
        let row = turns.report(Row::Compile, &[Kind::Alone, Kind::Pair]);
        assert_eq!(row.ratio.unwrap().median, 0.75);
        assert!((row.ratio_difference.unwrap() + 0.2).abs() < 1e-9);
        assert_eq!((row.log_mbit_s, row.log_difference), (Some(4.0), Some(1.0)));
        assert_eq!((row.reason, row.reason_qemu), (None, None));
    }

    #[test]
    fn guests_that_compute_different_things_have_no_ratio() {
        let mut turns = Turns::default();
        turns.measured.insert((Row::Jvm, Kind::Alone), vec![measured(&[1.0], "a")]);
        turns.measured.insert((Row::Jvm, Kind::Pair), vec![measured(&[1.0], "b")]);
        let row = turns.report(Row::Jvm, &[Kind::Alone, Kind::Pair]);
        assert_eq!(row.ratio, None);
        assert!(row.reason.unwrap().contains("different"));
    }

    #[test]
    fn what_is_missing_has_a_reason() {
        let mut turns = Turns::default();
        turns.lost(Kind::Pair, &[Row::Shop], true, "no disk");
        let row = turns.report(Row::Shop, &[Kind::Alone, Kind::Pair, Kind::Qemu]);
        assert_eq!(row.reason.as_deref(), Some("unprotected: not reached"));
        assert_eq!(row.reason_qemu.as_deref(), Some("QEMU: not reached"));
        assert_eq!(turns.why(Row::Shop, Kind::Pair).as_deref(), Some("protected: no disk"));
        assert!(matches!(turns.idle, Some(Err(_))) && matches!(turns.failover, Some(Err(_))));
    }

    #[test]
    fn what_two_machines_measured_comes_together() {
        let mut pair = Turns::default();
        pair.measured.insert((Row::Jvm, Kind::Pair), vec![measured(&[1.0], "a")]);
        pair.idle = Some(Err("no time".to_owned()));
        pair.failover = Some(Ok((70.0, vec![Event { ms: 1.0, text: "live".to_owned() }])));
        let mut alone = Turns::default();
        alone.measured.insert((Row::Jvm, Kind::Alone), vec![measured(&[2.0], "a")]);
        alone.leave_out(Kind::Qemu, &[Row::Jvm], "elsewhere");
        let mut all = Turns::default();
        for one in [pair, alone] {
            let text = serde_json::to_string(&one).unwrap();
            all.merge(serde_json::from_str(&text).unwrap());
        }
        let row = all.report(Row::Jvm, &[Kind::Alone, Kind::Pair, Kind::Qemu]);
        assert_eq!(row.ratio.unwrap().median, 0.5);
        assert_eq!(row.reason_qemu.as_deref(), Some("QEMU: elsewhere"));
        assert_eq!(all.idle, Some(Err("no time".to_owned())));
        assert!(matches!(&all.failover, Some(Ok((ms, events))) if *ms == 70.0 && events.len() == 1));
    }
}
