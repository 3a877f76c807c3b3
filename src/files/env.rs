//! `subnet.env` and `docker_opts.env`.

use super::background::{FileIo, Task};
use super::{directory_of, read};
use crate::model::env_files::{DockerLines, DockerOpts, SubnetEnv, previous_subnet};
use ipnet::Ipv4Net;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a disk may take before the files count as not written.
const SLOW: Duration = Duration::from_secs(5);

/// `subnet.env` and `docker_opts.env`.
#[derive(Debug)]
pub struct EnvFiles {
    target: Target,
    io: FileIo,
    written: Option<SubnetEnv>,
    doubted: bool,
    writing: Option<(SubnetEnv, Task<Result<(), String>>)>,
}

/// Where to write, and how.
#[derive(Debug, Clone)]
struct Target {
    subnet_file: PathBuf,
    docker_opts_file: Option<PathBuf>,
    ip_masq: bool,
}

impl EnvFiles {
    /// The files at these paths; no `docker_opts.env` with `None`. `ip_masq` says whether we masquerade, so that Docker
    /// does not.
    pub fn new(subnet_file: PathBuf, docker_opts_file: Option<PathBuf>, ip_masq: bool, io: FileIo) -> Self {
        let target = Target { subnet_file, docker_opts_file, ip_masq };
        EnvFiles { target, io, written: None, doubted: false, writing: None }
    }

    /// The subnet that `subnet.env` names from an earlier run. One that cannot be read is a warning, not a failure. What
    /// that run left half-written is removed.
    pub async fn previous_subnet(&self) -> Option<Ipv4Net> {
        let (target, io) = (self.target.clone(), self.io);
        self.io.run(move || target.previous_subnet(io)).await
    }

    /// Brings both files up to date; one that holds the right text already is left as it is. Does not wait for a disk: see
    /// [`EnvFiles::are_written`] and [`EnvFiles::finished`].
    ///
    /// # Errors
    /// Names the file that cannot be written, and why.
    pub fn write(&mut self, network: Ipv4Net, subnet: Ipv4Net, mtu: u32) -> Result<(), String> {
        let env = SubnetEnv { ipv4: Some((network, subnet)), ipv6: None, mtu, ip_masq: self.target.ip_masq };
        self.collect()?;
        if self.writing.is_none() && (self.doubted || self.written.as_ref() != Some(&env)) {
            self.doubted = false;
            let (target, io, wanted) = (self.target.clone(), self.io, env.clone());
            self.writing = Some((env, io.start(move || target.bring_up_to_date(&wanted, io))));
            self.collect()?;
        }
        match &self.writing {
            Some((_, task)) if task.age() > SLOW => Err(format!(
                "{} is not written yet: the disk of {} does not answer",
                self.target.subnet_file.display(),
                self.target.directories().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
            )),
            _ => Ok(()),
        }
    }

    /// Takes the result of what was started, if it is there.
    fn collect(&mut self) -> Result<(), String> {
        let Some((env, task)) = &mut self.writing else { return Ok(()) };
        let Some(result) = task.take() else { return Ok(()) };
        match result {
            Ok(()) => self.written = Some(env.clone()),
            Err(_) => self.doubted = true,
        }
        self.writing = None;
        result
    }

