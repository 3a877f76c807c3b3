//! The binaries that are compared.

use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use crate::cluster::Network;
use crate::lab::Host;

/// A binary with flanneld's flags.
#[derive(Debug, Clone)]
pub struct Contestant {
    pub name: String,
    pub path: String,
    /// Whether it has the flags that ours has beyond flannel's; without them it would write outside its host's directory.
    has_own_flags: bool,
}

impl FromStr for Contestant {
    type Err = String;

    /// `NAME=PATH` or `PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').unwrap_or((text, text));
        let help = Command::new(path).arg("--help").output().map_err(|error| format!("{path}: {error}"))?;
        let help = [help.stdout, help.stderr].concat();
        let has_own_flags = String::from_utf8_lossy(&help).contains("state-dir");
        Ok(Contestant { name: name.to_owned(), path: path.to_owned(), has_own_flags })
    }
}

impl Contestant {
    /// The flags with which it joins `network`. Files that flanneld writes to /run by default go to `run`. If a flag is given
    /// twice, the second one applies.
    pub fn flags(&self, host: &Host, network: &Network, run: &Path) -> Vec<String> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", run.join(name).display());
        let mut flags = if self.has_own_flags { network.own_flags(host) } else { network.flags(host) };
        flags.push(file("subnet-file", "subnet.env"));
        if self.has_own_flags {
            flags.push(file("docker-opts-file", "docker_opts.env"));
        }
        flags
    }

    /// Size of the binary in MiB.
    pub fn size(&self) -> f64 {
        std::fs::metadata(&self.path).map_or(0.0, |file| file.len() as f64 / f64::from(1 << 20))
    }
}
