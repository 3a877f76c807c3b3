//! Kernels from Debian's archive, by an apt with a state of its own: the machine's sources, lists and lock stay untouched.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::run::{Failure, succeed};

/// A kernel of this age is fetched again, because its suite may have a newer one.
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where a suite is when Debian no longer supports it.
const ARCHIVE: &str = "http://archive.debian.org";

/// Drivers that a guest uses. Those for hardware are nine tenths of a kernel's size.
const DRIVERS: [&str; 4] = ["block", "char", "net", "virtio"];

/// A series of kernels, and where it comes from.
#[derive(Clone, Copy)]
pub struct Series {
    pub name: &'static str,
    /// Archive and suite.
    suites: &'static [(&'static str, &'static str)],
}

/// From the oldest that Debian's archive has to the newest.
pub const ALL: [Series; 4] = [
    Series { name: "5.10", suites: &[("debian", "bullseye"), ("debian-security", "bullseye-security")] },
    Series { name: "6.1", suites: &[("debian", "bookworm"), ("debian-security", "bookworm-security")] },
    Series { name: "6.12", suites: &[("debian", "trixie"), ("debian-security", "trixie-security")] },
    Series { name: "7", suites: &[("debian", "trixie-backports")] },
];

/// A kernel on this machine.
pub struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// What `modprobe -d` takes: it holds `lib/modules/VERSION`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// As `uname -r` prints it.
    pub fn release(&self) -> Result<String, Failure> {
        let modules = self.folder.join("lib/modules");
        let names = fs::read_dir(&modules).map_err(|error| Failure::of(&modules, error))?;
        let mut names = names.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.next().ok_or_else(|| Failure(format!("{} is empty", modules.display())))
    }
}

/// Where kernels are kept between runs: `flanneld-test/kernels` in the user's cache directory.
fn cache() -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let base = base.ok_or_else(|| Failure("neither XDG_CACHE_HOME nor HOME is set".to_owned()))?;
    let cache = base.join("flanneld-test/kernels");
    fs::create_dir_all(&cache).map_err(|error| Failure::of(&cache, error))?;
    Ok(cache)
}

/// The newest kernel of a series: fetched if the cache has none, or an old one. `note` receives what takes time.
pub fn kernel(series: Series, note: impl Fn(&str)) -> Result<Kernel, Failure> {
    let cache = cache()?;
    let lock = cache.join("lock");
    let lock = File::create(&lock).map_err(|error| Failure::of(&lock, error))?;
    lock.lock().map_err(|error| Failure(format!("the cache cannot be locked: {error}")))?;
    let folder = cache.join(series.name);
    let age = fs::metadata(folder.join("vmlinuz")).and_then(|data| data.modified()).ok();
    let age = age.map(|fetched| SystemTime::now().duration_since(fetched).unwrap_or_default());
    if age.is_none_or(|age| age > MONTH) {
        note(&format!("fetching the kernel {} into {}", series.name, folder.display()));
        match (fetch(series, &cache, &folder), age) {
            (Err(failure), None) => return Err(failure),
            (Err(failure), Some(_)) => note(&format!("using the kernel of last time: {failure}")),
            (Ok(()), _) => {}
        }
    }
    Ok(Kernel { folder })
}

fn fetch(series: Series, cache: &Path, folder: &Path) -> Result<(), Failure> {
    let work = tempfile::tempdir_in(cache).map_err(|error| Failure::of(cache, error))?;
    let apt = Apt::new(work.path(), series, &mirror())
        .or_else(|failure| Apt::new(work.path(), series, ARCHIVE).map_err(|_| failure))?;
    let image = apt.dependency("linux-image-amd64", "linux-image-")?;
    let release = image.trim_start_matches("linux-image-");
    let mut packages = vec![image.clone()];
    // Newer kernels are in several packages.
    packages.extend(
        ["linux-base-", "linux-binary-", "linux-modules-"]
            .iter()
            .filter_map(|start| apt.dependency(&image, start).ok()),
    );
    let root = work.path().join("root");
    for package in &packages {
        apt.run("apt-get", &["-qq", "download", package])?;
    }
    for file in fs::read_dir(work.path()).map_err(|error| Failure::of(work.path(), error))?.flatten() {
        if file.path().extension().is_some_and(|extension| extension == "deb") {
            succeed(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(&root))?;
        }
    }
    let new = work.path().join("new");
    unpack(&root, &new, release)?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&new, folder).map_err(|error| Failure::of(folder, error))
}

