//! Where work on files is done: a disk may hang, and nobody but the file that is on it waits for it.
//!
//! Reading is done by threads. Writing is done by a process, since a thread that waits for a frozen file system cannot be
//! ended by any signal, and the daemon would not end before it.

use super::{has_leftovers, remove_leftovers, write_atomically};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The subcommand that [`FileIo::Aside`] starts; it is for nobody else.
pub const WRITER: &str = "write-file";

/// The exit code of a writer that could not write.
const FAILED: u8 = 4;

/// Where work on files is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileIo {
    /// By the caller, at once.
    #[default]
    Here,
    /// By threads, and by processes of this program started as [`WRITER`].
    Aside,
}

/// Does some work in a thread of its own. If the host has no room for one more thread, the work is done here: then it may
/// take its time, but the daemon goes on.
fn in_a_thread(work: impl FnOnce() + Send + 'static) {
    let work = Arc::new(Mutex::new(Some(work)));
    let theirs = work.clone();
    if std::thread::Builder::new().name("files".into()).spawn(move || do_once(&theirs)).is_err() {
        do_once(&work);
    }
}

fn do_once(work: &Mutex<Option<impl FnOnce()>>) {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = work {
        work();
    }
}

impl FileIo {
    /// Does some work and gives its result.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let mut task = self.start(work);
        loop {
            task.finished().await;
            if let Some(result) = task.take() {
                return result;
            }
        }
    }

    /// Starts some work.
    pub(crate) fn start<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        let (sender, result) = oneshot::channel();
        // Nobody may be interested any more.
        let deliver = move || drop(sender.send(work()));
        match self {
            FileIo::Here => deliver(),
            FileIo::Aside => in_a_thread(deliver),
        }
        Task { result: Some(result), ready: None, since: Instant::now() }
    }

    /// Puts `text` at `path` as [`write_atomically`] does. Takes as long as the disk takes.
    pub(super) fn write(self, path: &Path, text: &str) -> io::Result<()> {
        match self {
            FileIo::Here => Verb::Write.run(path, text),
            FileIo::Aside => Verb::Write.run_aside(path, text),
        }
    }

    /// Removes a file, as long as the disk takes.
    pub(super) fn remove(self, path: &Path) {
        // One that is not there is as good as removed, and one that stays is looked at again at the next start.
        let _ = match self {
            FileIo::Here => Verb::Remove.run(path, ""),
            FileIo::Aside => Verb::Remove.run_aside(path, ""),
        };
    }

    /// Removes what killed writers left in a directory, as long as the disk takes.
    pub(super) fn tidy(self, directory: &Path) {
        if has_leftovers(directory) {
            let _ = match self {
                FileIo::Here => Verb::Tidy.run(directory, ""),
                FileIo::Aside => Verb::Tidy.run_aside(directory, ""),
            };
        }
    }
}

/// Work that was started.
#[derive(Debug)]
pub(crate) struct Task<T> {
    /// Where the result comes from; `None` once it is there.
    result: Option<oneshot::Receiver<T>>,
    ready: Option<T>,
    since: Instant,
}

impl<T> Task<T> {
    /// The result, once, when it is there.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.ready.take().or_else(|| self.result.as_mut()?.try_recv().ok())
    }

    /// Waits until the result is there. Cancel-safe.
    pub(crate) async fn finished(&mut self) {
        if self.ready.is_some() {
            return;
        }
        let received = match &mut self.result {
            Some(result) => result.await.ok(),
            None => None,
        };
        // Work that panicked has no result, and one that was taken does not come again: neither is ever finished.
        let Some(value) = received else { return std::future::pending().await };
        (self.result, self.ready) = (None, Some(value));
    }

    /// How long ago it was started.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

/// The task of a writer's process. Each of these may wait for a frozen file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    /// Put what is on standard input there.
    Write,
    /// Remove the file.
    Remove,
    /// Remove the temporary files in the directory that killed writers left.
    Tidy,
}

impl Verb {
    const ALL: [(Verb, &str); 3] = [(Verb::Write, "write"), (Verb::Remove, "remove"), (Verb::Tidy, "tidy")];

    fn run(self, path: &Path, text: &str) -> io::Result<()> {
        match self {
            Verb::Write => write_atomically(path, text),
            Verb::Remove => std::fs::remove_file(path),
            Verb::Tidy => {
                remove_leftovers(path);
                Ok(())
            }
        }
    }

    /// By a process, which this thread waits for.
    fn run_aside(self, path: &Path, text: &str) -> io::Result<()> {
        let word = Verb::ALL.iter().find(|(verb, _)| *verb == self).map_or("", |(_, word)| word);
        let mut command = Command::new("/proc/self/exe");
        command.arg(WRITER).arg(std::process::id().to_string()).arg(word).arg(path).env_clear().process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Where no process can be started, the disk is likely to answer.
        let Ok(mut child) = command.spawn() else { return self.run(path, text) };
        if let Some(mut stdin) = child.stdin.take() {
            // A writer that does not read has failed, and says why.
            let _ = stdin.write_all(text.as_bytes());
        }
        let output = child.wait_with_output()?;
        match output.status.code() {
            Some(0) => Ok(()),
            Some(code) if code == i32::from(FAILED) => {
                Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim()))
            }
            _ => Err(io::Error::other(format!("the process that writes it ended with {}", output.status))),
        }
    }
}

/// The writer's process: `PARENT VERB PATH`, with the text on standard input. It ends with its parent, so that a writer that
/// was held up cannot undo what a later daemon has written.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    match write_for_parent(&words.collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(FAILED)
        }
    }
}

fn write_for_parent(words: &[OsString]) -> io::Result<()> {
    let misused = || io::Error::other("only flanneld itself starts this");
    let [parent, word, path] = words else { return Err(misused()) };
    set_pdeathsig(Signal::SIGKILL)?;
    let (verb, _) = *Verb::ALL.iter().find(|(_, name)| word == name).ok_or_else(misused)?;
    if parent.to_str() != Some(&getppid().to_string()) {
        return Err(misused());
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    verb.run(Path::new(path), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_is_held_up_is_no_reason_to_wait() {
        let (go_on, wait) = std::sync::mpsc::channel::<u8>();
        let mut task = FileIo::Aside.start(move || wait.recv());
        assert!(task.take().is_none());
        assert!(tokio::time::timeout(Duration::from_millis(10), task.finished()).await.is_err());
        go_on.send(7).unwrap();
        task.finished().await;
        assert_eq!((task.take(), task.take()), (Some(Ok(7)), None));
        assert_eq!(FileIo::Here.run(|| 8).await, 8);
    }

    #[test]
    fn the_writer_is_for_its_parent_only() {
        for words in [&["0", "write", "/nonexistent/file"][..], &["0"], &["0", "x", "/"]] {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            assert!(write_for_parent(&words).unwrap_err().to_string().contains("only flanneld itself"));
        }
    }
}
