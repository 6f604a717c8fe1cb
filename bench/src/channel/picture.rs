//! The picture of the output delay: for each load a bar of its stages, and the bare round trip as a line.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::output::Row;

const WIDTH: i32 = 900;
/// Left of the bars, for their names.
const MARGIN: i32 = 130;
/// Right of the bars, for their sums.
const SUMS: i32 = 70;
const BAR: i32 = 34;
const STEP: i32 = 60;
const TOP: i32 = 96;

/// One colour for each stage, in their order; for eyes that see few colours too.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x44, 0x77, 0xaa),
    RGBColor(0x66, 0xcc, 0xee),
    RGBColor(0x22, 0x88, 0x33),
    RGBColor(0xcc, 0xbb, 0x44),
    RGBColor(0xee, 0x66, 0x77),
    RGBColor(0xbb, 0xbb, 0xbb),
    RGBColor(0xaa, 0x33, 0x77),
];

/// One line of the picture.
struct Bar {
    name: String,
    /// Of each stage, in µs.
    stages: Vec<f64>,
    rtt_us: f64,
}

/// SVG of the medians of all stages and, below each, of the stages' 99th percentiles.
///
/// # Errors
/// When something cannot be drawn.
pub(super) fn svg(rows: &[Row]) -> Result<String> {
    let bars: Vec<Bar> = rows
        .iter()
        .flat_map(|row| {
            let name = format!("{} client{}", row.clients, if row.clients == 1 { "" } else { "s" });
            let bar = |percentile, stages| Bar {
                name: format!("{name}, {percentile}"),
                stages,
                rtt_us: row.rtt_us,
            };
            [
                bar("p50", row.stages.iter().map(|stage| stage.p50_us).collect()),
                bar("p99", row.stages.iter().map(|stage| stage.p99_us).collect()),
            ]
        })
        .collect();
    let stages = rows.first().map_or(&[][..], |row| &row.stages);
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    let height = TOP + STEP * bars.len() as i32 + 10;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH as u32, height as u32)).into_drawing_area();
        draw(&area, &names, &bars).map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(text)
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    stages: &[&str],
    bars: &[Bar],
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let text = |words: &str, at: (i32, i32), size: i32| {
        Text::new(words.to_owned(), at, ("sans-serif", size).into_font().color(&BLACK))
    };
    area.draw(&text("From the guest's kick until the output has left, in µs", (12, 10), 17))?;
    area.draw(&text("Percentiles stage by stage, side by side; dashed: the bare round trip", (12, 34), 13))?;
    for (index, stage) in stages.iter().enumerate() {
        let left = 12 + 110 * index as i32;
        area.draw(&Rectangle::new([(left, 60), (left + 14, 74)], colour(index).filled()))?;
        area.draw(&text(stage, (left + 20, 61), 13))?;
    }
    let longest = bars.iter().map(|bar| bar.stages.iter().sum::<f64>().max(bar.rtt_us)).fold(1.0, f64::max);
    let pixels = |us: f64| MARGIN + (us / longest * f64::from(WIDTH - MARGIN - SUMS)).round() as i32;
    for (index, bar) in bars.iter().enumerate() {
        let top = TOP + STEP * index as i32;
        area.draw(&text(&bar.name, (12, top + 10), 13))?;
        let mut sum = 0.0;
        for (stage, span) in bar.stages.iter().enumerate() {
            let corners = [(pixels(sum), top), (pixels(sum + span), top + BAR)];
            area.draw(&Rectangle::new(corners, colour(stage).filled()))?;
            sum += span;
        }
        area.draw(&text(&format!("{sum:.0}"), (pixels(sum) + 6, top + 10), 13))?;
        let line = [(pixels(bar.rtt_us), top - 6), (pixels(bar.rtt_us), top + BAR + 6)];
        area.draw(&DashedPathElement::new(line, 4, 4, BLACK))?;
    }
    area.present()?;
    Ok(())
}

const fn colour(stage: usize) -> RGBColor {
    COLOURS[stage % COLOURS.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_vmm::host::control::OutputStage;

    #[test]
    fn a_bar_has_a_part_for_each_stage_its_sum_and_the_round_trip() {
        let stage = |name: &str, p50_us, p99_us| OutputStage { name: name.to_owned(), p50_us, p99_us };
        let stages = vec![stage("capture", 10.0, 20.0), stage("wire", 30.0, 81.0)];
        let row = Row { clients: 1, rtt_us: 50.0, stages, ..Row::default() };
        let picture = svg(&[row]).unwrap();
        for part in
            ["<svg", "</svg>", "capture", "wire", "1 client, p50", "1 client, p99", "\n40\n", "\n101\n"]
        {
            assert!(picture.contains(part), "{part}: {picture}");
        }
        // The background, the legend, and two bars of two stages each.
        assert_eq!(picture.matches("<rect").count(), 1 + 2 + 2 * 2);
        assert!(picture.contains("<line") || picture.contains("<polyline") || picture.contains("<path"));
    }

    #[test]
    fn nothing_measured_is_a_picture_without_bars() {
        assert!(svg(&[]).unwrap().contains("</svg>"));
    }
}
