//! What a guest starts from: busybox, the modules that mount the machine's files, and the job.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::Kernel;
use crate::run::{Failure, succeed};

/// With all that they need, in their order.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// Debian's busybox-static has no other name for the program.
const BUSYBOX: &str = "/bin/busybox";

/// Makes the archive `initramfs` in a directory. The guest runs `steps`, a part of `main.sh`.
pub fn build(kernel: &Kernel, steps: &str, work: &Path) -> Result<PathBuf, Failure> {
    let tree = work.join("tree");
    for name in ["bin", "proc", "sys", "dev", "root", "lower", "upper", "kernel", "modules", "job"] {
        let folder = tree.join(name);
        fs::create_dir_all(&folder).map_err(|error| Failure::of(&folder, error))?;
    }
    let busybox = tree.join("bin/busybox");
    fs::copy(BUSYBOX, &busybox).map_err(|error| Failure::of(Path::new(BUSYBOX), error))?;
    for (name, text) in [
        ("init", include_str!("init.sh")),
        ("job/main", include_str!("main.sh")),
        ("job/steps", steps),
        ("job/flanneld-test.service", include_str!("flanneld-test.service")),
        ("job/flanneld-test.target", include_str!("flanneld-test.target")),
        ("modules/order", &copy_modules(kernel, &tree.join("modules"))?),
    ] {
        let path = tree.join(name);
        fs::write(&path, text).map_err(|error| Failure::of(&path, error))?;
        let mode = if ["init", "job/main"].contains(&name) { 0o755 } else { 0o644 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|error| Failure::of(&path, error))?;
    }
    let archive = work.join("initramfs");
    let pack = format!("cd '{}' && find . | {BUSYBOX} cpio -o -H newc >'{}'", tree.display(), archive.display());
    succeed(Command::new("sh").args(["-c", &pack]))?;
    Ok(archive)
}

/// Copies the modules, unpacked; gives their file names, one a line, in the order in which they are loaded.
fn copy_modules(kernel: &Kernel, to: &Path) -> Result<String, Failure> {
    let release = kernel.release()?;
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("-d").arg(kernel.folder()).args(["-S", &release, "--show-depends", module]);
        // A module that is built in has a line `builtin NAME`.
        for path in succeed(&mut modprobe)?.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = Path::new(path.trim());
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let (name, unpack) = match name.rsplit_once('.') {
                Some((name, "xz")) => (name.to_owned(), "xz"),
                Some((name, "zst")) => (name.to_owned(), "zstd"),
                _ => (name, "cat"),
            };
            if order.contains(&name) {
                continue;
            }
            let file = fs::File::create(to.join(&name)).map_err(|error| Failure::of(to, error))?;
            let mut command = Command::new(unpack);
            command.args(if unpack == "cat" { &[][..] } else { &["-dc"] }).arg(path);
            let status = command.stdin(Stdio::null()).stdout(file).status();
            if !status.is_ok_and(|status| status.success()) {
                return Err(Failure(format!("{unpack} cannot read {}", path.display())));
            }
            order.push(name);
        }
    }
    Ok(order.iter().map(|name| name.clone() + "\n").collect())
}