    /// Waits until what was started is done; call [`EnvFiles::write`] then. Never comes back while nothing is under way.
    /// Cancel-safe.
    pub async fn finished(&mut self) {
        match &mut self.writing {
            Some((_, task)) => task.finished().await,
            None => std::future::pending().await,
        }
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

impl Target {
    fn directories(&self) -> impl Iterator<Item = &Path> {
        let mut all = vec![directory_of(&self.subnet_file)];
        all.extend(self.docker_opts_file.as_deref().map(directory_of));
        all.dedup();
        all.into_iter()
    }

    fn previous_subnet(&self, io: FileIo) -> Option<Ipv4Net> {
        self.directories().for_each(|directory| io.tidy(directory));
        let path = self.subnet_file.display();
        match read(&self.subnet_file) {
            Ok(bytes) => previous_subnet(&String::from_utf8_lossy(&bytes)).unwrap_or_else(|problem| {
                tracing::warn!("{path} is ignored: {problem}");
                None
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!("{path} is ignored: it cannot be read: {error}");
                None
            }
        }
    }

    fn bring_up_to_date(&self, env: &SubnetEnv, io: FileIo) -> Result<(), String> {
        let before = read(&self.subnet_file).ok().and_then(|text| String::from_utf8(text).ok());
        let before = before.and_then(|text| DockerOpts::parse(&text).ok());
        put(&self.subnet_file, &env.render(), io)?;
        let opts = DockerOpts::from(env);
        // Now, whatever becomes of the other file: next time this one holds the new options.
        for change in before.iter().flat_map(|before| opts.changes_since(before)) {
            tracing::warn!("{change}: restart Docker to use it (systemctl restart docker)");
        }
        match &self.docker_opts_file {
            Some(path) => put(path, &opts.render(&DockerLines::default()), io),
            None => Ok(()),
        }
    }
}

fn put(path: &Path, text: &str, io: FileIo) -> Result<(), String> {
    let is_readable = || fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o777 == 0o644);
    if read(path).is_ok_and(|now| now == text.as_bytes()) && is_readable() {
        return Ok(());
    }
    io.write(path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    tracing::info!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn at(subnet_file: PathBuf, docker_opts_file: Option<PathBuf>) -> EnvFiles {
        EnvFiles::new(subnet_file, docker_opts_file, false, FileIo::Here)
    }

    fn write(files: &mut EnvFiles, mtu: u32) -> Result<(), String> {
        files.write(net("10.5.0.0/16"), net("10.5.72.0/24"), mtu)
    }

    #[test]
    fn both_files_are_written_with_their_directories_for_everyone_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let (subnet, docker) = (dir.path().join("a/b/subnet.env"), dir.path().join("c/docker_opts.env"));
        let mut files = at(subnet.clone(), Some(docker.clone()));
        assert!(!files.are_written());
        write(&mut files, 1450).unwrap();
        assert!(files.are_written());
        assert!(fs::read_to_string(&subnet).unwrap().contains("FLANNEL_SUBNET=10.5.72.1/24\n"));
        assert!(fs::read_to_string(&docker).unwrap().contains("DOCKER_OPT_MTU=\"--mtu=1450\"\n"));
        assert_eq!(fs::metadata(&subnet).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(subnet.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        assert_eq!(files.target.previous_subnet(FileIo::Here), Some(net("10.5.72.0/24")));
    }

    #[test]
    fn what_is_right_is_left_and_what_was_changed_is_made_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let mut files = at(path.clone(), None);
        write(&mut files, 1450).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        write(&mut at(path.clone(), None), 1450).unwrap();
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
        write(&mut at(link.clone(), None), 1450).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(dir.path().join("elsewhere/real.env").exists());
        let circle = dir.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(write(&mut at(circle, None), 1450).unwrap_err().contains("circle cannot be written"));
    }

    #[test]
    fn what_cannot_be_read_or_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = at(dir.path().to_owned(), None);
        assert_eq!(files.target.previous_subnet(FileIo::Here), None);
        let error = write(&mut files, 1450).unwrap_err();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(!files.are_written());
        let bad = dir.path().join("bad.env");
        fs::write(&bad, b"FLANNEL_SUBNET=\xff\n").unwrap();
        assert_eq!(at(bad, None).target.previous_subnet(FileIo::Here), None);
    }

    #[test]
    fn one_reason_is_told_in_the_same_words_each_time() {
        // A directory in which nothing can be made, not even by root.
        let mut files = at("/proc/self/subnet.env".into(), None);
        let [first, second] = [(); 2].map(|()| write(&mut files, 1450).unwrap_err());
        assert_eq!(first, second);
    }

    #[test]
    fn a_file_that_is_too_large_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let mut files = at(path.clone(), None);
        assert_eq!(files.target.previous_subnet(FileIo::Here), None);
        write(&mut files, 1450).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
    }

    #[test]
    fn a_change_for_docker_is_said_although_the_second_file_fails() {
        let dir = tempfile::tempdir().unwrap();
        let subnet = dir.path().join("subnet.env");
        write(&mut at(subnet.clone(), None), 1450).unwrap();
        fs::create_dir(dir.path().join("docker")).unwrap();
        let mut both = at(subnet.clone(), Some(dir.path().join("docker")));
        let logged =
            crate::telemetry::captured(|| assert!(write(&mut both, 1400).unwrap_err().contains("docker cannot be")));
        assert!(logged.contains("restart Docker to use it"), "{logged}");
        assert!(!both.are_written() && fs::read_to_string(subnet).unwrap().contains("FLANNEL_MTU=1400"));
    }

    #[test]
    fn what_is_no_regular_file_is_neither_waited_for_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, device) = (dir.path().join("fifo"), dir.path().join("device"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/dev/zero", &device).unwrap();
        for path in [&fifo, &device] {
            let mut files = at(path.clone(), None);
            assert_eq!(files.target.previous_subnet(FileIo::Here), None);
            let error = write(&mut files, 1450).unwrap_err();
            assert!(error.contains("is not a regular file"), "{error}");
        }
        assert!(!fs::metadata(&fifo).unwrap().is_file() && !fs::metadata(&device).unwrap().is_file());
    }
}
