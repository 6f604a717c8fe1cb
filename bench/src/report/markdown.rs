//! A report to read.

use std::fmt::Write;

use super::stats::Spread;
use super::{EMULATED, Report, RowReport, breakdown};

/// The whole text; `pictures` are files beside it.
pub(super) fn render(report: &Report, pictures: &[String]) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, report, pictures);
    text
}

fn write(text: &mut String, report: &Report, pictures: &[String]) -> std::fmt::Result {
    let host = &report.host;
    writeln!(text, "# tandem-bench {}\n", report.bench)?;
    if report.emulated {
        writeln!(text, "**{EMULATED}.** Rates, Mbit/s and times below are those of an emulated CPU.\n")?;
    }
    writeln!(
        text,
        "- machine: {}, {} CPUs; Linux {}; KVM: {}",
        host.machine, host.cpus, host.kernel, host.kvm
    )?;
    writeln!(text, "- Tandem {}; {}", host.tandem, host.qemu.as_deref().unwrap_or("no QEMU"))?;
    writeln!(text, "- {} run\n", if report.quick { "quick" } else { "full" })?;
    for number in [1, 2] {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.paper.table == number).collect();
        if rows.is_empty() {
            continue;
        }
        writeln!(text, "## Table {number} of the paper\n")?;
        writeln!(
            text,
            "| the paper's workload | ours | unprotected | protected | ratio | the paper's | difference | log Mbit/s | the paper's |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|---|---|---|")?;
        for row in &rows {
            line(text, row)?;
        }
        writeln!(text)?;
        reasons(text, rows.iter().map(|row| (row.paper.workload, row.reason.as_deref())))?;
    }
    costs(text, &report.rows)?;
    breakdown::write(text, &report.rows)?;
    against_qemu(text, &report.rows)?;
    peers(text, report)?;
    writeln!(text, "## Idle and failover\n")?;
    match (report.idle_log_mbit_s, &report.idle_reason) {
        (Some(rate), _) => {
            writeln!(text, "- log of an idle guest: {rate:.3} Mbit/s (the paper: 0.5 to 1.5)")?;
        }
        (None, reason) => writeln!(text, "- idle log: {}", reason.as_deref().unwrap_or("not asked for"))?,
    }
    match (&report.failover, &report.failover_reason) {
        (Some(failover), _) => {
            writeln!(
                text,
                "- failover: {:.0} ms from the primary's SIGKILL until the backup runs the VM",
                failover.ms
            )?;
            for event in &failover.events {
                writeln!(text, "  - {:.1} ms: {}", event.ms, event.text)?;
            }
        }
        (None, reason) => writeln!(text, "- failover: {}", reason.as_deref().unwrap_or("not asked for"))?,
    }
    if !pictures.is_empty() {
        writeln!(text)?;
    }
    for picture in pictures {
        writeln!(text, "![{picture}]({picture})")?;
    }
    if !report.packages.is_empty() {
        writeln!(text, "\n## The guest's software\n\n{}", report.packages.join(", "))?;
    }
    Ok(())
}

fn line(text: &mut String, row: &RowReport) -> std::fmt::Result {
    let difference = row.ratio_difference.map_or_else(none, |value| format!("{value:+.2}"));
    writeln!(
        text,
        "| {} | {} | {} | {} | {} | {:.2} | {difference} | {} | {} |",
        row.paper.workload,
        row.stand_in,
        rate(row.alone, row.unit),
        rate(row.pair, row.unit),
        spread(row.ratio),
        row.paper.ratio,
        row.log_mbit_s.map_or_else(none, |value| format!("{value:.2}")),
        row.paper.log_mbit_s
    )
}

fn costs(text: &mut String, rows: &[RowReport]) -> std::fmt::Result {
    if rows.iter().all(|row| row.usage.is_none()) {
        return Ok(());
    }
    writeln!(text, "## What protection does, row by row (the last protected turn)\n")?;
    writeln!(
        text,
        "| row | log by kind, Mbit/s | output delay p50 / p99, µs | forced stops/s | exits/s | lag, ms | CPU of primary / backup / alone |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for row in rows {
        let Some(usage) = &row.usage else { continue };
        let kinds: Vec<_> =
            usage.log_by_kind.iter().map(|(kind, rate)| format!("{kind} {rate:.2}")).collect();
        let number = |value: Option<f64>| value.map_or_else(none, |value| format!("{value:.0}"));
        let cpu = |value: Option<f64>| value.map_or_else(none, |value| format!("{value:.2}"));
        writeln!(
            text,
            "| {} | {} | {} / {} | {:.1} | {:.0} | {} | {} / {} / {} |",
            row.row.name(),
            kinds.join(", "),
            number(usage.output_delay_us_p50),
            number(usage.output_delay_us_p99),
            usage.forced_stops_per_s,
            usage.exits_per_s,
            number(usage.lag_ms),
            cpu(usage.primary_cpu),
            cpu(usage.backup_cpu),
            cpu(row.usage_alone.as_ref().and_then(|usage| usage.primary_cpu)),
        )?;
    }
    writeln!(text)
}