/// Keeps of an unpacked package the image and the modules that a guest may load.
fn unpack(root: &Path, new: &Path, release: &str) -> Result<(), Failure> {
    let find = succeed(Command::new("find").arg(root).args(["-type", "f", "-name", "vmlinuz*"]))?;
    let image = find.lines().next().ok_or_else(|| Failure(format!("no image in the package of {release}")))?;
    // A copy, so that its time is that of the fetch. In newer packages the image is among the modules.
    fs::create_dir_all(new)
        .and_then(|()| fs::copy(image, new.join("vmlinuz")))
        .map_err(|error| Failure::of(new, error))?;
    let usr = root.join("usr/lib/modules").join(release);
    let modules = if usr.exists() { usr } else { root.join("lib/modules").join(release) };
    let drivers = modules.join("kernel/drivers");
    for entry in fs::read_dir(&drivers).map_err(|error| Failure::of(&drivers, error))?.flatten() {
        if entry.path().is_dir() && !DRIVERS.iter().any(|name| entry.file_name() == *name) {
            fs::remove_dir_all(entry.path()).map_err(|error| Failure::of(&entry.path(), error))?;
        }
    }
    for folder in ["kernel/sound", "kernel/drivers/net/ethernet", "kernel/drivers/net/wireless"] {
        let _ = fs::remove_dir_all(modules.join(folder));
    }
    let lib = new.join("lib/modules");
    fs::create_dir_all(&lib).map_err(|error| Failure::of(&lib, error))?;
    fs::rename(&modules, lib.join(release)).map_err(|error| Failure::of(&lib, error))?;
    succeed(Command::new("depmod").arg("-b").arg(new).arg(release)).map(drop)
}

/// An apt whose whole state is in a directory.
struct Apt {
    folder: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// One that knows the packages of a series, as a mirror has them now.
    fn new(folder: &Path, series: Series, mirror: &str) -> Result<Apt, Failure> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| Failure::of(&path, error)).map(|()| path)
        };
        for name in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(|error| Failure::of(&path, error))?;
        }
        write("status", String::new())?;
        let line =
            |(archive, suite): &(&str, &str)| format!("deb [signed-by={KEYRING}] {mirror}/{archive} {suite} main\n");
        write("sources.list", series.suites.iter().map(line).collect())?;
        let at = folder.display();
        let config = format!(
            "Dir::State \"{at}\"; Dir::State::lists \"{at}/lists\"; Dir::State::status \"{at}/status\";\n\
             Dir::Cache \"{at}/cache\"; Dir::Etc::sourcelist \"{at}/sources.list\"; Dir::Etc::sourceparts \"-\";\n\
             Acquire::Languages \"none\"; Acquire::Retries \"3\"; Acquire::Check-Valid-Until \"false\";\n\
             APT::Update::Error-Mode \"any\"; APT::Sandbox::User \"root\"; APT::Architecture \"amd64\";\n"
        );
        let apt = Apt { folder: folder.to_owned(), config: write("apt.conf", config)? };
        apt.run("apt-get", &["-qq", "update"])?;
        Ok(apt)
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new(program);
        succeed(command.args(words).current_dir(&self.folder).env("APT_CONFIG", &self.config))
    }

    /// The one package whose name starts so on which `package` depends.
    fn dependency(&self, package: &str, start: &str) -> Result<String, Failure> {
        let text = self.run("apt-cache", &["depends", "--important", package])?;
        let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let name = names.find(|name| name.starts_with(start));
        name.map(str::to_owned).ok_or_else(|| Failure(format!("{package} depends on no {start}*: {text}")))
    }
}

/// The archive that this machine's own apt uses, if it is a Debian's; else Debian's own.
fn mirror() -> String {
    let words = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let targets = succeed(Command::new("apt-get").args(words)).unwrap_or_default();
    let mut archives = targets.lines().filter_map(|uri| uri.trim_end_matches('/').strip_suffix("/debian"));
    archives.next().unwrap_or("http://deb.debian.org").to_owned()
}
