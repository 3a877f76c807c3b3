//! The programs that read and change the firewall.

use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// How long a program may take. Others may hold the lock of the tables for some seconds.
const DEADLINE: Duration = Duration::from_secs(20);

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
        /// What it said.
        text: String,
    },
}

/// Runs a program with this input and gives its output.
///
/// # Errors
/// When it is missing, fails, or takes longer than 20 s.
pub async fn run(program: &'static str, args: &[&str], input: &str) -> Result<String, ToolError> {
    let failed = |text: String| ToolError::Failed { program, text };
    let mut command = Command::new(program);
    command.args(args).env("PATH", path()).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let package = if program == "nft" { "nftables" } else { "iptables" };
            return Err(ToolError::Missing { program, package });
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read to the end says itself why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let work = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = match timeout(DEADLINE, work).await {
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("it did not end within {} s", DEADLINE.as_secs()))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(failed(if said.is_empty() { output.status.to_string() } else { said.chars().take(500).collect() }))
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
}
