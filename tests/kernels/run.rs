//! Programs that run to their end, and what went wrong with one.

use std::fmt::{self, Display};
use std::path::Path;
use std::process::{Command, Stdio};

/// Why the tests cannot run.
pub struct Failure(pub String);

impl Failure {
    pub fn of(path: &Path, error: std::io::Error) -> Failure {
        Failure(format!("{}: {error}", path.display()))
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs a program to its end: what it printed, or, if it failed, its command line and its errors.
pub fn succeed(command: &mut Command) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure(format!("{name}: {error}; `make setup` installs what is missing")))?;
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(Failure(format!("{name} {}: {}: {}", words.join(" "), output.status, errors.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
