//! What a run found, as JSON, as Markdown and as pictures.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

mod breakdown;
pub(crate) mod host;
mod markdown;
mod row;
pub(crate) mod spent;
pub(crate) mod stats;
mod svg;
mod usage;

pub(crate) use row::{Paper, Row};
use stats::Spread;
pub(crate) use usage::Usage;

/// A figure, or why there is none.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RowReport {
    /// Which row.
    pub(crate) row: Row,
    /// What runs.
    pub(crate) stand_in: &'static str,
    /// What is counted.
    pub(crate) unit: &'static str,
    /// Of the same VM alone.
    pub(crate) alone: Option<Spread>,
    /// Of the protected pair.
    pub(crate) pair: Option<Spread>,
    /// Of QEMU with the same KVM.
    pub(crate) qemu: Option<Spread>,
    /// Protected by unprotected.
    pub(crate) ratio: Option<Spread>,
    /// Unprotected by QEMU.
    pub(crate) solo_over_qemu: Option<Spread>,
    /// Of the same VM alone with a guest that has the clock of QEMU's.
    pub(crate) same_clock: Option<Spread>,
    /// That by QEMU: the VMMs without their guests' clocks.
    pub(crate) same_clock_over_qemu: Option<Spread>,
    /// Of the log, in Mbit/s.
    pub(crate) log_mbit_s: Option<f64>,
    /// What the paper has.
    pub(crate) paper: Paper,
    /// Ours less the paper's.
    pub(crate) ratio_difference: Option<f64>,
    /// Ours less the paper's.
    pub(crate) log_difference: Option<f64>,
    /// The last protected turn.
    pub(crate) usage: Option<Usage>,
    /// The last unprotected turn.
    pub(crate) usage_alone: Option<Usage>,
    /// Why something of the above is missing.
    pub(crate) reason: Option<String>,
    /// Why the figure against QEMU is missing.
    pub(crate) reason_qemu: Option<String>,
}

/// Something that the backup logged after its primary was killed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Milliseconds after the first of them.
    pub(crate) ms: f64,
    /// What it says.
    pub(crate) text: String,
}

/// A take-over.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failover {
    /// From the primary's SIGKILL until the backup was found to run the VM, in ms.
    pub(crate) ms: f64,
    /// What the backup logged meanwhile.
    pub(crate) events: Vec<Event>,
}

/// Another system's figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// "qemu-icount", "qemu-colo".
    pub(crate) name: String,
    /// What it says its version is.
    pub(crate) version: String,
    /// What was measured, by name.
    pub(crate) figures: BTreeMap<String, f64>,
    /// Why there is nothing, or what is missing.
    pub(crate) reason: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// "paper" or "peers".
    pub(crate) bench: &'static str,
    /// Where and with what.
    pub(crate) host: host::Facts,
    /// Whether times say nothing about hardware.
    pub(crate) emulated: bool,
    /// Whether the run was a short one.
    pub(crate) quick: bool,
    /// The rows asked for.
    pub(crate) rows: Vec<RowReport>,
    /// The log of an idle guest, in Mbit/s.
    pub(crate) idle_log_mbit_s: Option<f64>,
    /// Why it is missing.
    pub(crate) idle_reason: Option<String>,
    /// A take-over at the end.
    pub(crate) failover: Option<Failover>,
    /// Why it is missing.
    pub(crate) failover_reason: Option<String>,
    /// Other systems.
    pub(crate) peers: Vec<Peer>,
    /// Versions of the guest's software.
    pub(crate) packages: Vec<String>,
}

/// Said wherever it is so.
pub(crate) const EMULATED: &str = "inside software emulation: ratios only";

/// The figures that issue and paper ask for.
pub(crate) const RATIO: f64 = 0.95;

impl RowReport {
    /// The ratio is there and reached.
    pub(crate) fn holds(&self) -> Option<bool> {
        Some(self.ratio?.median >= if self.paper.table == 1 { RATIO } else { self.paper.ratio })
    }

