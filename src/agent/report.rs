//! Log lines about changes made to the kernel: one for each while they are few, else one line for all of them.

use crate::model::plan::Step;
use std::collections::BTreeMap;
use std::time::Duration;

/// A plan of at most this many steps is logged step by step, a larger one in a line.
const ONE_BY_ONE: usize = 16;

/// The number of reasons that the line for many changes names.
const REASONS: usize = 3;

/// Logs changes: what, why, and how long they `took`. `kind` is put before what was done.
pub fn log(kind: &str, steps: &[&Step], took: Duration) {
    if steps.len() <= ONE_BY_ONE {
        for Step { op, why } in steps {
            tracing::info!(%why, ?took, "{kind}{op}");
        }
    } else {
        for Step { op, why } in steps {
            tracing::debug!(%why, "{kind}{op}");
        }
        let why = reasons(steps);
        tracing::info!(%why, ?took, "{kind}{}", objects(steps));
    }
}

/// `1 device, 1 address, 300 neighbours`
fn objects(steps: &[&Step]) -> String {
    let mut counts: BTreeMap<_, usize> = BTreeMap::new();
    steps.iter().for_each(|step| *counts.entry(step.op.key().kind()).or_default() += 1);
    let words =
        counts.iter().map(|((_, one, many), count)| format!("{count} {}", if *count == 1 { one } else { many }));
    words.collect::<Vec<_>>().join(", ")
}

/// The most frequent reasons, each with how often it holds.
fn reasons(steps: &[&Step]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    steps.iter().for_each(|step| *counts.entry(&step.why).or_default() += 1);
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(why, count)| (std::cmp::Reverse(*count), *why));
    let others = counts.iter().skip(REASONS).map(|(_, count)| count).sum::<usize>();
    let named = counts.iter().take(REASONS).map(|(why, count)| format!("{count} {why}"));
    let others = (others > 0).then(|| format!("{others} for other reasons"));
    named.chain(others).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::{Address, FdbEntry, Neighbor};
    use crate::model::plan::Op;
    use std::net::IpAddr;

    fn step(op: Op, why: &str) -> Step {
        Step { op, why: why.to_owned().into() }
    }

    #[test]
    fn many_changes_are_counted_by_object_and_by_reason() {
        let ip = |last| IpAddr::from([10, 5, 0, last]);
        let mac = |last: u8| format!("0e:00:00:00:00:{last:02x}").parse().unwrap();
        let mut steps =
            vec![step(Op::DeleteDevice(7), "VNI 77, not 1"), step(Op::set(Address(ip(0).into())), "missing")];
        steps.extend((1..20).map(|n| step(Op::set(Neighbor { ip: ip(n), mac: mac(n) }), "missing")));
        steps
            .extend((1..3).map(|n| step(Op::delete(FdbEntry { mac: mac(n), dst: ip(n) }), "no accepted lease has it")));
        steps.extend(
            (1..3).map(|n| step(Op::set(FdbEntry { mac: mac(n), dst: ip(n) }), &format!("pointed to {}", ip(n)))),
        );
        let steps: Vec<&Step> = steps.iter().collect();
        assert_eq!(objects(&steps), "1 device, 1 address, 19 neighbours, 4 FDB entries");
        assert_eq!(reasons(&steps), "20 missing; 2 no accepted lease has it; 1 VNI 77, not 1; 2 for other reasons");
    }
}
