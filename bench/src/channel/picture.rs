//! The picture of the output delay: for each load a bar of its stages, and the bare round trip as a line.

use std::fmt::Write as _;

use super::output::Row;

const WIDTH: f64 = 900.0;
/// Left of the bars, for their names.
const MARGIN: f64 = 130.0;
const BAR: f64 = 34.0;
const STEP: f64 = 60.0;
const TOP: f64 = 96.0;

/// One colour for each stage, in their order; for eyes that see few colours too.
const COLOURS: [&str; 7] = ["#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#bbbbbb", "#aa3377"];

/// SVG of the medians of all stages and, below each, of the stages' 99th percentiles.
pub(super) fn svg(rows: &[Row]) -> String {
    let bars: Vec<(String, Vec<f64>, f64)> = rows
        .iter()
        .flat_map(|row| {
            let name = format!("{} client{}", row.clients, if row.clients == 1 { "" } else { "s" });
            let half = row.stages.iter().map(|stage| stage.p50_us).collect();
            let tail = row.stages.iter().map(|stage| stage.p99_us).collect();
            [(format!("{name}, p50"), half, row.rtt_us), (format!("{name}, p99"), tail, row.rtt_us)]
        })
        .collect();
    let longest =
        bars.iter().map(|(_, stages, rtt)| stages.iter().sum::<f64>().max(*rtt)).fold(1.0, f64::max);
    let scale = (WIDTH - MARGIN - 70.0) / longest;
    let height = TOP + STEP * bars.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"16\">From the guest's kick until the output has left, in µs</text>\n\
         <text x=\"12\" y=\"44\">Percentiles stage by stage, side by side; dashed: the bare round trip</text>\n"
    );
    // Writing to a string does not fail.
    for (index, stage) in rows.first().map_or(&[][..], |row| &row.stages).iter().enumerate() {
        let x = 12.0 + 110.0 * index as f64;
        let colour = COLOURS[index % COLOURS.len()];
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"60\" width=\"14\" height=\"14\" fill=\"{colour}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"72\">{}</text>", x + 20.0, stage.name);
    }
    for (index, (name, stages, rtt)) in bars.iter().enumerate() {
        let y = TOP + STEP * index as f64;
        let _ = writeln!(svg, "<text x=\"12\" y=\"{}\">{name}</text>", y + 22.0);
        let mut x = MARGIN;
        for (stage, span) in stages.iter().enumerate() {
            let (width, colour) = (span * scale, COLOURS[stage % COLOURS.len()]);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
            );
            x += width;
        }
        let sum: f64 = stages.iter().sum();
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{}\">{sum:.0}</text>", x + 6.0, y + 22.0);
        let (at, from, to) = (MARGIN + rtt * scale, y - 6.0, y + BAR + 6.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{from}\" y2=\"{to}\" stroke=\"black\" stroke-dasharray=\"4\"/>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}
