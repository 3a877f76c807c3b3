//! How many lines the log may take: what is new is logged at once, what repeats only now and then.
//!
//! Time is cut into minutes. In each minute every place in the code may log some texts that it has not logged in that
//! minute yet; texts that differ only in words with a digit in them (addresses, names, durations) count as one. All other
//! lines of that minute share one allowance, of which no place gets the whole. The rest is counted and summed up.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// The time for which everything here counts.
pub const PERIOD: Duration = Duration::from_secs(60);

/// The texts that one place may log as new ones in a period. Others choose some of the words in them.
const NEW_TEXTS: usize = 12;

/// The lines of a period, of all places together, that are not new.
const REPEATED: u32 = 60;

/// Those of one place.
const REPEATED_OF_ONE: u32 = 40;

/// The places that a summary names.
const NAMED: usize = 3;

/// What was logged in this period, by its place in the code.
#[derive(Debug)]
pub struct Budget<Place> {
    ends: Option<Instant>,
    repeated: u32,
    places: HashMap<Place, Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    texts: HashSet<u64>,
    repeated: u32,
    suppressed: u64,
    example: String,
}

impl<Place: Hash + Eq> Default for Budget<Place> {
    fn default() -> Self {
        Budget { ends: None, repeated: 0, places: HashMap::new() }
    }
}

impl<Place: Hash + Eq> Budget<Place> {
    /// Whether a line may be logged. The first line after the end of a period begins the next one; call
    /// [`Budget::summary`] before.
    pub fn admits(&mut self, place: Place, text: &str, now: Instant) -> bool {
        self.ends.get_or_insert(now + PERIOD);
        let usage = self.places.entry(place).or_default();
        let shape = shape(text);
        if usage.texts.contains(&shape) || usage.texts.len() == NEW_TEXTS {
            if self.repeated == REPEATED || usage.repeated == REPEATED_OF_ONE {
                usage.suppressed += 1;
                if usage.example.is_empty() {
                    usage.example = text.to_owned();
                }
                return false;
            }
            (self.repeated, usage.repeated) = (self.repeated + 1, usage.repeated + 1);
        } else {
            usage.texts.insert(shape);
        }
        true
    }

    /// When the summary of this period is due; `None` while no line was suppressed in it.
    pub fn due(&self) -> Option<Instant> {
        self.ends.filter(|_| self.places.values().any(|usage| usage.suppressed > 0))
    }

    /// Ends a period that is over. Gives one line about the lines that were suppressed in it, if any were.
    pub fn summary(&mut self, now: Instant) -> Option<String> {
        if self.ends.is_none_or(|ends| now < ends) {
            return None;
        }
        let ended = std::mem::take(self);
        let mut places: Vec<Usage> = ended.places.into_values().filter(|usage| usage.suppressed > 0).collect();
        places.sort_by_key(|usage| std::cmp::Reverse(usage.suppressed));
        let total: u64 = places.iter().map(|usage| usage.suppressed).sum();
        let named = places.iter().take(NAMED).map(|usage| format!("{} like \"{}\"", usage.suppressed, usage.example));
        let named = named.collect::<Vec<_>>().join(", ");
        let (lines, were) = if total == 1 { ("line", "was") } else { ("lines", "were") };
        (total > 0).then(|| format!("{total} log {lines} {were} suppressed in the last minute: {named}"))
    }
}

/// What texts have in common that differ only in words with a digit.
fn shape(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    let has_digit = |word: &str| word.bytes().any(|byte| byte.is_ascii_digit());
    text.split_whitespace().filter(|word| !has_digit(word)).for_each(|word| word.hash(&mut hasher));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: f64) -> Duration {
        Duration::from_secs_f64(second)
    }

    #[test]
    fn a_flood_is_at_most_a_hundred_lines_a_minute_and_a_summary() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let (mut lines, mut summaries) = (0, Vec::new());
        for nth in 0..60_000 {
            let now = start + second(f64::from(nth) / 100.0);
            summaries.extend(budget.summary(now));
            lines += usize::from(budget.admits("repair", &format!("repaired: add route 10.5.{nth}.0/24"), now));
            lines += usize::from(budget.admits("refusal", &format!("key-{} refused: text of others", nth % 100), now));
        }
        assert!(lines <= 10 * 100, "{lines} lines in ten minutes");
        assert_eq!(summaries.len(), 9);
        assert!(summaries[0].contains("suppressed in the last minute: 59"), "{}", summaries[0]);
        assert!(summaries[0].contains("like \"repaired: add route 10.5."), "{}", summaries[0]);
    }

    #[test]
    fn what_is_new_is_logged_in_the_midst_of_a_flood() {
        let now = Instant::now();
        let mut budget = Budget::default();
        for nth in 0..10_000 {
            budget.admits("repair", &format!("repaired: route {nth}"), now);
            // Somebody else chooses these words.
            let word = format!("{nth:x}").replace(|c: char| c.is_ascii_digit(), "z");
            budget.admits("refusal", &format!("{word} refused"), now);
        }
        assert!(!budget.admits("repair", "repaired: route 1", now));
        assert!(budget.admits("repair", "repaired: the device was missing", now));
        assert!(budget.admits("lease", "our lease has expired", now));
        assert!(budget.due().is_some() && budget.summary(now).is_none());
        let summary = budget.summary(now + PERIOD).unwrap();
        assert!(summary.contains("lines were suppressed") && !summary.contains("our lease"), "{summary}");
        assert!(budget.admits("repair", "repaired: route 1", now + PERIOD), "another minute");
        assert_eq!(budget.due(), None);
    }
}
