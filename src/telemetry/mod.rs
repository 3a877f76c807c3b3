//! The log: lines on standard error, one an event. WARN needs a look, INFO says what changed, DEBUG has every detail.
//!
//! An event becomes a line at once and waits in a [`queue::Queue`] for a thread that writes it. A line never holds a
//! character that could forge another line or command a terminal. INFO and more important events have a
//! [`budget::Budget`]; lines that were suppressed or lost are counted and reported.

mod budget;
mod queue;

use crate::model::foreign;
use budget::Budget;
use queue::{Chores, Queue};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The longest line, in characters.
const LONGEST: usize = 4096;

/// The target of the log's events about itself, which have no budget.
const ABOUT_THE_LOG: &str = "flanneld::log";

/// The running log.
#[derive(Clone)]
pub struct Log(Arc<Sink>);

impl Log {
    /// The number of lines that were lost because nobody read them.
    pub fn lost(&self) -> u64 {
        self.0.queue.lost()
    }

    /// Waits until all lines are written, but no longer than `within`.
    pub fn flush(&self, within: Duration) {
        self.0.queue.flush(within);
    }
}

/// Starts logging. `verbosity` is flannel's `-v`: 0 INFO, 1 to 4 DEBUG, 5 and more TRACE. Libraries log from INFO on
/// at any verbosity, because HTTP/2 alone would write several lines for each packet.
pub fn init(verbosity: u8) -> Log {
    let to_journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
    let has_budget = verbosity == 0;
    let sink = Sink { queue: Arc::default(), budget: Mutex::default(), has_budget, with_priority: to_journal };
    let sink = Arc::new(sink);
    let writer = Writer(sink.clone());
    let lines = tracing_subscriber::fmt().with_env_filter(filter(verbosity)).with_writer(writer).with_ansi(false);
    let lines = lines.with_target(false).log_internal_errors(false);
    // The journal stamps each line itself.
    let started = match to_journal {
        true => lines.without_time().try_init(),
        false => lines.try_init(),
    };
    if let Err(error) = started.map_err(|error| error.to_string()).and_then(|()| start_writer(sink.clone())) {
        let _ = writeln!(io::stderr(), "flanneld: the log cannot be set up: {error}");
    }
    Log(sink)
}

fn filter(verbosity: u8) -> EnvFilter {
    match verbosity {
        0 => EnvFilter::default().add_directive(LevelFilter::INFO.into()),
        1..=4 => EnvFilter::new("info,flanneld=debug"),
        _ => EnvFilter::new("info,flanneld=trace"),
    }
}

/// Whether standard error is the stream of the journal that systemd names as `device:inode`.
fn is_stderr(stream: &str) -> bool {
    fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| format!("{}:{}", stderr.dev(), stderr.ino()) == stream)
}

fn start_writer(sink: Arc<Sink>) -> Result<(), String> {
    // A handle of its own: std's has a lock, at which a panic would wait for a reader.
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let write = move || queue::write_lines(&sink.queue, File::from(stderr), &*sink);
    std::thread::Builder::new().name("log".into()).spawn(write).map(drop).map_err(|error| error.to_string())
}

/// Where events end as lines.
struct Sink {
    queue: Arc<Queue>,
    budget: Mutex<Budget<Identifier>>,
    /// Whether the budget holds. Who asks for details by `-v` gets all lines.
    has_budget: bool,
    /// Whether lines begin with their priority as the journal reads it.
    with_priority: bool,
}

impl Sink {
    fn budget(&self) -> MutexGuard<'_, Budget<Identifier>> {
        // A budget is whole after each call, so a panic elsewhere does not spoil it.
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: &Origin, text: &[u8]) {
        let text = foreign::shown(text.strip_suffix(b"\n").unwrap_or(text), LONGEST);
        if !self.admits(event, &text) {
            return;
        }
        let line = match self.with_priority {
            true => format!("<{}>{text}\n", priority(event.level)),
            false => format!("{text}\n"),
        };
        self.queue.push(line.as_bytes());
    }

    /// Whether a line fits into the budget. Errors are few, so they have none.
    fn admits(&self, event: &Origin, text: &str) -> bool {
        if !self.has_budget || event.level == Level::ERROR || event.is_about_the_log {
            return true;
        }
        let now = Instant::now();
        self.summarise_at(now);
        let text = text.split_once(&format!("{} ", event.level)).map_or(text, |(_, text)| text);
        self.budget().admits(event.place.clone(), text, now)
    }

    fn summarise_at(&self, now: Instant) {
        let summary = self.budget().summary(now);
        if let Some(summary) = summary {
            tracing::warn!(target: ABOUT_THE_LOG, "{summary}");
        }
    }
}

