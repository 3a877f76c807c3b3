//! Writes the results as JSON, and as tables of medians over the rounds in Markdown.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::measures::*;
use crate::{Options, save};

/// The name of the floor, which is no daemon, in the results.
pub const FLOOR_NAME: &str = "floor";

#[derive(Serialize)]
pub struct Results {
    /// Kernel, processors and etcd.
    pub machine: Vec<String>,
    pub contestants: Vec<String>,
    pub sizes: Vec<u32>,
    pub rounds: usize,
    /// How long all of it took.
    pub seconds: u64,
    pub left_out: BTreeSet<String>,
    pub sessions: Vec<Session>,
}

/// A value over the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Spread> {
        Some(Spread { min: percentile(values, 0)?, median: percentile(values, 50)?, max: percentile(values, 100)? })
    }
}

impl Results {
    pub fn new(options: &Options) -> Results {
        let path = |contestant: &crate::Contestant| format!("{}: {}", contestant.name, contestant.path);
        Results {
            machine: machine(),
            contestants: options.flanneld.iter().map(path).collect(),
            sizes: options.peers.clone(),
            rounds: options.rounds,
            seconds: 0,
            left_out: BTreeSet::new(),
            sessions: Vec::new(),
        }
    }

    pub fn leave_out(&mut self, what: String) {
        self.left_out.insert(what);
    }

    pub fn write(&self, path: &Path) {
        save(path, &serde_json::to_string_pretty(self).expect("JSON"));
    }

    /// The names of the contestants, the first first.
    pub fn names(&self) -> Vec<&str> {
        self.contestants.iter().filter_map(|contestant| contestant.split(": ").next()).collect()
    }

    fn of(&self, who: &str, peers: u32) -> impl Iterator<Item = &Session> {
        self.sessions.iter().filter(move |session| session.who == who && session.peers == peers)
    }

    /// Over the rounds; none if it was not measured, `Some(None)` if it did not happen in one of them.
    pub fn value(&self, who: &str, peers: u32, measure: Measure) -> Option<Option<f64>> {
        let all: Vec<Option<f64>> = self.of(who, peers).filter_map(|session| session.get(measure)).collect();
        if all.is_empty() {
            return None;
        }
        Some(all.into_iter().collect::<Option<Vec<f64>>>().and_then(|values| percentile(&values, 50)))
    }

    /// `over` to `under`, each from one round.
    pub fn ratio(
        &self,
        over: impl Fn(&Results, usize) -> Option<f64>,
        under: impl Fn(&Results, usize) -> Option<f64>,
    ) -> Option<Spread> {
        let ratios = (1..=self.rounds).filter_map(|round| {
            let (over, under) = (over(self, round)?, under(self, round)?);
            (under > 0.0).then_some(over / under)
        });
        Spread::of(&ratios.collect::<Vec<_>>())
    }

    /// What one of the contestants had in one round.
    pub fn in_round(&self, round: usize, who: &str, peers: u32, measure: Measure) -> Option<f64> {
        self.of(who, peers).find(|session| session.round == round)?.get(measure)?
    }

    /// The ratio of another contestant's value to the first one's.
    pub fn against(&self, who: &str, peers: u32, measure: Measure) -> Option<Spread> {
        let ours = *self.names().first()?;
        self.ratio(
            |results, round| results.in_round(round, who, peers, measure),
            |results, round| results.in_round(round, ours, peers, measure),
        )
    }

    /// The cold join compared with the floor.
    pub fn over_floor(&self, who: &str, peers: u32) -> Option<Spread> {
        let floor = |results: &Results, round| {
            let part = |measure| results.in_round(round, FLOOR_NAME, peers, measure);
            Some(part(FLOOR)? + part(RANGE)?)
        };
        self.ratio(|results, round| results.in_round(round, who, peers, JOIN_ROUTES), floor)
    }

