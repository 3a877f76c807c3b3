//! The files of a machine.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::netns::output;
use crate::lab::program;

/// The directory that is a machine's `/`. All paths are as the machine sees them.
pub struct Root {
    dir: PathBuf,
}

impl Root {
    pub(super) fn at(dir: PathBuf) -> Root {
        Root { dir }
    }

    /// Where a file of the machine is for the test. Absolute symbolic links lead astray.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    /// A file with this content and mode, in the place of another; directories are made.
    pub fn install(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        // Beside it and renamed: a program that runs may be replaced.
        let new = path.with_extension("lab-new");
        match mode & 0o111 {
            0 => fs::write(&new, content).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
            _ => program::write(&new, content.as_ref()),
        }
        fs::set_permissions(&new, Permissions::from_mode(mode)).expect("its mode");
        fs::rename(&new, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// A text that everybody may read.
    pub fn write(&self, path: &str, text: &str) {
        self.install(path, text, 0o644);
    }

    /// A copy of a program.
    pub fn install_program(&self, path: &str, from: impl AsRef<Path>) {
        let from = from.as_ref();
        self.install(path, fs::read(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())), 0o755);
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        let _ = fs::remove_file(&path);
        symlink(target, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Removes a file or a directory with all that is in it, if it is there.
    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        let _ = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }

    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }

    /// A unit, or a part of one (`docker.service.d/flannel.conf`), where an administrator would put it.
    pub fn unit(&self, name: &str, text: &str) {
        self.write(&format!("/etc/systemd/system/{name}"), text);
    }

    /// `systemctl enable`, before the boot.
    #[track_caller]
    pub fn enable(&self, units: &[&str]) {
        let root = format!("--root={}", self.dir.display());
        output(Command::new("systemctl").args([&root, "enable"]).args(units))
            .unwrap_or_else(|error| panic!("systemctl enable {units:?}: {error}"));
    }
}