    /// Which of the row's figures are there and not reached, by name.
    fn missed(&self) -> impl Iterator<Item = String> {
        let figures = [
            ("ratio", self.holds()),
            ("log_mbit_s", self.log_mbit_s.map(|log| log <= self.paper.log_mbit_s)),
            ("solo_over_qemu", self.solo_over_qemu.map(|ratio| ratio.median >= RATIO)),
        ];
        let row = self.row.name();
        figures
            .into_iter()
            .filter(|(_, holds)| *holds == Some(false))
            .map(move |(name, _)| format!("{row} {name}"))
    }
}

impl Report {
    /// The one line of JSON that a run ends with: every figure by name, null with a reason where there is none.
    pub(crate) fn line(&self) -> serde_json::Value {
        let row = |row: &RowReport| {
            serde_json::json!({
                "row": row.row.name(), "ratio": row.ratio.map(|ratio| ratio.median),
                "ratio_spread": row.ratio.map(|ratio| [ratio.least, ratio.most]), "log_mbit_s": row.log_mbit_s,
                "paper_ratio": row.paper.ratio, "paper_log_mbit_s": row.paper.log_mbit_s,
                "ratio_difference": row.ratio_difference, "reason": row.reason,
            })
        };
        let table = |number: u8| -> serde_json::Map<String, serde_json::Value> {
            let rows = self.rows.iter().filter(|one| one.paper.table == number);
            rows.map(|one| (one.paper.workload.to_owned(), row(one))).collect()
        };
        let against_qemu: Vec<_> = self.rows.iter().filter_map(|row| row.solo_over_qemu).collect();
        let why_not: BTreeSet<_> = self.rows.iter().filter_map(|row| row.reason_qemu.as_deref()).collect();
        let why_not =
            if why_not.is_empty() { "not asked for".to_owned() } else { Vec::from_iter(why_not).join("; ") };
        serde_json::json!({
            "bench": self.bench, "emulated": self.emulated, "quick": self.quick,
            "note": self.emulated.then_some(EMULATED),
            "table1": table(1), "table2": table(2),
            // The least: each row is to reach it.
            "solo_over_qemu": Spread::of(against_qemu.iter().map(|ratio| ratio.median)).map(|all| all.least),
            "solo_over_qemu_reason": against_qemu.is_empty().then_some(why_not),
            "solo_over_qemu_rows": self.rows.iter().filter_map(|row| Some((row.row.name(), row.solo_over_qemu?.median)))
                .collect::<BTreeMap<_, _>>(),
            "same_clock_over_qemu_rows": self.rows.iter()
                .filter_map(|row| Some((row.row.name(), row.same_clock_over_qemu?.median))).collect::<BTreeMap<_, _>>(),
            "idle_log_mbit_s": self.idle_log_mbit_s, "idle_reason": self.idle_reason,
            "failover_ms": self.failover.as_ref().map(|failover| failover.ms), "failover_reason": self.failover_reason,
            "peers": self.peers,
            "missed": self.rows.iter().flat_map(RowReport::missed).collect::<Vec<_>>(),
        })
    }