    /// Everything, a line for each measure and contestant and a column for each size.
    pub fn tables(&self) -> String {
        let mut rows = Vec::new();
        for &measure in ALL {
            self.add_rows(measure, &mut rows);
        }
        for who in self.names() {
            let cells: Vec<_> = self.sizes.iter().map(|&n| self.over_floor(who, n).map(spread)).collect();
            push(&mut rows, "cold join to last route / (kernel + etcd alone)", who, cells);
        }
        for phase in ["join", "restart", "resync"] {
            self.add_calls(phase, &mut rows);
        }
        let sizes = self.sizes.iter().map(|size| thousands(f64::from(*size), 0));
        let head: Vec<String> = ["peers".to_owned(), String::new()].into_iter().chain(sizes).collect();
        let mut text = format!("\n{}\n\n{}", self.machine.join("; "), table(&head, &rows, 2));
        for what in &self.left_out {
            text += &format!("\nleft out: {what}");
        }
        text + "\n"
    }

    fn add_rows(&self, measure: Measure, rows: &mut Vec<Vec<String>>) {
        let mut title = measure.title;
        let names = self.names();
        for who in names.iter().copied().chain([FLOOR_NAME]) {
            let cell = |&n: &u32| self.value(who, n, measure).map(|value| number(value, measure.decimals));
            if push(rows, title, who, self.sizes.iter().map(cell).collect()) {
                title = "";
            }
        }
        for who in names[1..].iter().filter(|_| measure.is_compared) {
            let cells = self.sizes.iter().map(|&n| self.against(who, n, measure).map(spread)).collect();
            push(rows, "", &format!("{who} / {}", names[0]), cells);
        }
    }

    fn add_calls(&self, phase: &'static str, rows: &mut Vec<Vec<String>>) {
        let maps = self.sessions.iter().filter_map(|session| session.calls.get(phase));
        let methods: BTreeSet<&String> = maps.flat_map(BTreeMap::keys).filter(|name| !name.contains(' ')).collect();
        for method in methods {
            let mut title = format!("{phase}: etcd {method}");
            for who in self.names() {
                let count = |&n: &u32| {
                    let calls = self.of(who, n).filter_map(|session| session.calls.get(phase));
                    let counts: Vec<f64> = calls.map(|calls| *calls.get(method).unwrap_or(&0) as f64).collect();
                    percentile(&counts, 50).map(|count| number(Some(count), 0))
                };
                if push(rows, &title, who, self.sizes.iter().map(count).collect()) {
                    title.clear();
                }
            }
        }
    }
}

/// A row, unless it would be empty.
fn push(rows: &mut Vec<Vec<String>>, title: &str, who: &str, cells: Vec<Option<String>>) -> bool {
    let any = cells.iter().any(Option::is_some);
    if any {
        let cells = cells.into_iter().map(Option::unwrap_or_default);
        rows.push([title.to_owned(), who.to_owned()].into_iter().chain(cells).collect());
    }
    any
}

pub fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or("never".to_owned(), |value| thousands(value, decimals))
}

/// Median, and in brackets the range.
pub fn spread(Spread { min, median, max }: Spread) -> String {
    let short = |value: f64| thousands(value, if value < 10.0 { 2 } else { 0 });
    if min == max {
        return format!("{}x", short(median));
    }
    format!("{}x ({}-{})", short(median), short(min), short(max))
}

/// With commas.
pub fn thousands(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut out = sign.to_owned();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    rest.map_or(out.clone(), |rest| format!("{out}.{rest}"))
}

/// A table in Markdown whose columns stand below each other also where nobody renders it; after the first `left` ones they
/// hold numbers.
pub fn table(head: &[String], rows: &[Vec<String>], left: usize) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain([&head[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column < left {
            true => format!(" {cell:<width$} "),
            false => format!(" {cell:>width$} "),
        });
        format!("|{}|\n", padded.collect::<Vec<_>>().join("|"))
    };
    let rule = widths.iter().enumerate().map(|(column, width)| match column < left {
        true => "-".repeat(width + 2),
        false => format!("{}:", "-".repeat(width + 1)),
    });
    let rule = format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    line(head) + &rule + &rows.iter().map(|row| line(row)).collect::<String>()
}

fn machine() -> Vec<String> {
    let first = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let known = [first(&["uname", "-sr"]), Some(format!("{processors} processors")), first(&["etcd", "--version"])];
    known.into_iter().flatten().collect()
}
