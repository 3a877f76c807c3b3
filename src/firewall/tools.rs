//! The programs that read and change the firewall.

use crate::model::foreign::{MESSAGE, shown};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a program may take. Others may hold the lock of the tables for some seconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// The largest output of a program, in bytes: 300,000 rules as iptables-save prints them.
const LARGEST_OUTPUT: usize = 64 << 20;

/// The largest complaint of a program, in bytes.
const LARGEST_ERROR: usize = 1 << 20;

/// Why a program did not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is not installed: install the package {package}")]
    Missing {
        /// Its name.
        program: &'static str,
        /// The package of Debian and others that has it.
        package: &'static str,
    },
    /// It was started and failed.
    #[error("{program} failed: {text}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// The program's own words.
        text: String,
    },
}

/// Runs a program with this input and gives its output. The program and all that it starts are a process group, which is
/// killed when the deadline passes or the caller loses interest.
///
/// # Errors
/// When it is missing, fails, takes longer than 20 s, or writes more than an honest one does.
pub async fn run(program: &'static str, args: &[&str], input: &str) -> Result<String, ToolError> {
    let failed = |text: String| ToolError::Failed { program, text };
    let mut child = match command(program, args).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let package = if program == "nft" { "nftables" } else { "iptables" };
            return Err(ToolError::Missing { program, package });
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let mut group = Group::of(&child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read to the end says itself why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        Ok(())
    };
    let work = async {
        let ((), output, errors) = tokio::try_join!(feed, read(stdout, LARGEST_OUTPUT), read(stderr, LARGEST_ERROR))?;
        Ok::<_, String>((output, errors, child.wait().await.map_err(|error| error.to_string())?))
    };
    let (output, errors, status) = match timeout(DEADLINE, work).await {
        Ok(done) => done.map_err(failed)?,
        Err(_) => return Err(failed(format!("it did not end within {} s", DEADLINE.as_secs()))),
    };
    group.has_ended();
    if status.success() {
        return Ok(String::from_utf8_lossy(&output).into_owned());
    }
    let said = String::from_utf8_lossy(&errors).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(failed(if said.is_empty() { status.to_string() } else { shown(&said, MESSAGE) }))
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours_alone(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.args(args).env("PATH", path()).env("LC_ALL", "C").kill_on_drop(true).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Whether a variable of the environment is for the daemon and no program that it starts: secrets, and what lets a process
/// speak for the service.
fn is_ours_alone(name: &str) -> bool {
    const OF_THE_SERVICE: [&str; 4] = ["NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG_USEC", "WATCHDOG_PID"];
    name.starts_with("FLANNEL") || name.starts_with("LISTEN_") || OF_THE_SERVICE.contains(&name)
}

/// Everything that a program writes, up to `most` bytes.
async fn read(from: Option<impl AsyncRead + Unpin>, most: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let Some(from) = from else { return Ok(bytes) };
    from.take(most as u64 + 1).read_to_end(&mut bytes).await.map_err(|error| error.to_string())?;
    match bytes.len() > most {
        true => Err(format!("it writes more than {} KiB", most >> 10)),
        false => Ok(bytes),
    }
}

/// The process group of a program, which ends when this value is dropped unless the program has ended by itself.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Group(child.id().map(|id| Pid::from_raw(id.cast_signed())))
    }

    fn has_ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone already.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Tools of the administrator may be missing from a user's PATH.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_failure_and_absence_are_told_apart() {
        assert_eq!(run("cat", &[], "text").await, Ok("text".into()));
        let failed = run("sh", &["-c", "echo some  reason >&2; exit 3"], "").await;
        assert_eq!(failed, Err(ToolError::Failed { program: "sh", text: "some reason".into() }));
        let missing = run("no-such-iptables", &[], "").await.unwrap_err();
        assert_eq!(missing.to_string(), "no-such-iptables is not installed: install the package iptables");
        let much = "x".repeat(1 << 20);
        assert_eq!(run("cat", &[], &much).await, Ok(much));
    }

    #[tokio::test]
    async fn a_program_that_floods_is_stopped_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; yes >&2", pid.display());
        let error = run("sh", &["-c", &script], "").await.unwrap_err();
        assert_eq!(error.to_string(), "sh failed: it writes more than 1024 KiB");
        ends(&std::fs::read_to_string(pid).unwrap()).await;
        let error = run("yes", &[], "").await.unwrap_err();
        assert_eq!(error.to_string(), "yes failed: it writes more than 65536 KiB");
    }

    #[tokio::test]
    async fn a_program_that_hangs_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", pid.display());
        let args = ["-c", &script];
        let hangs = run("sh", &args, "");
        // The caller may drop the future before the deadline passes.
        assert!(timeout(Duration::from_secs(2), hangs).await.is_err());
        ends(&std::fs::read_to_string(pid).unwrap()).await;
    }

    /// Waits until a process is gone, or a zombie that its new parent has not seen yet.
    async fn ends(pid: &str) {
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..2000 {
            match std::fs::read_to_string(&stat) {
                Ok(text) if !text.contains(") Z ") => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => return,
            }
        }
        panic!("process {pid} still runs");
    }

    #[test]
    fn secrets_and_the_services_sockets_stay_with_the_daemon() {
        for name in ["FLANNELD_ETCD_PASSWORD", "FLANNEL_OPTIONS", "NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC"] {
            assert!(is_ours_alone(name), "{name}");
        }
        for name in ["PATH", "XTABLES_LOCKFILE", "LD_LIBRARY_PATH", "HOME"] {
            assert!(!is_ours_alone(name), "{name}");
        }
    }
}
