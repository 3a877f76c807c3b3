//! The files that flanneld reads and writes: each complete or not at all.

use crate::model::env_files::{DockerLines, DockerOpts, SubnetEnv};
use crate::model::mac::VtepMac;
use crate::model::state_file::{self, Remembered};
use ipnet::Ipv4Net;
use nix::libc;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// No file of ours comes near this size.
const LARGEST: u64 = 1 << 20;

/// What a file holds. A FIFO or a device, which may never come to an end, is refused, and so is a file too large to be
/// one of ours.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if !metadata.is_file() {
        return Err(not_a_file());
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

fn not_a_file() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// Puts `text` at `path`, whole or not at all, readable by everyone: a temporary file beside it, flushed to the disk,
/// renamed. Directories are made; a symbolic link is followed, not replaced, and nor is a device or a FIFO.
pub fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let target = follow_links(path)?;
    if fs::symlink_metadata(&target).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Err(not_a_file());
    }
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new().prefix(".flanneld-").tempfile_in(directory).map_err(bare)?;
    file.as_file_mut().write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}

/// The error without the name of the temporary file, which is another one each time: the reason is not.
fn bare(error: io::Error) -> io::Error {
    error.kind().into()
}

/// The path behind symbolic links, the last of which may point to nothing yet.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    const MOST: usize = 40;
    let mut target = path.to_owned();
    for _ in 0..MOST {
        match fs::read_link(&target) {
            Ok(next) => target = target.parent().unwrap_or(Path::new("")).join(next),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// `subnet.env` and `docker_opts.env`.
#[derive(Debug)]
pub struct EnvFiles {
    subnet_file: PathBuf,
    docker_opts_file: Option<PathBuf>,
    ip_masq: bool,
    written: Option<SubnetEnv>,
    doubted: bool,
}

impl EnvFiles {
    /// The files at these paths; no `docker_opts.env` with `None`. `ip_masq` says whether we masquerade, so that Docker
    /// does not.
    pub fn new(subnet_file: PathBuf, docker_opts_file: Option<PathBuf>, ip_masq: bool) -> Self {
        EnvFiles { subnet_file, docker_opts_file, ip_masq, written: None, doubted: false }
    }

    /// The subnet that `subnet.env` names from an earlier run. One that cannot be read is a warning, not a failure.
    pub fn previous_subnet(&self) -> Option<Ipv4Net> {
        use crate::model::env_files::previous_subnet;
        let path = self.subnet_file.display();
        match read(&self.subnet_file) {
            Ok(bytes) => previous_subnet(&String::from_utf8_lossy(&bytes)).unwrap_or_else(|problem| {
                tracing::warn!("{path} is ignored: {problem}");
                None
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!("{path} is ignored: it cannot be read: {error}");
                None
            }
        }
    }

    /// Brings both files up to date; one that holds the right text already is left as it is.
    ///
    /// # Errors
    /// Names the file that cannot be written, and why.
    pub fn write(&mut self, network: Ipv4Net, subnet: Ipv4Net, mtu: u32) -> Result<(), String> {
        let env = SubnetEnv { ipv4: Some((network, subnet)), ipv6: None, mtu, ip_masq: self.ip_masq };
        if !self.doubted && self.written.as_ref() == Some(&env) {
            return Ok(());
        }
        let before = read(&self.subnet_file).ok().and_then(|text| String::from_utf8(text).ok());
        let before = before.and_then(|text| DockerOpts::parse(&text).ok());
        put(&self.subnet_file, &env.render())?;
        if let Some(path) = &self.docker_opts_file {
            put(path, &DockerOpts::from(&env).render(&DockerLines::default()))?;
        }
        self.doubted = false;
        for change in before.iter().flat_map(|before| DockerOpts::from(&env).changes_since(before)) {
            tracing::warn!("{change}: restart Docker to use it (systemctl restart docker)");
        }
        self.written = Some(env);
        Ok(())
    }

    /// Have the files looked at again at the next [`EnvFiles::write`], in case somebody else changed them.
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Whether both files are there and right.
    pub fn are_written(&self) -> bool {
        self.written.is_some()
    }
}

fn put(path: &Path, text: &str) -> Result<(), String> {
    let is_readable = || fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o777 == 0o644);
    if read(path).is_ok_and(|now| now == text.as_bytes()) && is_readable() {
        return Ok(());
    }
    write_atomically(path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    tracing::info!("wrote {}", path.display());
    Ok(())
}

/// The state file of this host in one network.
#[derive(Debug)]
pub struct StateFile {
    directory: PathBuf,
    prefix: String,
    network_id: u32,
    stored: Option<Remembered>,
    failed: bool,
}

impl StateFile {
    /// The memory in `directory` of the network at `prefix` with this VNI.
    pub fn new(directory: PathBuf, prefix: &str, network_id: u32) -> Self {
        StateFile { directory, prefix: prefix.to_owned(), network_id, stored: None, failed: false }
    }

    /// What is remembered of the host with this public IP, or of the one with this NIC when its address has changed.
    pub fn load(&mut self, public_ip: Ipv4Addr, nic_mac: Option<VtepMac>) -> Option<Remembered> {
        self.stored = self.read(&self.path(public_ip)).or_else(|| self.by_nic(nic_mac?, &self.path(public_ip)));
        self.stored.clone()
    }

    /// From another file than the one at `but`.
    fn by_nic(&self, nic_mac: VtepMac, but: &Path) -> Option<Remembered> {
        let start = state_file::file_name_start(&self.prefix, self.network_id);
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.directory).ok()?.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let named = |path: &&PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(&start) && name.ends_with(".json") && path.as_path() != but
        };
        paths.iter().filter(named).filter_map(|path| self.read(path)).find(|state| state.nic_mac == Some(nic_mac))
    }

    fn read(&self, path: &Path) -> Option<Remembered> {
        let text = match read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("state file {} is ignored: {error}", path.display());
                }
                return None;
            }
        };
        Remembered::parse(&text)
            .inspect_err(|problem| tracing::warn!("state file {} is ignored: {problem}", path.display()))
            .ok()
    }

    fn path(&self, public_ip: Ipv4Addr) -> PathBuf {
        self.directory.join(state_file::file_name(&self.prefix, self.network_id, public_ip))
    }

    /// Remembers. A failure is logged once: it costs nothing but certainty about our identity after a restart.
    pub fn save(&mut self, state: &Remembered) {
        if self.stored.as_ref() == Some(state) {
            return;
        }
        let path = self.path(state.public_ip);
        if let Err(error) = write_atomically(&path, &state.render()) {
            if !std::mem::replace(&mut self.failed, true) {
                tracing::warn!(
                    "state file {} cannot be written: {error}; after a restart this host is known by its public IP only",
                    path.display()
                );
            }
            return;
        }
        self.failed = false;
        let old = self.stored.replace(state.clone());
        if let Some(old) = old.filter(|old| old.public_ip != state.public_ip) {
            let _ = fs::remove_file(self.path(old.public_ip));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state_file::StoreProgress;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn write(files: &mut EnvFiles, mtu: u32) -> Result<(), String> {
        files.write(net("10.5.0.0/16"), net("10.5.72.0/24"), mtu)
    }

    #[test]
    fn both_files_are_written_with_their_directories_for_everyone_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let (subnet, docker) = (dir.path().join("a/b/subnet.env"), dir.path().join("c/docker_opts.env"));
        let mut files = EnvFiles::new(subnet.clone(), Some(docker.clone()), false);
        assert!(!files.are_written());
        write(&mut files, 1450).unwrap();
        assert!(files.are_written());
        assert!(fs::read_to_string(&subnet).unwrap().contains("FLANNEL_SUBNET=10.5.72.1/24\n"));
        assert!(fs::read_to_string(&docker).unwrap().contains("DOCKER_OPT_MTU=\"--mtu=1450\"\n"));
        assert_eq!(fs::metadata(&subnet).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(subnet.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        assert_eq!(files.previous_subnet(), Some(net("10.5.72.0/24")));
    }

    #[test]
    fn what_is_right_is_left_and_what_was_changed_is_made_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let mut files = EnvFiles::new(path.clone(), None, false);
        write(&mut files, 1450).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        write(&mut EnvFiles::new(path.clone(), None, false), 1450).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        fs::remove_file(&path).unwrap();
        files.doubt();
        write(&mut files, 1450).unwrap();
        assert!(path.exists());
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        files.doubt();
        write(&mut files, 1450).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_symbolic_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("subnet.env");
        symlink("elsewhere/real.env", &link).unwrap();
        write(&mut EnvFiles::new(link.clone(), None, false), 1450).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(dir.path().join("elsewhere/real.env").exists());
        let circle = dir.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(write(&mut EnvFiles::new(circle, None, false), 1450).unwrap_err().contains("circle cannot be written"));
    }

    #[test]
    fn what_cannot_be_read_or_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = EnvFiles::new(dir.path().to_owned(), None, false);
        assert_eq!(files.previous_subnet(), None);
        let error = write(&mut files, 1450).unwrap_err();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(!files.are_written());
        let bad = dir.path().join("bad.env");
        fs::write(&bad, b"FLANNEL_SUBNET=\xff\n").unwrap();
        assert_eq!(EnvFiles::new(bad, None, false).previous_subnet(), None);
    }

    #[test]
    fn what_is_no_regular_file_is_neither_waited_for_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, device) = (dir.path().join("fifo"), dir.path().join("device"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/dev/zero", &device).unwrap();
        for path in [&fifo, &device] {
            let mut files = EnvFiles::new(path.clone(), None, false);
            assert_eq!(files.previous_subnet(), None);
            let error = write(&mut files, 1450).unwrap_err();
            assert!(error.contains("is not a regular file"), "{error}");
        }
        assert!(!fs::metadata(&fifo).unwrap().is_file() && !fs::metadata(&device).unwrap().is_file());
        let mut memory = StateFile::new(dir.path().join("state"), "/coreos.com/network", 1);
        let state = state("192.168.0.1", "0e:00:00:00:00:aa");
        let path = memory.path(state.public_ip);
        fs::create_dir(path.parent().unwrap()).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(memory.load(state.public_ip, None), None);
        memory.save(&state);
        assert!(!fs::metadata(&path).unwrap().is_file());
    }

    #[test]
    fn one_reason_is_told_in_the_same_words_each_time() {
        // A directory in which nothing can be made, not even by root.
        let mut files = EnvFiles::new("/proc/self/subnet.env".into(), None, false);
        let [first, second] = [(); 2].map(|()| write(&mut files, 1450).unwrap_err());
        assert_eq!(first, second);
    }

    #[test]
    fn a_file_that_is_too_large_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let mut files = EnvFiles::new(path.clone(), None, false);
        assert_eq!(files.previous_subnet(), None);
        write(&mut files, 1450).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
    }

    fn state(ip: &str, nic: &str) -> Remembered {
        Remembered {
            mac: "0e:00:00:00:00:01".parse().unwrap(),
            lease_id: None,
            subnet: net("10.5.72.0/24"),
            public_ip: ip.parse().unwrap(),
            nic_mac: nic.parse().ok(),
            store_progress: StoreProgress { revision: 7, hold_until: None },
            rivals: Default::default(),
            trial: None,
        }
    }

    #[test]
    fn a_host_is_remembered_by_its_address_or_else_by_its_nic() {
        let dir = tempfile::tempdir().unwrap();
        let memory = || StateFile::new(dir.path().join("state"), "/coreos.com/network", 1);
        let [a, b] = [state("192.168.0.1", "0e:00:00:00:00:aa"), state("192.168.0.2", "0e:00:00:00:00:bb")];
        memory().save(&a);
        memory().save(&b);
        assert_eq!(memory().load(a.public_ip, None), Some(a.clone()));
        assert_eq!(memory().load("192.168.0.9".parse().unwrap(), None), None);
        let mut moved = memory();
        assert_eq!(moved.load("192.168.0.9".parse().unwrap(), b.nic_mac), Some(b.clone()));
        moved.save(&state("192.168.0.9", "0e:00:00:00:00:bb"));
        assert_eq!(memory().load(b.public_ip, None), None, "the old address is forgotten");
        assert_eq!(StateFile::new(dir.path().join("state"), "/coreos.com/network", 2).load(a.public_ip, None), None);
    }
}