    /// Writes `NAME.json`, `NAME.md` and the pictures into a directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let pictures = svg::all(self)?;
        let names: Vec<_> = pictures.iter().map(|(name, _)| name.clone()).collect();
        let mut files = vec![
            (format!("{}.json", self.bench), serde_json::to_string_pretty(self)?),
            (format!("{}.md", self.bench), markdown::render(self, &names)),
        ];
        files.extend(pictures);
        for (name, text) in files {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::spent::Spent;
    use super::*;

    /// A report with one row of each sort: measured, partly, not at all.
    pub(crate) fn example() -> Report {
        let spread = |median: f64| Spread { median, least: median * 0.9, most: median * 1.1, turns: 3 };
        let empty = |row: Row| RowReport {
            row,
            stand_in: row.stand_in(),
            unit: row.unit(),
            alone: None,
            pair: None,
            qemu: None,
            ratio: None,
            solo_over_qemu: None,
            same_clock: None,
            same_clock_over_qemu: None,
            log_mbit_s: None,
            paper: row.paper(),
            ratio_difference: None,
            log_difference: None,
            usage: None,
            usage_alone: None,
            reason: Some("the time for this run was up".to_owned()),
            reason_qemu: None,
        };
        let mut compile = empty(Row::Compile);
        compile.alone = Some(spread(0.4));
        compile.pair = Some(spread(0.3));
        compile.qemu = Some(spread(0.4));
        compile.ratio = Some(spread(0.75));
        compile.solo_over_qemu = Some(spread(1.0));
        compile.log_mbit_s = Some(4.5);
        compile.ratio_difference = Some(-0.2);
        compile.log_difference = Some(1.5);
        compile.usage = Some(Usage {
            log_by_kind: [("disk".to_owned(), 3.0), ("forced_stop".to_owned(), 1.5)].into(),
            forced_stops_per_s: 12.0,
            pages_per_stop: 40.0,
            ms_per_stop: 5.0,
            frames_per_s: 300.0,
            held_back: 0.03,
            exits_per_s: 900.0,
            exits_by_reason: [("pio", 600.0), ("halt", 50.0), ("mmio", 250.0), ("cpuid", 10.0)]
                .map(|(reason, rate)| (reason.to_owned(), rate))
                .into(),
            spent: Some(Spent { guest: 0.3, vmm: 0.2, kernel: 0.3, threads: 0.1, others: 0.08, idle: 0.02 }),
            backup_spent: Some(Spent { guest: 0.25, vmm: 0.15, idle: 0.6, ..Spent::default() }),
            lag_ms: Some(40.0),
            output_delay_us_p50: Some(500.0),
            output_delay_us_p99: Some(900.0),
            primary_cpu: Some(0.9),
            backup_cpu: Some(0.8),
            ..Usage::default()
        });
        let spent = Spent { guest: 0.8, vmm: 0.05, kernel: 0.1, threads: 0.0, others: 0.03, idle: 0.02 };
        compile.usage_alone = Some(Usage { exits_per_s: 800.0, spent: Some(spent), ..Usage::default() });
        compile.reason = None;
        Report {
            bench: "paper",
            host: host::Facts {
                machine: "a machine".to_owned(),
                cpus: 2,
                kernel: "7.3".to_owned(),
                kvm: "kvm_amd, nested paging".to_owned(),
                qemu: Some("10.0.2".to_owned()),
                tandem: "0.1.0".to_owned(),
            },
            emulated: true,
            quick: true,
            rows: vec![empty(Row::Jvm), compile, empty(Row::Receive)],
            idle_log_mbit_s: Some(0.2),
            idle_reason: None,
            failover: Some(Failover {
                ms: 900.0,
                events: vec![Event { ms: 0.0, text: "peer silent".to_owned() }],
            }),
            failover_reason: None,
            peers: vec![Peer {
                name: "qemu-colo".to_owned(),
                version: "QEMU 10".to_owned(),
                figures: BTreeMap::new(),
                reason: Some("no such option".to_owned()),
            }],
            packages: vec!["nginx 1.22".to_owned()],
        }
    }

    #[test]
    fn the_line_has_every_figure_by_name_and_a_reason_for_each_null() {
        let line = example().line();
        assert_eq!(line["table1"]["kernel compile"]["ratio"], 0.75);
        assert_eq!(line["table1"]["kernel compile"]["log_mbit_s"], 4.5);
        assert_eq!(line["table1"]["SPECjbb2005"]["ratio"], serde_json::Value::Null);
        assert_eq!(line["table1"]["SPECjbb2005"]["reason"], "the time for this run was up");
        assert!(line["table2"]["netperf receive, 10 Gb channel"].is_object());
        assert_eq!(line["solo_over_qemu"], 1.0);
        assert_eq!(line["missed"], serde_json::json!(["compile ratio", "compile log_mbit_s"]));
        assert_eq!(line["note"], EMULATED);
        assert!(!serde_json::to_string(&line).unwrap().contains('\n'));
    }

    #[test]
    fn the_worst_row_counts_against_qemu() {
        let mut report = example();
        report.rows[0].solo_over_qemu = Some(Spread { median: 0.9, least: 0.8, most: 1.2, turns: 3 });
        let line = report.line();
        assert_eq!(line["solo_over_qemu"], 0.9);
        assert_eq!(line["missed"][0], "jvm solo_over_qemu");
    }

    #[test]
    fn all_files_are_written_into_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        example().write(&dir.path().join("new")).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path().join("new"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["paper-log.svg", "paper-ratios.svg", "paper.json", "paper.md"]);
    }
}