fn against_qemu(text: &mut String, rows: &[RowReport]) -> std::fmt::Result {
    if rows.iter().all(|row| row.qemu.is_none() && row.reason_qemu.is_none()) {
        return Ok(());
    }
    writeln!(text, "## Unprotected, against QEMU with the same KVM\n")?;
    if rows.iter().any(|row| row.qemu.is_some()) {
        writeln!(
            text,
            "| row | QEMU | Tandem | Tandem / QEMU | Tandem, on QEMU's clock | / QEMU |\n|---|---|---|---|---|---|"
        )?;
    }
    for row in rows {
        if row.qemu.is_some() {
            let (name, unit) = (row.row.name(), row.unit);
            writeln!(
                text,
                "| {name} | {} | {} | {} | {} | {} |",
                rate(row.qemu, unit),
                rate(row.alone, unit),
                spread(row.solo_over_qemu),
                rate(row.same_clock, unit),
                spread(row.same_clock_over_qemu)
            )?;
        }
    }
    writeln!(text)?;
    reasons(text, rows.iter().map(|row| (row.row.name(), row.reason_qemu.as_deref())))
}

/// Why figures are missing: each reason once, with the names of all that it is about.
fn reasons<'a>(
    text: &mut String,
    named: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> std::fmt::Result {
    let mut told: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, reason) in named {
        let Some(reason) = reason else { continue };
        match told.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(name),
            None => told.push((reason, vec![name])),
        }
    }
    for (reason, names) in told {
        writeln!(text, "{}: {reason}\n", names.join(", "))?;
    }
    Ok(())
}

fn peers(text: &mut String, report: &Report) -> std::fmt::Result {
    if report.peers.is_empty() {
        return Ok(());
    }
    writeln!(text, "## Peers\n")?;
    for peer in &report.peers {
        let figures: Vec<_> = peer.figures.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        let told = if figures.is_empty() { "no figure".to_owned() } else { figures.join(", ") };
        let reason = peer.reason.as_deref().map_or_else(String::new, |reason| format!(" ({reason})"));
        writeln!(text, "- {} on {}: {told}{reason}", peer.name, peer.version)?;
    }
    writeln!(text)
}

fn none() -> String {
    "–".to_owned()
}

fn rate(rate: Option<Spread>, unit: &str) -> String {
    rate.map_or_else(none, |rate| format!("{} {unit}", short(rate.median)))
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(none, |spread| {
        format!("{:.2} ({:.2} to {:.2}, n = {})", spread.median, spread.least, spread.most, spread.turns)
    })
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn the_text_has_every_row_its_figures_and_its_reasons() {
        let text = render(&example(), &["paper-ratios.svg".to_owned()]);
        for part in [
            "**inside software emulation: ratios only.**",
            "- machine: a machine, 2 CPUs; Linux 7.3; KVM: kvm_amd, nested paging",
            "| kernel compile | Lua 5.4 compiled, archived and linked by tcc and make, on ext4 | 0.400 rounds/s | \
             0.300 rounds/s | 0.75 (0.68 to 0.83, n = 3) | 0.95 | -0.20 | 4.50 | 3 |",
            "SPECjbb2005: the time for this run was up",
            "## Table 2 of the paper",
            "| compile | disk 3.00, forced_stop 1.50 | 500 / 900 | 12.0 | 900 | 40 | 0.90 / 0.80 / – |",
            "| compile | 0.400 rounds/s | 0.400 rounds/s | 1.00 (0.90 to 1.10, n = 3) |",
            "- qemu-colo on QEMU 10: no figure (no such option)",
            "- log of an idle guest: 0.200 Mbit/s (the paper: 0.5 to 1.5)",
            "  - 0.0 ms: peer silent",
            "![paper-ratios.svg](paper-ratios.svg)",
        ] {
            assert!(text.contains(part), "{part}\nis not in\n{text}");
        }
    }

    #[test]
    fn a_reason_is_told_once_for_all_that_it_is_about() {
        let mut text = String::new();
        let named = [("a", Some("late")), ("b", None), ("c", Some("early")), ("d", Some("late"))];
        reasons(&mut text, named.into_iter()).unwrap();
        assert_eq!(text, "a, d: late\n\nc: early\n\n");
    }

    #[test]
    fn on_hardware_nothing_is_said_of_emulation() {
        let mut report = example();
        report.emulated = false;
        assert!(!render(&report, &[]).contains("emulation"));
    }
}
