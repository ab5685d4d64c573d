//! What podmesh promises, mostly as ratios to others in the same run.

use std::fmt::Write as _;

use crate::ground::LinkMode;
use crate::report::Report;

/// A figure, alone or as a ratio to another one, and what it has to be.
struct Bar {
    link: LinkMode,
    figure: (&'static str, &'static str),
    /// One if absent.
    against: Option<(&'static str, &'static str)>,
    bound: Bound,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Bound::{AtLeast, AtMost};

/// podmesh, and podmesh with the tunnel that seals in batches.
const OWN: [&str; 2] = ["podmesh", "podmesh-wide"];

fn bars(own: &'static str) -> Vec<Bar> {
    let alone = |figure, bound| Bar {
        link: LinkMode::Whole,
        figure: (own, figure),
        against: None,
        bound,
    };
    let bar = |figure, against, bound| Bar {
        against: Some(against),
        ..alone(figure, bound)
    };
    vec![
        bar("tcp1_gbps", ("boringtun", "tcp1_gbps"), AtLeast(7.0)),
        bar("tcp1_gbps", ("gotatun", "tcp1_gbps"), AtLeast(4.5)),
        bar("tcp1_gbps", ("pipe", "tcp1_gbps"), AtLeast(0.45)),
        bar("tcp4_gbps", (own, "tcp1_gbps"), AtLeast(0.9)),
        bar("tcp1_reverse_gbps", (own, "tcp1_gbps"), AtLeast(0.8)),
        bar("pods_gbps", (own, "tcp1_gbps"), AtLeast(0.85)),
        bar("cpu_s_per_gb", ("pipe", "cpu_s_per_gb"), AtMost(2.75)),
        bar("cpu_s_per_gb", ("boringtun", "cpu_s_per_gb"), AtMost(0.17)),
        Bar {
            link: LinkMode::Wire,
            ..bar("cpu_s_per_gb", ("pipe", "cpu_s_per_gb"), AtMost(1.7))
        },
        bar("rtt_idle_ms", ("boringtun", "rtt_idle_ms"), AtMost(1.15)),
        bar("rtt_load_ms", ("boringtun", "rtt_load_ms"), AtMost(0.7)),
        bar("rtt_beside_ms", ("boringtun", "rtt_beside_ms"), AtMost(0.7)),
        bar(
            "udp1300_flood_kpps",
            (own, "udp1300_free_kpps"),
            AtLeast(0.8),
        ),
        bar("udp64_flood_kpps", (own, "udp64_free_kpps"), AtLeast(0.8)),
        bar("udp64_free_kpps", ("pipe", "udp64_free_kpps"), AtLeast(0.8)),
        bar(
            "udp64_free_kpps",
            ("boringtun", "udp64_free_kpps"),
            AtLeast(1.0),
        ),
        alone("flood_answered_pct", AtLeast(95.0)),
        alone("rss_mib", AtMost(24.0)),
    ]
}

/// One line per promise that this report can tell something about.
pub(crate) fn verdicts(report: &Report) -> String {
    let mut text = String::new();
    let bars = OWN.into_iter().flat_map(bars);
    for bar in bars.filter(|bar| bar.link == report.mode()) {
        let median = |(system, figure)| report.figure(system, figure).map(|spread| spread.median);
        let (Some(own), Some(other)) = (median(bar.figure), bar.against.map_or(Some(1.0), median))
        else {
            continue;
        };
        let ratio = own / other;
        let (kept, sign, bound) = match bar.bound {
            AtLeast(bound) => (ratio >= bound, ">=", bound),
            AtMost(bound) => (ratio <= bound, "<=", bound),
        };
        let word = if kept { "ok  " } else { "MISS" };
        let against = bar
            .against
            .map(|(system, figure)| format!(" / {system} {figure}"));
        let against = against.unwrap_or_default();
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{word} {} {}{against} = {ratio:.3} ({sign} {bound})",
            bar.figure.0, bar.figure.1
        );
    }
    text
}
