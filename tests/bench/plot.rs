//! The picture in the README: one bar per system, twice.

use std::fmt::Write as _;

use crate::report::Report;

const WIDTH: f64 = 760.0;
const ROW: f64 = 24.0;
const LABEL: f64 = 110.0;
const PANEL: f64 = 250.0;
const TOP: f64 = 46.0;

/// Draws what one stream reaches, and what it costs.
pub(crate) fn draw(report: &Report) -> String {
    let rates = report.ranking("tcp1_gbps");
    let costs = report.ranking("cpu_s_per_gb");
    let height = TOP + ROW * rows(rates.len()) + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    panel(&mut svg, 0.0, "one TCP stream, Gbit/s", &rates);
    panel(
        &mut svg,
        WIDTH / 2.0,
        "CPU seconds per GB, both ends",
        &costs,
    );
    // Writing to a String can't fail.
    let _ = writeln!(
        svg,
        "<text x=\"10\" y=\"{}\" fill=\"#666\">medians; both ends share the machine; link: {}; \
         raw, vxlan and pipe do not encrypt</text>\n</svg>",
        height - 10.0,
        report.mode()
    );
    svg
}

fn panel(svg: &mut String, left: f64, title: &str, values: &[(&str, f64)]) {
    let most = values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"24\" font-weight=\"bold\">{title}</text>",
        left + 10.0
    );
    for (row, (name, value)) in values.iter().enumerate() {
        let y = TOP + ROW * rows(row);
        let width = (PANEL - 50.0) * value / most.max(f64::MIN_POSITIVE);
        let fill = if name.starts_with("podmesh") {
            "#0a7d55"
        } else {
            "#9aa5b1"
        };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{}\" y=\"{y}\" width=\"{width:.1}\" height=\"16\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{value:.2}</text>",
            left + LABEL - 8.0,
            y + 12.0,
            left + LABEL,
            left + LABEL + width + 5.0,
            y + 12.0,
        );
    }
}

fn rows(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
