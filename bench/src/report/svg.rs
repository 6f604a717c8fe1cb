//! The pictures of a report.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{EMULATED, Report};

/// Of a picture, in pixels.
const PICTURE: (u32, u32) = (860, 420);
const OURS: RGBColor = RGBColor(31, 119, 180);
const PAPERS: RGBColor = RGBColor(170, 170, 170);

/// How high a bar is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    /// By the square root: the largest are a thousand times the least.
    Root,
}

/// A bar of ours beside one of the paper's; ours may be missing.
struct Pair {
    name: &'static str,
    ours: Option<f64>,
    papers: f64,
}

/// All pictures, by file name.
///
/// # Errors
/// When something cannot be drawn.
pub(super) fn all(report: &Report) -> Result<Vec<(String, String)>> {
    let subtitle = if report.emulated { format!(" ({EMULATED})") } else { String::new() };
    let pairs = |ours: fn(&super::RowReport) -> Option<f64>, papers: fn(&super::RowReport) -> f64| {
        let pair = |row| Pair { name: super::RowReport::name(row), ours: ours(row), papers: papers(row) };
        report.rows.iter().map(pair).collect::<Vec<_>>()
    };
    if report.bench == "peers" {
        let against = pairs(|row| row.solo_over_qemu.map(|ratio| ratio.median), |_| 1.0);
        let title = format!("Unprotected Tandem by QEMU with the same KVM{subtitle}");
        return Ok(vec![("peers-ratios.svg".to_owned(), bars(&title, "QEMU", &against, Scale::Linear)?)]);
    }
    let ratios = pairs(|row| row.ratio.map(|ratio| ratio.median), |row| row.paper.ratio);
    let logs = pairs(|row| row.log_mbit_s, |row| row.paper.log_mbit_s);
    Ok(vec![
        (
            "paper-ratios.svg".to_owned(),
            bars(&format!("Protected by unprotected{subtitle}"), "the paper", &ratios, Scale::Linear)?,
        ),
        (
            "paper-log.svg".to_owned(),
            bars(&format!("Log, Mbit/s{subtitle}"), "the paper", &logs, Scale::Root)?,
        ),
    ])
}

impl super::RowReport {
    fn name(&self) -> &'static str {
        self.row.name()
    }
}

/// Two bars for each row, with their figures above.
fn bars(title: &str, other: &str, pairs: &[Pair], scale: Scale) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, PICTURE).into_drawing_area();
        draw(&area, title, other, pairs, scale).map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(
    area: &Area<'_>,
    title: &str,
    other: &str,
    pairs: &[Pair],
    scale: Scale,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let (width, height) = (PICTURE.0 as i32, PICTURE.1 as i32);
    let style = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    let centred = |size: i32| style(size).pos(Pos::new(HPos::Center, VPos::Bottom));
    area.draw(&Text::new(title.to_owned(), (20, 14), style(18)))?;
    for (index, (name, colour)) in [("Tandem", OURS), (other, PAPERS)].into_iter().enumerate() {
        let top = 44 + 18 * index as i32;
        area.draw(&Rectangle::new([(20, top), (34, top + 12)], colour.filled()))?;
        area.draw(&Text::new(name.to_owned(), (40, top), style(13)))?;
    }
    let most = pairs
        .iter()
        .flat_map(|pair| [pair.papers, pair.ours.unwrap_or(0.0)])
        .fold(f64::MIN_POSITIVE, f64::max);
    let (bottom, room) = (height - 40, f64::from(height - 150));
    let step = (width - 40) / pairs.len().max(1) as i32;
    for (index, pair) in pairs.iter().enumerate() {
        let left = 20 + step * index as i32;
        let bar = step * 2 / 5;
        for (place, value, colour) in [(0, pair.ours, OURS), (1, Some(pair.papers), PAPERS)] {
            let from = left + step / 10 + place * bar;
            let (top, label) = match value {
                Some(value) => {
                    let share = value / most;
                    let share = if scale == Scale::Root { share.sqrt() } else { share };
                    (bottom - (share * room) as i32, figure(value))
                }
                None => (bottom, "no figure".to_owned()),
            };
            area.draw(&Rectangle::new([(from, top), (from + bar - 4, bottom)], colour.filled()))?;
            area.draw(&Text::new(label, (from + bar / 2, top - 3), centred(12)))?;
        }
        area.draw(&Text::new(pair.name.to_owned(), (left + step / 2, height - 14), centred(14)))?;
    }
    area.draw(&PathElement::new([(20, bottom), (width - 20, bottom)], BLACK))?;
    if scale == Scale::Root {
        area.draw(&Text::new("bars: scale by the square root".to_owned(), (width - 200, 44), style(11)))?;
    }
    area.present()?;
    Ok(())
}

fn figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn a_picture_has_a_bar_and_a_figure_for_each_row() {
        let pictures = all(&example()).unwrap();
        let names: Vec<_> = pictures.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["paper-ratios.svg", "paper-log.svg"]);
        let (_, ratios) = &pictures[0];
        for part in
            ["<svg", "</svg>", "compile", "receive", "0.75", "0.95", "no figure", "inside software emulation"]
        {
            assert!(ratios.contains(part), "{part}");
        }
        // Two bars a row, two of the legend, and the background.
        assert_eq!(ratios.matches("<rect").count(), 3 * 2 + 2 + 1);
    }

    #[test]
    fn a_report_without_rows_is_a_picture_without_bars() {
        let mut report = example();
        report.rows.clear();
        report.bench = "peers";
        let pictures = all(&report).unwrap();
        assert_eq!(pictures.len(), 1);
        assert!(pictures[0].1.contains("</svg>"));
    }
}
