//! Lines on their way to standard error. A thread of its own writes them, so nobody who logs ever waits for a reader.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most that waits for a reader, in bytes. Further lines are lost.
const ROOM: usize = 1 << 20;

/// The pause before a reader that has no room now is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Lines that wait to be written.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Whether one has been taken out and is not written yet.
    is_writing: bool,
}

impl Queue {
    /// Adds a line, with its line break. One for which there is no room is counted as lost.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.bytes + line.len() > ROOM {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.into());
        self.changed.notify_all();
    }

    /// The number of lines that were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until everything is written, but no longer than `within`. Tells whether it is.
    pub fn flush(&self, within: Duration) -> bool {
        let unwritten = |state: &mut State| state.is_writing || !state.lines.is_empty();
        let waited = self.changed.wait_timeout_while(self.state(), within, unwritten);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// All that waits to be written.
    #[cfg(test)]
    pub fn text(&self) -> String {
        let lines: Vec<Box<[u8]>> = self.state().lines.iter().cloned().collect();
        String::from_utf8(lines.concat()).unwrap()
    }

    /// The next line; `None` when none comes before `until`.
    fn pop(&self, until: Option<Instant>) -> Option<Box<[u8]>> {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.is_writing = true;
                return Some(line);
            }
            let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match rest {
                Some(Duration::ZERO) => return None,
                Some(rest) => self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn written(&self, was_written: bool) {
        self.lost.fetch_add(u64::from(!was_written), Ordering::Relaxed);
        self.state().is_writing = false;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is complete in itself, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the writer does besides writing.
pub trait Chores {
    /// Lines were lost, and a line was written again since.
    fn report_lost(&self, lines: u64);
    /// When [`Chores::summarise`] is due.
    fn due(&self) -> Option<Instant>;
    /// The time has come.
    fn summarise(&self);
}

/// Writes lines to `out` forever.
pub fn write_lines(queue: &Arc<Queue>, mut out: impl Write, chores: &impl Chores) -> ! {
    let mut reported = 0;
    loop {
        let Some(line) = queue.pop(chores.due().map(|due| due.max(Instant::now() + RETRY))) else {
            chores.summarise();
            continue;
        };
        let was_written = write(&mut out, &line).is_ok();
        let lost = queue.lost();
        if was_written && lost > reported {
            // Before the line counts as written, so that a flush waits for the report as well.
            chores.report_lost(lost - reported);
            reported = lost;
        }
        queue.written(was_written);
    }
}

/// Writes all of a line. Whoever shares standard error may have made it non-blocking.
fn write(out: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match out.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read};

    struct Report(Arc<Queue>);

    impl Chores for Report {
        fn report_lost(&self, lines: u64) {
            self.0.push(format!("{lines} lost\n").as_bytes());
        }

        fn due(&self) -> Option<Instant> {
            None
        }

        fn summarise(&self) {}
    }

    fn started() -> (Arc<Queue>, PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let queue = Arc::<Queue>::default();
        let (at_writer, chores) = (queue.clone(), Report(queue.clone()));
        std::thread::spawn(move || write_lines(&at_writer, writer, &chores));
        (queue, reader)
    }

    #[test]
    fn what_is_read_is_flushed_in_order() {
        let (queue, mut reader) = started();
        queue.push(b"one\n");
        queue.push(b"two\n");
        assert!(queue.flush(Duration::from_secs(20)));
        let mut text = [0; 8];
        reader.read_exact(&mut text).unwrap();
        assert_eq!((&text, queue.lost()), (b"one\ntwo\n", 0));
    }

    #[test]
    fn without_a_reader_nobody_waits_and_what_is_lost_is_counted_and_reported() {
        let (queue, mut reader) = started();
        let line = [b"x".repeat(1 << 18), b"\n".to_vec()].concat();
        for _ in 0..20 {
            queue.push(&line);
        }
        assert!(!queue.flush(Duration::from_millis(10)), "a pipe has less room");
        let lost = queue.lost();
        assert!((10..20).contains(&lost), "{lost} lines");
        let mut text = Vec::new();
        let report = format!("{lost} lost\n");
        while !text.ends_with(report.as_bytes()) {
            let mut part = [0; 1 << 16];
            let length = reader.read(&mut part).unwrap();
            text.extend(&part[..length]);
        }
        assert!(queue.flush(Duration::from_secs(20)));
    }

    #[test]
    fn a_reader_that_has_gone_stops_nobody() {
        let (queue, reader) = started();
        drop(reader);
        queue.push(b"one\n");
        queue.push(b"two\n");
        assert!(queue.flush(Duration::from_secs(20)));
        assert_eq!(queue.lost(), 2);
    }
}
