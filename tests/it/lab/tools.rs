//! The firewall's programs in a directory of a test's own, which the daemon finds before the real ones.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Host, program};

const NAMES: [&str; 7] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore", "nft"];

/// A directory of programs.
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    fn create(host: &Host) -> Tools {
        let dir = host.path("tools");
        fs::create_dir(&dir).expect("a directory for programs");
        Tools { dir }
    }

    /// The real ones; every start is noted, and none of them comes to anything while [`Tools::hang`] is in force.
    pub fn watched(host: &Host) -> Tools {
        let tools = Tools::create(host);
        let dir = tools.dir.display();
        for name in NAMES {
            let real = real(name).display().to_string();
            tools.script(name, &format!(
                "echo {name} >>{dir}/starts\n[ ! -e {dir}/hang ] || {{ echo $$ >>{dir}/hanging; exec sleep 1000; }}\n\
                 exec {real} \"$@\""
            ));
        }
        tools
    }

    /// iptables-legacy under the names of iptables, as where an administrator has chosen it.
    pub fn legacy(host: &Host) -> Tools {
        let tools = Tools::create(host);
        for name in NAMES.into_iter().filter(|name| *name != "nft") {
            symlink(real("xtables-legacy-multi"), tools.dir.join(name)).expect("a link");
        }
        tools
    }

    /// A copy of this program is there from now on.
    pub fn install(dir: &Path, name: &str) {
        program::install(&real(name), &dir.join(format!("{name}.new")));
        fs::rename(dir.join(format!("{name}.new")), dir.join(name)).expect("its name");
    }

    /// A shell script of the test's own in place of a program.
    pub fn replace(host: &Host, name: &str, text: &str) -> Tools {
        let tools = Tools::create(host);
        tools.script(name, text);
        tools
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        program::write(&path, format!("#!/bin/sh\n{text}\n").as_bytes());
    }

    /// The words for `env` that put the directory first.
    pub fn env(&self) -> Vec<String> {
        vec![format!("PATH={}:{}", self.dir.display(), env::var("PATH").expect("a PATH"))]
    }

    /// The programs that were started, in order.
    pub fn starts(&self) -> Vec<String> {
        self.lines("starts")
    }

    /// From now on they sleep, or again work.
    pub fn hang(&self, hang: bool) {
        let path = self.dir.join("hang");
        if hang { fs::write(path, "") } else { fs::remove_file(path) }.expect("the sign to hang");
    }

    /// Those that sleep or slept, by process id.
    pub fn hung(&self) -> Vec<String> {
        self.lines("hanging")
    }

    fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// Where a program really is, behind all links.
fn real(name: &str) -> PathBuf {
    let dirs = env::split_paths(&env::var_os("PATH").expect("a PATH")).collect::<Vec<_>>();
    let found = dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {name} in {dirs:?}"))
}
