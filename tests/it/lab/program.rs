//! Programs that a test puts somewhere and then runs.
//!
//! The kernel refuses to run a file that any process has open for writing ("Text file busy"). A child that another test forks
//! at the wrong moment inherits every open file of this process until it executes its own program. So this process never
//! opens a program for writing: a child writes the file, and that child has ended before the file is run.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Puts a copy of the program `from` at `path`, in place of what is there. Directories are made.
#[track_caller]
pub fn install(from: &Path, path: &Path) {
    let status = Command::new("install").args(["-D", "-m", "755"]).arg(from).arg(path).status();
    assert!(status.is_ok_and(|status| status.success()), "{} is not installed as {}", from.display(), path.display());
}

/// Puts an executable file with this content at `path`, such as a script. Directories are made.
#[track_caller]
pub fn write(path: &Path, content: &[u8]) {
    let mut child = Command::new("install")
        .args(["-D", "-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("install starts");
    child.stdin.take().expect("its input").write_all(content).expect("install reads");
    assert!(child.wait().is_ok_and(|status| status.success()), "{} is not written", path.display());
}
