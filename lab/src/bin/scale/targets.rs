//! The targets, and whether they were reached.

use crate::measures::*;
use crate::report::{FLOOR_NAME, Results, number, spread, table, thousands};

/// The size for which most targets are set; the largest that was measured up to it counts.
const SIZE_AIMED_AT: u32 = 10_000;
const JOIN_FASTER: f64 = 20.0;
const JOIN_OVER_FLOOR: f64 = 1.5;
const MEMORY_SHARE: f64 = 1.0 / 3.0;
const EVENT_50_MS: f64 = 1.0;
const EVENT_99_MS: f64 = 5.0;
/// The largest ratio of the cost of a peer between the largest network and one a fifth as large that counts as linear.
const LINEAR: f64 = 1.3;

/// A target: its text, whether it was reached if that is known, and the numbers.
type Row = (String, Option<bool>, String);

/// All of them in Markdown.
pub fn table_of(results: &Results) -> String {
    let names = results.names();
    let Some(&size) = results.sizes.iter().filter(|size| **size <= SIZE_AIMED_AT).max() else { return String::new() };
    let ours = names[0];
    let mut rows: Vec<Row> = Vec::new();
    for who in &names[1..] {
        rows.push(join_against(results, who, size));
    }
    rows.push(join_over_floor(results, ours, size));
    for who in &names[1..] {
        rows.push(memory_against(results, who, size));
    }
    rows.push(calls(results, ours));
    rows.extend(events(results, ours));
    rows.push(linear(results, ours));
    rows.extend(idle(results));
    rows.push(restart(results, ours, size));
    let head = ["target", "reached", "measured"].map(str::to_owned);
    let verdict = |reached: Option<bool>| reached.map_or("-", |reached| if reached { "yes" } else { "NO" }).to_owned();
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(what, reached, numbers)| vec![what, verdict(reached), numbers]).collect();
    format!("\n{}", table(&head, &rows, 3))
}

fn join_against(results: &Results, who: &str, size: u32) -> Row {
    let ratio = results.against(who, size, JOIN_ROUTES);
    let reached = ratio.map(|ratio| ratio.median >= JOIN_FASTER);
    (
        format!("cold join of {} at least {JOIN_FASTER} times faster than {who}", peers(size)),
        reached,
        text(ratio.map(spread)),
    )
}

fn join_over_floor(results: &Results, ours: &str, size: u32) -> Row {
    let ratio = results.over_floor(ours, size);
    let part =
        |who, measure: Measure| results.value(who, size, measure).map(|value| number(value, 0)).unwrap_or_default();
    let parts =
        format!(": {} to {} + {} ms", part(ours, JOIN_ROUTES), part(FLOOR_NAME, FLOOR), part(FLOOR_NAME, RANGE));
    let what = format!("cold join of {} within {JOIN_OVER_FLOOR} times kernel + etcd alone", peers(size));
    (what, ratio.map(|ratio| ratio.median <= JOIN_OVER_FLOOR), text(ratio.map(|ratio| spread(ratio) + &parts)))
}

fn memory_against(results: &Results, who: &str, size: u32) -> Row {
    let share = |measure| results.against(who, size, measure).map(|ratio| 1.0 / ratio.median);
    let numbers = share(RSS).map(|rss| format!("{rss:.2} of it, at its peak {:.2}", share(PEAK).unwrap_or(f64::NAN)));
    (
        format!("RSS with {} under a third of {who}'s", peers(size)),
        share(RSS).map(|share| share < MEMORY_SHARE),
        text(numbers),
    )
}

