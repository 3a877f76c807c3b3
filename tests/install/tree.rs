//! `make install` into a directory that stands for `/`, as who makes a package calls it.

use crate::lab::program;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

pub const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
pub const FLANNELD: &str = env!("CARGO_BIN_EXE_flanneld");

/// What is installed below a prefix, and its mode; of a link, what it points to.
const BELOW_PREFIX: [(&str, &str); 16] = [
    ("bin/flanneld", "755"),
    ("bin/flanneld-start", "755"),
    ("share/flanneld/docker-flannel.conf", "644"),
    ("share/flanneld/flanneld-credentials.conf", "644"),
    ("share/flanneld/flanneld-iptables-legacy.conf", "644"),
    ("share/flanneld/flannel.networkmanager.conf", "644"),
    ("lib/systemd/network/10-flannel.network", "644"),
    ("lib/systemd/system/flanneld.service", "644"),
    ("lib/sysusers.d/flannel.conf", "644"),
    ("lib/tmpfiles.d/flannel.conf", "644"),
    ("libexec/flannel/mk-docker-opts.sh", "../../bin/flanneld"),
    ("share/bash-completion/completions/flanneld", "644"),
    ("share/fish/vendor_completions.d/flanneld.fish", "644"),
    ("share/man/man8/flanneld-docker-opts.8", "644"),
    ("share/man/man8/flanneld.8", "644"),
    ("share/zsh/site-functions/_flanneld", "644"),
];

/// `make` in the repository, where neither cargo nor anything else is that could build.
struct Make {
    root: TempDir,
    /// Empty, but for a systemctl that leaves a mark if it is called.
    tools: TempDir,
}

impl Make {
    fn new() -> Self {
        let (root, tools) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        for name in ["systemctl", "systemd-sysusers", "systemd-tmpfiles", "cargo", "rustc"] {
            let path = tools.path().join(name);
            program::write(&path, b"#!/bin/sh\necho \"$0 $*\" >>\"${0%/*}/called\"\n");
        }
        Make { root, tools }
    }

    /// As on a machine that systemd runs.
    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", "mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system; exec \"$@\""]);
        command.args(["sh", "make", "-C", REPOSITORY]).args(words);
        command.env_clear().env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.tools.path().display()));
        command.arg(format!("DESTDIR={}", self.root.path().display())).output().expect("make starts")
    }

    #[track_caller]
    fn succeeds(&self, words: &[&str]) {
        let output = self.run(words);
        assert!(output.status.success(), "{output:?}");
        let called = fs::read_to_string(self.tools.path().join("called")).unwrap_or_default();
        assert_eq!(called, "", "it builds nothing, and leaves the machine alone");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

/// Every file below a directory, and its mode; of a link, what it points to.
pub fn files(root: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("metadata");
            let what = match fs::read_link(&path) {
                Ok(target) => target.display().to_string(),
                Err(_) if metadata.is_dir() => {
                    directories.push(path);
                    continue;
                }
                Err(_) => format!("{:o}", metadata.permissions().mode() & 0o7777),
            };
            files.insert(path.strip_prefix(root).expect("below").display().to_string(), what);
        }
    }
    files
}

fn expected(prefix: &str) -> BTreeMap<String, String> {
    let below = BELOW_PREFIX.iter().map(|(path, what)| (format!("{prefix}/{path}"), (*what).to_owned()));
    below.chain([("etc/default/flanneld".to_owned(), "644".to_owned())]).collect()
}

#[test]
fn everything_is_where_it_belongs_and_units_name_what_was_installed() {
    for (words, prefix) in [
        (&["install"][..], "usr/local"),
        (&["install", "PREFIX=/usr"], "usr"),
        (&["install", "PREFIX=/opt/flannel"], "opt/flannel"),
    ] {
        let make = Make::new();
        make.succeeds(&[words, &[&format!("BINARY={FLANNELD}")]].concat());
        assert_eq!(files(make.root.path()), expected(prefix));
        let unit = make.read(&format!("{prefix}/lib/systemd/system/flanneld.service"));
        assert!(unit.contains(&format!("\nExecStart=/{prefix}/bin/flanneld ")), "{unit}");
        let start = make.read(&format!("{prefix}/bin/flanneld-start"));
        assert!(start.contains(&format!("\nexec /{prefix}/bin/flanneld ")), "{start}");
        let link = make.root.path().join(prefix).join("libexec/flannel/mk-docker-opts.sh");
        let output = Command::new(link).arg("-h").output().expect("it runs");
        assert!(String::from_utf8_lossy(&output.stdout).contains("docker-opts"), "{output:?}");
        make.succeeds(&[&["uninstall"], &words[1..]].concat());
        assert_eq!(files(make.root.path()), BTreeMap::from([("etc/default/flanneld".into(), "644".into())]));
    }
}

#[test]
fn what_the_administrator_has_configured_stays() {
    let make = Make::new();
    let binary = format!("BINARY={FLANNELD}");
    let install = ["install", &binary, "CONFIG=/etc/sysconfig/flanneld"];
    make.succeeds(&install);
    let shipped = make.read("etc/sysconfig/flanneld");
    let set = shipped.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(set, None, "it would override what is set in another file");
    assert!(!make.root.path().join("etc/default").exists());
    fs::write(make.root.path().join("etc/sysconfig/flanneld"), "FLANNEL_OPTIONS=-v=1\n").expect("a file");
    make.succeeds(&install);
    assert_eq!(make.read("etc/sysconfig/flanneld"), "FLANNEL_OPTIONS=-v=1\n");
}

#[test]
fn a_program_that_runs_is_replaced_and_an_old_link_too() {
    let make = Make::new();
    let at = |path: &str| -> PathBuf { make.root.path().join("usr").join(path) };
    fs::create_dir_all(at("bin")).expect("a directory");
    fs::create_dir_all(at("libexec/flannel")).expect("a directory");
    program::install(Path::new("/bin/sleep"), &at("bin/flanneld"));
    symlink("/nowhere", at("libexec/flannel/mk-docker-opts.sh")).expect("a link");
    let mut old = Command::new(at("bin/flanneld")).arg("60").spawn().expect("it runs");
    make.succeeds(&["install", "PREFIX=/usr", &format!("BINARY={FLANNELD}")]);
    let runs = old.try_wait().expect("a child").is_none();
    old.kill().and_then(|()| old.wait()).expect("it ends");
    assert!(runs && files(make.root.path()) == expected("usr"));
}

#[test]
fn without_a_program_nothing_is_installed() {
    let make = Make::new();
    let output = make.run(&["install", "BINARY=/nowhere/flanneld"]);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && complaint.contains("no /nowhere/flanneld") && complaint.contains("make build"));
    assert!(files(make.root.path()).is_empty());
}
