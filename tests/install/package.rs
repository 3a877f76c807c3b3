//! What is in the Debian package. How it installs, upgrades and goes is shown under systemd, in `tests/systemd`.

use crate::deb::{build, succeeds};
use crate::tree::{FLANNELD, REPOSITORY, files};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

fn unpacked() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let package = build(dir.path(), "0.1.0-1");
    succeeds(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(dir.path().join("package")));
    dir
}

fn read(directory: &Path, path: &str) -> String {
    std::fs::read_to_string(directory.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_package_holds_what_make_install_installs() {
    let dir = unpacked();
    let package = dir.path().join("package");
    let root = dir.path().join("installed");
    let mut make = Command::new(Path::new(REPOSITORY).join("packaging/install"));
    make.env("DESTDIR", &root).envs([("PREFIX", "/usr"), ("ZSHDIR", "share/zsh/vendor-completions")]);
    succeeds(make.env("BINARY", FLANNELD));
    let ours = |path: &str| path.starts_with("DEBIAN/") || path.starts_with("usr/share/doc/");
    let packed: BTreeMap<_, _> = files(&package).into_iter().filter(|(path, _)| !ours(path)).collect();
    // Debian's manual pages are compressed.
    let compressed = |path: String| if path.contains("/man/") { path + ".gz" } else { path };
    let installed: BTreeMap<_, _> = files(&root).into_iter().map(|(path, mode)| (compressed(path), mode)).collect();
    assert_eq!(packed, installed);
    for path in ["usr/lib/systemd/system/flanneld.service", "etc/default/flanneld", "usr/bin/flanneld-start"] {
        assert_eq!(read(&package, path), read(&root, path), "{path}");
    }
    assert_eq!(read(&package, "DEBIAN/conffiles"), "/etc/default/flanneld\n");
}

#[test]
fn the_package_says_what_it_needs() {
    let dir = unpacked();
    let control = read(&dir.path().join("package"), "DEBIAN/control");
    let field = |name: &str| {
        let line = control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name}: {control}"))
    };
    assert!(field("Depends").contains("libc6 (>= ") && field("Depends").contains("systemd"), "{control}");
    assert_eq!(field("Recommends"), "iptables, nftables");
    assert_eq!((field("Package"), field("Version")), ("flanneld", "0.1.0-1"));
    assert!(field("Description").len() <= 80, "{control}");
    for script in ["postinst", "prerm", "postrm"] {
        succeeds(Command::new("sh").arg("-n").arg(dir.path().join("package/DEBIAN").join(script)));
    }
}
