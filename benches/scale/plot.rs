//! Plots on two logarithmic axes, as SVG.

use std::fmt::Write;
use std::path::Path;

use crate::measures::*;
use crate::report::{FLOOR_NAME, Results, thousands};
use crate::save;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 4] = ["#1b6ca8", "#c0392b", "#7f8c8d", "#27813a"];

struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A file for each of what grows with the network.
pub fn write(results: &Results, dir: &Path) {
    let plots = [
        ("cold-join", "Cold join: exec to last route, ms", JOIN_ROUTES),
        ("restart", "Warm restart: exec to READY, ms", RESTART_READY),
        ("cpu", "Cold join: CPU, ms", JOIN_CPU),
        ("rss", "RSS after the join, MiB", RSS),
        ("calls", "Cold join: calls to etcd", JOIN_CALLS),
        ("events", "Route after etcd's watch event, p99, ms", EVENT_99),
    ];
    for (file, title, measure) in plots {
        let mut lines: Vec<Line> = results.names().iter().map(|who| line(results, who, measure)).collect();
        if measure == JOIN_ROUTES {
            lines.push(floor(results));
        }
        lines.retain(|line| !line.points.is_empty());
        if !lines.is_empty() {
            save(&dir.join(format!("{file}.svg")), &draw(title, &lines));
        }
    }
}

fn line(results: &Results, who: &str, measure: Measure) -> Line {
    let point = |&size: &u32| Some((f64::from(size), results.value(who, size, measure)??));
    let points = results.sizes.iter().filter_map(point).filter(|(_, value)| *value > 0.0);
    Line { name: who.to_owned(), points: points.collect() }
}

fn floor(results: &Results) -> Line {
    let part = |size, measure| results.value(FLOOR_NAME, size, measure).flatten();
    let point = |&size: &u32| Some((f64::from(size), part(size, FLOOR)? + part(size, RANGE)?));
    Line { name: "kernel + etcd alone".into(), points: results.sizes.iter().filter_map(point).collect() }
}

/// Whole decades around all values.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let logs: Vec<f64> = values.map(f64::log10).collect();
    let low = logs.iter().copied().fold(f64::INFINITY, f64::min).floor() as i32;
    let high = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil() as i32;
    (low, high.max(low + 1))
}

fn draw(title: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let (x_low, x_high) = decades(all().map(|point| point.0));
    let (y_low, y_high) = decades(all().map(|point| point.1));
    let scale = |value: f64, low: i32, high: i32| (value.log10() - f64::from(low)) / f64::from(high - low);
    let x = |value: f64| LEFT + scale(value, x_low, x_high) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - scale(value, y_low, y_high) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title}</text>\n"
    );
    for (axis, low, high) in [('x', x_low, x_high), ('y', y_low, y_high)] {
        for value in (low..=high).map(|decade| 10f64.powi(decade)) {
            let label = thousands(value, if value < 1.0 { 2 } else { 0 });
            let (at, bottom, right) = (if axis == 'x' { x(value) } else { y(value) }, HEIGHT - BOTTOM, WIDTH - RIGHT);
            let _ = match axis {
                'x' => writeln!(
                    svg,
                    "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                    bottom + 18.0
                ),
                _ => writeln!(
                    svg,
                    "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                    LEFT - 8.0,
                    at + 4.0
                ),
            };
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">peers</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 12.0
    );
    for (at, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points: Vec<String> =
            line.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for point in &line.points {
            let _ =
                writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(point.0), y(point.1));
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
            LEFT + 12.0,
            TOP + 18.0 + 16.0 * at as f64,
            line.name
        );
    }
    svg + "</svg>\n"
}
