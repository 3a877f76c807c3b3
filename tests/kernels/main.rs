//! Runs tests under other kernels than this machine's: `make test-kernels`.
//!
//! Debian's kernels are fetched and started by qemu, with this machine's files as theirs. In each of them run the tests of
//! `tests/guest`, of `tests/kernel` and some of `tests/it`. Names of kernels as arguments select some of them.

mod apt;
#[path = "../install/deb.rs"]
mod deb;
mod guest;
mod initramfs;
mod interrupt;
mod job;
mod programs;
mod report;
mod run;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use job::Job;
use programs::Programs;
use report::{Report, say};
use run::Failure;

/// How long a kernel may take. On an idle machine it takes two or three minutes, beside twenty busy programs an hour.
const LIMIT: Duration = Duration::from_secs(90 * 60);

/// The most guests at a time, because each needs memory.
const MOST: usize = 4;

/// What all jobs need.
struct Bench {
    programs: Programs,
    /// For files of this run.
    work: PathBuf,
    /// Where the output of each job stays.
    logs: PathBuf,
}

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let begun = Instant::now();
    let passed = run_all(&names).unwrap_or_else(|failure| {
        eprintln!("test-kernels: {failure}");
        false
    });
    println!("{} after {} s", if passed { "all kernels passed" } else { "FAILED" }, begun.elapsed().as_secs());
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether every job passed.
fn run_all(names: &[String]) -> Result<bool, Failure> {
    let jobs = Job::named(names).map_err(Failure)?;
    let programs = Programs::build()?;
    interrupt::catch();
    let work = tempfile::Builder::new().prefix("flanneld-kernels-").tempdir();
    let work = work.map_err(|error| Failure(format!("no temporary directory: {error}")))?;
    let logs = programs.guest.ancestors().nth(3).unwrap_or(Path::new("target")).join("test-kernels");
    let bench = Bench { programs, work: work.path().to_owned(), logs };
    // A guest keeps one processor busy, but for the moments in which its tests wait.
    let lanes = thread::available_parallelism().map_or(1, usize::from).saturating_add(1).min(MOST);
    let queue = Mutex::new(VecDeque::from(jobs));
    let next = || queue.lock().ok()?.pop_front();
    // Each lane runs one job after the other and counts those that failed.
    let fails = |job: &Job| interrupt::is_set() || !run_job(&bench, *job);
    let lane = || std::iter::from_fn(next).filter(fails).count();
    let failed = thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap_or(1)).sum::<usize>()
    });
    Ok(failed == 0)
}

/// Whether the job passed. If it did not, the reason is printed.
fn run_job(bench: &Bench, job: Job) -> bool {
    let result = Report::new(&job.name(), &bench.logs).and_then(|report| match job {
        Job::Own => on_this_machine(bench, job, report),
        Job::Kernel(series) | Job::Package(series) => {
            let kernel = apt::kernel(series, |text| say(&format!("{:<9} {text}\n", job.name())))?;
            in_a_guest(bench, job, &kernel, report)
        }
    });
    result.unwrap_or_else(|failure| {
        say(&format!("{:<9} FAILED: {failure}\n", job.name()));
        false
    })
}

fn in_a_guest(bench: &Bench, job: Job, kernel: &apt::Kernel, mut report: Report) -> Result<bool, Failure> {
    let work = bench.work.join(job.name());
    let package = matches!(job, Job::Package(_)).then(|| deb::build(&bench.work, "0.1.0-1"));
    let initramfs = initramfs::build(kernel, &job.steps(&bench.programs, package.as_deref()), &work)?;
    let mut guest = guest::Guest::boot(kernel, job.boot(), &initramfs, LIMIT)?;
    let reason = loop {
        match guest.line() {
            Ok(Some(line)) => report.line(&line),
            Ok(None) => break None,
            Err(failure) => break Some(failure),
        }
    };
    Ok(report.finish(reason, || guest.console()))
}

fn on_this_machine(bench: &Bench, job: Job, mut report: Report) -> Result<bool, Failure> {
    let release = run::succeed(Command::new("uname").arg("-r"))?;
    report.line(&format!("@version {}", release.trim().split('-').next().unwrap_or_default()));
    report.line("@begin scenarios");
    let mut command = Command::new(&bench.programs.guest);
    command.args(job::MEASUREMENTS);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure(format!("{}: {error}", job.name())))?;
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().for_each(|line| report.line(line));
    report.line(&format!("@end {}", output.status.code().unwrap_or(1)));
    report.line("@done");
    Ok(report.finish(None, String::new))
}
