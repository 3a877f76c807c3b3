//! Plots on two logarithmic axes, as SVG.

use std::path::Path;

use crate::measures::*;
use crate::report::{FLOOR_NAME, Results, thousands};
use crate::save;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 4] = ["#1b6ca8", "#c0392b", "#7f8c8d", "#27813a"];

struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Writes one file for each measure that grows with the network.
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

/// The mapping from values to coordinates.
struct Axes {
    x: (i32, i32),
    y: (i32, i32),
}

impl Axes {
    fn around(lines: &[Line]) -> Axes {
        let all = || lines.iter().flat_map(|line| &line.points);
        Axes { x: decades(all().map(|point| point.0)), y: decades(all().map(|point| point.1)) }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + share(value, self.x) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - share(value, self.y) * (HEIGHT - TOP - BOTTOM)
    }

    /// A line and a label for each power of ten.
    fn grid(&self, svg: &mut String) {
        let text = |x: f64, y: f64, anchor: &str, text: &str| {
            format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
        };
        for value in powers(self.x) {
            let (x, bottom) = (self.x(value), HEIGHT - BOTTOM);
            *svg += &format!("<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>");
            *svg += &text(x, bottom + 18.0, "middle", &thousands(value, 0));
        }
        for value in powers(self.y) {
            let (y, right) = (self.y(value), WIDTH - RIGHT);
            *svg += &format!("<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>");
            *svg += &text(LEFT - 8.0, y + 4.0, "end", &thousands(value, if value < 1.0 { 2 } else { 0 }));
        }
        *svg += &text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0, "middle", "peers");
    }

    fn line(&self, line: &Line, colour: &str) -> String {
        let at = |point: &(f64, f64)| (self.x(point.0), self.y(point.1));
        let points: Vec<String> = line.points.iter().map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let circle = |(x, y)| format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n");
        let polyline = points.join(" ");
        format!("<polyline points=\"{polyline}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n")
            + &line.points.iter().map(at).map(circle).collect::<String>()
    }
}

fn share(value: f64, (low, high): (i32, i32)) -> f64 {
    (value.log10() - f64::from(low)) / f64::from(high - low)
}

fn powers((low, high): (i32, i32)) -> impl Iterator<Item = f64> {
    (low..=high).map(|decade| 10f64.powi(decade))
}

fn draw(title: &str, lines: &[Line]) -> String {
    let axes = Axes::around(lines);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title}</text>\n"
    );
    axes.grid(&mut svg);
    for (at, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let (x, y) = (LEFT + 12.0, TOP + 18.0 + 16.0 * at as f64);
        svg += &axes.line(line, colour);
        svg += &format!("<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{}</text>\n", line.name);
    }
    svg + "</svg>\n"
}
