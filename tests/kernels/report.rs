//! What is printed: a line for each step of a kernel. Of a step that fails its whole output.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::run::Failure;

/// Tests print what they measure behind this word.
const MEASURED: &str = "measured: ";

/// The report of one kernel.
pub struct Report {
    name: String,
    log: File,
    path: PathBuf,
    step: Option<Step>,
    failed: bool,
    complete: bool,
}

struct Step {
    name: String,
    begun: Instant,
    output: String,
}

impl Report {
    /// The whole output goes to `NAME.log` in this folder.
    pub fn new(name: &str, folder: &Path) -> Result<Report, Failure> {
        let path = folder.join(format!("{name}.log"));
        fs::create_dir_all(folder).map_err(|error| Failure::of(folder, error))?;
        let log = File::create(&path).map_err(|error| Failure::of(&path, error))?;
        Ok(Report { name: name.to_owned(), log, path, step: None, failed: false, complete: false })
    }

    /// Takes a line of the job: what `main.sh` prints of steps, or what the step's program prints.
    pub fn line(&mut self, line: &str) {
        let _ = writeln!(self.log, "{line}");
        match line.split_once(' ') {
            Some(("@version", version)) => self.name = version.to_owned(),
            Some(("@begin", name)) => {
                self.step = Some(Step { name: name.to_owned(), begun: Instant::now(), output: String::new() });
            }
            Some(("@end", status)) => self.end_step(status),
            None if line == "@done" => self.complete = true,
            _ => {
                if let Some(step) = &mut self.step {
                    step.output += line;
                    step.output.push('\n');
                }
            }
        }
    }

    fn end_step(&mut self, status: &str) {
        let Some(step) = self.step.take() else { return };
        let seconds = step.begun.elapsed().as_secs();
        let result = step.output.lines().rev().find_map(|line| line.strip_prefix("test result: "));
        let passed =
            result.and_then(|result| result.split_once("ok. ")?.1.split_once(" passed")).map(|(count, _)| count);
        if status == "0" && passed.is_some_and(|count| count != "0") {
            let mut text =
                format!("{:<9} {:<10} ok, {} tests in {seconds} s\n", self.name, step.name, passed.unwrap_or("0"));
            for line in step.output.lines().filter_map(|line| line.strip_prefix(MEASURED)) {
                text += &format!("{:<20} {line}\n", self.name);
            }
            say(&text);
            return;
        }
        self.failed = true;
        let result = result.unwrap_or("no test ran");
        say(&format!(
            "{:<9} {:<10} FAILED after {seconds} s: {result}\n{}\n",
            self.name,
            step.name,
            failures(&step.output)
        ));
    }

    /// To be called at the end: whether all passed. `reason` is why there is no more, `console` what the kernel printed.
    pub fn finish(mut self, reason: Option<Failure>, console: impl FnOnce() -> String) -> bool {
        if self.complete && !self.failed {
            return true;
        }
        let log = self.path.display();
        if self.complete {
            say(&format!(
                "{:<9} FAILED: its output is in {log}; the kernel's last messages:\n{}\n",
                self.name,
                console()
            ));
            return false;
        }
        let reason = reason.map_or("the kernel ended before its tests".to_owned(), |failure| failure.0);
        let step = self.step.take();
        let output = step.as_ref().map_or("", |step| &step.output);
        let during = step.as_ref().map_or("the boot", |step| &step.name);
        say(&format!(
            "{:<9} FAILED during {during}: {reason}; its output is in {log}\n{output}---- the kernel's last messages\n{}\n",
            self.name,
            console()
        ));
        false
    }
}

/// The part of a test program's output that is about failed tests, or all of it.
fn failures(output: &str) -> &str {
    output.find("\nfailures:\n").map_or(output, |at| &output[at..])
}

/// Prints at once what belongs together.
pub fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
