//! A Debian package as `make deb` makes it, but of the build under test: an optimised one takes minutes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes a package of this version in a directory. The program in it is like no other version's, byte for byte.
#[track_caller]
pub fn build(directory: &Path, version: &str) -> PathBuf {
    let has_deb =
        Command::new(env!("CARGO")).args(["deb", "--version"]).output().is_ok_and(|output| output.status.success());
    assert!(has_deb, "cargo deb is missing: make cargo-deb");
    let target = directory.join(version);
    let binary = target.join("release/flanneld");
    fs::create_dir_all(target.join("release")).expect("a directory");
    succeeds(Command::new("strip").arg("-o").arg(&binary).arg(env!("CARGO_BIN_EXE_flanneld")));
    let mut program = OpenOptions::new().append(true).open(&binary).expect("the program");
    program.write_all(version.as_bytes()).expect("the program");
    let package = directory.join(format!("flanneld_{version}.deb"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["deb", "--no-build", "--no-strip", "--locked", "--offline", "--fast", "--deb-version", version]);
    cargo.arg("--output").arg(&package).current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", &target);
    succeeds(&mut cargo);
    fs::remove_dir_all(target).expect("it can be removed");
    package
}

/// Runs a command to its end: what it printed.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