impl Chores for Sink {
    fn report_lost(&self, lines: u64) {
        let (noun, were) = if lines == 1 { ("line", "was") } else { ("lines", "were") };
        tracing::warn!(target: ABOUT_THE_LOG, "{lines} log {noun} {were} lost because nobody read standard error");
    }

    fn due(&self) -> Option<Instant> {
        self.budget().due()
    }

    fn summarise(&self) {
        self.summarise_at(Instant::now());
    }
}

/// As `syslog(3)` numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// What is logged by this thread while `work` runs.
#[cfg(test)]
pub fn captured(work: impl FnOnce()) -> String {
    let sink =
        Arc::new(Sink { queue: Arc::default(), budget: Mutex::default(), has_budget: true, with_priority: false });
    let subscriber =
        tracing_subscriber::fmt().with_writer(Writer(sink.clone())).with_ansi(false).with_target(false).finish();
    tracing::subscriber::with_default(subscriber, work);
    sink.queue.text()
}

struct Writer(Arc<Sink>);

impl<'w> MakeWriter<'w> for Writer {
    type Writer = EventWriter<'w>;

    /// For what belongs to no event, of which there is nothing.
    fn make_writer(&'w self) -> EventWriter<'w> {
        EventWriter { sink: &self.0, origin: None }
    }

    fn make_writer_for(&'w self, event: &Metadata<'_>) -> EventWriter<'w> {
        let (level, place) = (*event.level(), event.callsite());
        let origin = Origin { level, place, is_about_the_log: event.target() == ABOUT_THE_LOG };
        EventWriter { sink: &self.0, origin: Some(origin) }
    }
}

/// Takes the whole line of one event in one write.
struct EventWriter<'w> {
    sink: &'w Sink,
    origin: Option<Origin>,
}

/// Where an event comes from.
struct Origin {
    level: Level,
    place: Identifier,
    is_about_the_log: bool,
}

impl Write for EventWriter<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if let Some(origin) = &self.origin {
            self.sink.take(origin, text);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_event_is_one_visible_line(text: String, break_in_it in "[a-z]{0,4}\n[A-Z]{0,4}=1\n\u{1b}\\[2J") {
            for text in [text, break_in_it, "x".repeat(1 << 20)] {
                let logged = captured(|| tracing::warn!(lease = &*text, shown = %text, debug = ?text, "of others: {text}"));
                let line = logged.strip_suffix('\n').unwrap();
                prop_assert!(line.chars().all(foreign::is_plain), "{line:?}");
                prop_assert!(line.contains("WARN of others: ") && line.len() < 5 * LONGEST, "{line:?}");
            }
        }
    }

    #[test]
    fn a_flood_ends_and_what_is_new_does_not_drown_in_it() {
        let logged = captured(|| {
            for nth in 0..10_000 {
                tracing::info!(took = ?Duration::from_micros(nth), "repaired: add route 10.5.{nth}.0/24");
            }
            tracing::warn!("our lease has expired");
            tracing::error!("the end");
        });
        assert!(logged.lines().count() <= 100, "{} lines", logged.lines().count());
        assert!(logged.contains("WARN our lease has expired") && logged.contains("ERROR the end"), "{logged}");
    }

    #[test]
    fn no_verbosity_makes_libraries_log_each_packet() {
        for verbosity in 0..=u8::MAX {
            let filter = filter(verbosity).to_string();
            let others: Vec<&str> = filter.split(',').filter(|level| !level.starts_with("flanneld=")).collect();
            assert_eq!(others, ["info"]);
        }
    }

    #[test]
    fn the_journal_gets_the_priority_first() {
        let sink = Sink { queue: Arc::default(), budget: Mutex::default(), has_budget: true, with_priority: true };
        let sink = Arc::new(sink);
        let subscriber = tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false);
        let subscriber = subscriber.with_writer(Writer(sink.clone())).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("a");
            tracing::warn!("b");
            tracing::info!("c");
        });
        let logged = sink.queue.text();
        let lines: Vec<&str> = logged.lines().collect();
        assert_eq!(lines, ["<3>ERROR a", "<4> WARN b", "<6> INFO c"]);
        let stderr = fs::metadata("/proc/self/fd/2").unwrap();
        assert!(is_stderr(&format!("{}:{}", stderr.dev(), stderr.ino())) && !is_stderr("1:2") && !is_stderr(""));
    }
}
