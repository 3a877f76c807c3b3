//! The test programs that run in guests.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::run::Failure;

/// Where the test programs are.
pub struct Programs {
    pub guest: PathBuf,
    pub it: PathBuf,
    pub kernel: PathBuf,
}

impl Programs {
    /// Builds them.
    pub fn build() -> Result<Programs, Failure> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--no-run", "--quiet", "--message-format=json"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.args(["--test", "guest", "--test", "it", "--test", "kernel"]).stderr(Stdio::inherit());
        // Build scripts of dependencies look at what cargo sets for this test, and would run again each time.
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            if ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|start| name.starts_with(start)) {
                cargo.env_remove(&*name);
            }
        }
        let output = cargo.output().map_err(|error| Failure(format!("cargo: {error}")))?;
        if !output.status.success() {
            return Err(Failure("the tests cannot be built".to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let messages: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let find = |name: &str| {
            let mut built = messages.iter().filter(|message| message["target"]["name"] == name);
            let path = built.find_map(|message| message["executable"].as_str());
            path.map(PathBuf::from).ok_or_else(|| Failure(format!("cargo built no test program {name}")))
        };
        Ok(Programs { guest: find("guest")?, it: find("it")?, kernel: find("kernel")? })
    }
}
