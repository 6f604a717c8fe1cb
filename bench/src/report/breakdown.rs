//! Where a protected run's time goes against an unprotected one's, row by row.

use std::fmt::Write;

use super::spent::Spent;
use super::{RowReport, Usage};

/// Exits that are told by their reason: so many of the most frequent.
const REASONS: usize = 3;

/// Two tables: the time of the primary's machine, and what the VMM did in it.
pub(super) fn write(text: &mut String, rows: &[RowReport]) -> std::fmt::Result {
    let turns = |row: &RowReport| {
        let both = [("unprotected", row.usage_alone.clone()), ("protected", row.usage.clone())];
        both.map(|(name, usage)| usage.map(|usage| (row.row.name(), name, usage)))
    };
    let turns: Vec<_> = rows.iter().flat_map(turns).flatten().collect();
    if turns.is_empty() {
        return Ok(());
    }
    writeln!(text, "## Where the time goes (the last turns)\n")?;
    writeln!(
        text,
        "Of the core of the primary and its clients, and of the backup's, in % of it: the vCPU thread in the guest, in the VMM and in the \
         kernel; the VMM's other threads; clients, the log's network and the rest; idle.\n"
    )?;
    writeln!(text, "| row | VM | guest | VMM | kernel | other threads | clients, rest | idle |")?;
    writeln!(text, "|---|---|---|---|---|---|---|---|")?;
    for (row, name, usage) in &turns {
        if let Some(spent) = &usage.spent {
            writeln!(text, "| {row} | {name} | {} |", shares(spent))?;
        }
        if let Some(spent) = &usage.backup_spent {
            writeln!(text, "| {row} | backup | {} |", shares(spent))?;
        }
    }
    writeln!(
        text,
        "\n| row | VM | exits/s | of these | frames/s | forced stops/s | pages, ms each | stops, % of the time | held back, % |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|")?;
    for (row, name, usage) in &turns {
        writeln!(text, "| {row} | {name} | {} |", work(usage))?;
    }
    writeln!(text)
}

fn shares(spent: &Spent) -> String {
    let Spent { guest, vmm, kernel, threads, others, idle } = spent;
    let shares = [guest, vmm, kernel, threads, others, idle];
    shares.map(|share| format!("{:.0}", share * 100.0)).join(" | ")
}

fn work(usage: &Usage) -> String {
    let mut reasons: Vec<_> = usage.exits_by_reason.iter().collect();
    reasons.sort_by(|one, other| other.1.total_cmp(one.1));
    let reasons: Vec<_> =
        reasons.iter().take(REASONS).map(|(reason, rate)| format!("{reason} {rate:.0}")).collect();
    let Usage { exits_per_s, frames_per_s, forced_stops_per_s, pages_per_stop, ms_per_stop, .. } = usage;
    let stops = forced_stops_per_s * ms_per_stop / 10.0;
    format!(
        "{exits_per_s:.0} | {} | {frames_per_s:.0} | {forced_stops_per_s:.1} | {pages_per_stop:.0}, {ms_per_stop:.1} | \
         {stops:.0} | {:.0}",
        reasons.join(", "),
        usage.held_back * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn both_turns_of_a_row_are_told_side_by_side() {
        let mut text = String::new();
        write(&mut text, &example().rows).unwrap();
        for part in [
            "| compile | unprotected | 80 | 5 | 10 | 0 | 3 | 2 |",
            "| compile | protected | 30 | 20 | 30 | 10 | 8 | 2 |",
            "| compile | backup | 25 | 15 | 0 | 0 | 0 | 60 |",
            "| compile | protected | 900 | pio 600, mmio 250, halt 50 | 300 | 12.0 | 40, 5.0 | 6 | 3 |",
        ] {
            assert!(text.contains(part), "{part}\nis not in\n{text}");
        }
    }

    #[test]
    fn without_turns_there_is_no_table() {
        let mut text = String::new();
        write(&mut text, &[]).unwrap();
        assert!(text.is_empty());
    }
}
