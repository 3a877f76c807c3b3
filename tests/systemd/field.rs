//! Units, drop-ins and environment files of the kinds that people have, each in a folder of `field/`, run by a real systemd.
//!
//! `root/` of a folder is laid over the machine's `/`. `expect` says what must come of it, a line a step:
//!
//! | step | meaning |
//! |---|---|
//! | `ready` | `systemctl start` succeeds, and the host has a subnet |
//! | `running` | the same for a unit that gets no notification: the subnet comes by itself |
//! | `fails` | `systemctl start` fails |
//! | `reload` | `systemctl reload` succeeds |
//! | `run COMMAND` | a shell command succeeds |
//! | `log TEXT` | the unit's journal contains the text |

use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::{CONFIG, FLANNELD, Lab};
use crate::machine::{Machine, in_time};
use crate::site::{self, SUBNET_ENV};

/// The prefixes that the folders use. Each has a network config.
const PREFIXES: [&str; 3] = ["/coreos.com/network", "/atomic.io/network", "/kubernetes/network"];

/// The folders of set-ups, sorted by name.
fn set_ups() -> Vec<PathBuf> {
    let field = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemd/field");
    let entries = fs::read_dir(&field).expect("the folder of set-ups").map(|entry| entry.expect("an entry").path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// The files below `dir`, as absolute paths of the machine.
fn files(dir: &Path, below: &str, found: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = format!("{below}/{}", path.file_name().expect("a name").to_string_lossy());
        if path.is_dir() { files(&path, &name, found) } else { found.push((name, path)) }
    }
}

/// What flanneld's unit logs while one set-up is tried.
struct Journal<'m> {
    machine: &'m Machine,
    text: String,
}

impl Journal<'_> {
    /// Starts where the journal ends now.
    fn of(machine: &Machine) -> Journal<'_> {
        let mut journal = Journal { machine, text: String::new() };
        journal.read();
        journal.text.clear();
        journal
    }

    /// All that was logged since the set-up began.
    fn read(&mut self) -> &str {
        let words =
            ["journalctl", "-b", "-o", "cat", "--no-pager", "--cursor-file=/run/field.cursor", "-u", "flanneld"];
        self.text += &self.machine.run(&words).unwrap_or_default();
        &self.text
    }
}

/// Takes one step of `expect`; returns what is wrong.
fn step(machine: &Machine, journal: &mut Journal, line: &str) -> Result<(), String> {
    let has_subnet = || machine.run(&["test", "-s", SUBNET_ENV]).is_ok();
    match line.split_once(' ').unwrap_or((line, "")) {
        ("ready", _) => {
            machine.run(&["timeout", "60", "systemctl", "start", "flanneld"])?;
            has_subnet().then_some(()).ok_or_else(|| "there is no subnet.env".to_owned())
        }
        ("running", _) => {
            machine.run(&["systemctl", "start", "flanneld"])?;
            in_time("the host has a subnet", has_subnet);
            Ok(())
        }
        ("fails", _) => match machine.run(&["timeout", "60", "systemctl", "start", "flanneld"]) {
            Ok(_) => Err("it starts".to_owned()),
            Err(_) => Ok(()),
        },
        ("reload", _) => machine.run(&["systemctl", "reload", "flanneld"]).map(drop),
        ("run", command) => machine.run(&["sh", "-ec", command]).map(drop),
        ("log", text) => {
            in_time(text, || journal.read().contains(text));
            Ok(())
        }
        _ => Err("no such step".to_owned()),
    }
}

/// Lays a set-up over the machine, takes its steps, and takes it away again.
fn try_set_up(machine: &Machine, folder: &Path) -> Result<(), String> {
    let mut found = Vec::new();
    files(&folder.join("root"), "", &mut found);
    for (path, from) in &found {
        machine.live().install(path, fs::read(from).expect("a file"), 0o644);
    }
    machine.systemctl(&["daemon-reload"]);
    let mut journal = Journal::of(machine);
    let expect = fs::read_to_string(folder.join("expect")).expect("what is expected");
    let mut steps = expect.lines();
    let outcome =
        steps.try_for_each(|line| step(machine, &mut journal, line).map_err(|error| format!("{line}: {error}")));
    machine.sh("systemctl stop flanneld; systemctl reset-failed flanneld 2>/dev/null || true");
    found.iter().for_each(|(path, _)| machine.live().remove(path));
    machine.sh("rm -rf /run/flannel /var/lib/flannel /run/docker_opts.env; ip link del flannel.1 2>/dev/null || true");
    outcome.map_err(|error| format!("{error}\n---- journal\n{}", journal.read()))
}

#[test]
fn units_and_environment_files_as_people_have_them_work() {
    let lab = Lab::new("field");
    let etcd = lab.etcd();
    PREFIXES.iter().for_each(|prefix| etcd.put(&format!("{prefix}/config"), CONFIG));
    let host = lab.host(1);
    let machine = Machine::boot(&host, |root| {
        root.install_program("/usr/bin/flanneld", FLANNELD);
        root.install("/usr/bin/flanneld-start", site::shipped("flanneld-start"), 0o755);
        root.link("/usr/libexec/flannel/mk-docker-opts.sh", "/usr/bin/flanneld");
    });
    machine.wait_running();
    let set_ups = set_ups();
    assert!(set_ups.len() >= 20, "only {} set-ups", set_ups.len());
    let mut failed = Vec::new();
    for folder in &set_ups {
        PREFIXES.iter().for_each(|prefix| etcd.del_prefix(&format!("{prefix}/subnets")));
        if let Err(error) = try_set_up(&machine, folder) {
            failed.push(format!("==== {}: {error}", folder.file_name().expect("a name").to_string_lossy()));
        }
    }
    assert!(failed.is_empty(), "{} of {} set-ups fail\n{}", failed.len(), set_ups.len(), failed.join("\n"));
}