fn calls(results: &Results, ours: &str) -> Row {
    let counts = results.sizes.iter().filter_map(|&size| Some((size, results.value(ours, size, JOIN_CALLS)??)));
    let counts: Vec<(u32, f64)> = counts.collect();
    // A list comes in pages of 64, 512 and 4,096 keys, then of 2 MiB; a join reads two, of which the first finds the size.
    let pages = |size: u32| f64::from(4 + 2 * (size / 5_000));
    let least = counts.iter().map(|(_, count)| *count).fold(f64::INFINITY, f64::min);
    let constant = counts.iter().all(|(size, count)| *count <= least + pages(*size));
    let numbers = counts.iter().map(|(size, count)| format!("{count} at {}", thousands(f64::from(*size), 0)));
    (
        "calls to etcd at the join constant but for pages of 2 MiB".into(),
        Some(constant),
        numbers.collect::<Vec<_>>().join(", "),
    )
}

fn events(results: &Results, ours: &str) -> Vec<Row> {
    let row = |(measure, limit): (Measure, f64)| {
        let values = results.sizes.iter().filter_map(|&size| Some((size, results.value(ours, size, measure)?)));
        let values: Vec<(u32, Option<f64>)> = values.collect();
        let within = |value: &Option<f64>| value.is_some_and(|value| value < limit);
        let reached = (!values.is_empty()).then(|| values.iter().all(|(_, value)| within(value)));
        let numbers =
            values.iter().map(|(size, value)| format!("{} at {}", number(*value, 2), thousands(f64::from(*size), 0)));
        let load = if measure.key.starts_with("loaded") { "under load: " } else { "" };
        let what = format!(
            "{load}route after etcd's watch event, {} under {limit} ms",
            &measure.title[measure.title.len() - 7..][..3]
        );
        (what, reached, numbers.collect::<Vec<_>>().join(", "))
    };
    [(EVENT_50, EVENT_50_MS), (EVENT_99, EVENT_99_MS), (LOADED_50, EVENT_50_MS), (LOADED_99, EVENT_99_MS)]
        .map(row)
        .into()
}

fn linear(results: &Results, ours: &str) -> Row {
    let each = |size: u32| {
        let time = results.value(ours, size, JOIN_ROUTES)??;
        Some((size, time * 1000.0 / f64::from(size)))
    };
    let times: Vec<(u32, f64)> = results.sizes.iter().filter_map(|&size| each(size)).collect();
    let largest = times.iter().max_by_key(|(size, _)| *size);
    let reached = largest.and_then(|(size, time)| {
        let (_, smaller) =
            times.iter().filter(|(other, _)| *other >= 1000 && other * 5 <= *size).max_by_key(|(size, _)| *size)?;
        Some(*time <= smaller * LINEAR)
    });
    let numbers =
        times.iter().map(|(size, time)| format!("{} at {}", thousands(*time, 0), thousands(f64::from(*size), 0)));
    ("cold join linear: microseconds a peer".into(), reached, numbers.collect::<Vec<_>>().join(", "))
}

fn idle(results: &Results) -> Vec<Row> {
    let row = |(measure, what): (Measure, &str)| {
        let mut parts = Vec::new();
        for who in results.names() {
            for &size in &results.sizes {
                if let Some(value) = results.value(who, size, measure) {
                    parts.push(format!(
                        "{who} {} at {}",
                        number(value, measure.decimals),
                        thousands(f64::from(size), 0)
                    ));
                }
            }
        }
        (what.to_owned(), None, parts.join(", "))
    };
    [(IDLE_CPU, "idle CPU a minute, ms"), (IDLE_VOLUNTARY, "idle wake-ups a minute")].map(row).into()
}

fn restart(results: &Results, ours: &str, size: u32) -> Row {
    let value = |measure| results.value(ours, size, measure).flatten();
    let (changes, writes) = (value(RESTART_CHANGES), value(RESTART_WRITES));
    let numbers = format!("{} changes to the kernel, {} writes to etcd", number(changes, 0), number(writes, 0));
    (format!("a restart with {} writes nothing", peers(size)), changes.map(|changes| changes == 0.0), numbers)
}

fn peers(size: u32) -> String {
    format!("{} peers", thousands(f64::from(size), 0))
}

fn text(text: Option<String>) -> String {
    text.unwrap_or_else(|| "not measured".into())
}
