//! The state file of this host in one network.

use super::background::FileIo;
use super::read;
use crate::model::mac::VtepMac;
use crate::model::state_file::{self, Remembered};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long the caller of [`StateFile::settled`] waits for a disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pause before a state that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The state file of this host in one network.
#[derive(Debug)]
pub struct StateFile {
    disk: Disk,
    saver: Option<Saver>,
    /// Whether the disk was slow, so that it is logged once.
    was_slow: bool,
}

impl StateFile {
    /// The memory in `directory` of the network at `prefix` with this VNI.
    pub fn new(directory: PathBuf, prefix: &str, network_id: u32, io: FileIo) -> Self {
        let disk = Disk { directory, prefix: prefix.to_owned(), network_id, io, stored: None, failed: false };
        StateFile { disk, saver: None, was_slow: false }
    }

    /// The memory of the host with this public IP, or of the one with this NIC when its address has changed. What
    /// an earlier run left half-written is removed.
    pub async fn load(&mut self, public_ip: Ipv4Addr, nic_mac: Option<VtepMac>) -> Option<Remembered> {
        let disk = self.disk.clone();
        self.disk.stored = self.disk.io.run(move || disk.load(public_ip, nic_mac)).await;
        self.disk.stored.clone()
    }

    /// Remembers. A failure is logged once, and tried again: it costs nothing but certainty about our identity after a
    /// restart. Does not wait for the disk.
    pub fn save(&mut self, state: &Remembered) {
        match self.disk.io {
            FileIo::Here => drop(self.disk.save(state)),
            FileIo::Aside => self.saver.get_or_insert_with(|| Saver::start(self.disk.clone())).put(state.clone()),
        }
    }

    /// Waits until the state is on the disk, but not for long where the disk does not answer.
    pub async fn settled(&mut self) {
        let Some(saver) = &mut self.saver else { return };
        let in_time = tokio::time::timeout(PATIENCE, saver.is_idle.wait_for(|idle| *idle)).await.is_ok();
        if !in_time && !self.was_slow {
            let directory = self.disk.directory.display();
            tracing::warn!("the state file in {directory} is not written yet: its disk does not answer");
        }
        self.was_slow = !in_time;
    }
}

/// A thread that writes the newest state.
#[derive(Debug)]
struct Saver {
    next: Arc<Next>,
    is_idle: watch::Receiver<bool>,
    /// The thread takes it from here when it starts.
    disk: Arc<Mutex<Option<Disk>>>,
}

/// The content of a mutex. Each change of it is complete in itself, so a panic elsewhere does not spoil it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Next {
    state: Mutex<Option<Remembered>>,
    changed: Condvar,
    is_idle: watch::Sender<bool>,
}

impl Saver {
    fn start(disk: Disk) -> Self {
        let (is_idle, idle) = watch::channel(true);
        let next = Arc::new(Next { state: Mutex::default(), changed: Condvar::new(), is_idle });
        let saver = Saver { next, is_idle: idle, disk: Arc::new(Mutex::new(Some(disk))) };
        saver.start_thread();
        saver
    }

    /// Starts the thread that writes, unless it runs. A host may have no room for a thread now, and have it later.
    fn start_thread(&self) {
        if locked(&self.disk).is_none() {
            return;
        }
        let (next, disk) = (self.next.clone(), self.disk.clone());
        let save = move || {
            let Some(mut disk) = locked(&disk).take() else { return };
            loop {
                let state = next.take();
                if disk.save(&state).is_err() {
                    next.put_back(state);
                }
                next.rest();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("state file".into()).spawn(save) {
            tracing::warn!("the state file cannot be written: {error}");
        }
    }

    fn put(&self, state: Remembered) {
        self.start_thread();
        self.next.is_idle.send_replace(false);
        *self.next.state() = Some(state);
        self.next.changed.notify_all();
    }
}

impl Next {
    /// Waits for a state that is to be written.
    fn take(&self) -> Remembered {
        let mut state = self.state();
        loop {
            match state.take() {
                Some(state) => return state,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// A state could not be written: it is tried again after a pause, or a newer one that comes meanwhile.
    fn put_back(&self, failed: Remembered) {
        let (mut state, _) = self
            .changed
            .wait_timeout_while(self.state(), RETRY, |state| state.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        state.get_or_insert(failed);
    }

    fn rest(&self) {
        let state = self.state();
        self.is_idle.send_replace(state.is_none());
    }

    fn state(&self) -> MutexGuard<'_, Option<Remembered>> {
        // A state is put and taken as a whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of the state directory.
#[derive(Debug, Clone)]
struct Disk {
    directory: PathBuf,
    prefix: String,
    network_id: u32,
    io: FileIo,
    stored: Option<Remembered>,
    failed: bool,
}

impl Disk {
    fn load(&self, public_ip: Ipv4Addr, nic_mac: Option<VtepMac>) -> Option<Remembered> {
        self.io.tidy(&self.directory);
        self.read(&self.path(public_ip)).or_else(|| self.by_nic(nic_mac?, &self.path(public_ip)))
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
        let state = match read(path) {
            Ok(bytes) if bytes.is_empty() => Err("it is empty".to_owned()),
            Ok(bytes) => Remembered::parse(&String::from_utf8_lossy(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        state.inspect_err(|problem| tracing::warn!("state file {} is ignored: {problem}", path.display())).ok()
    }

    fn path(&self, public_ip: Ipv4Addr) -> PathBuf {
        self.directory.join(state_file::file_name(&self.prefix, self.network_id, public_ip))
    }

    fn save(&mut self, state: &Remembered) -> io::Result<()> {
        if self.stored.as_ref() == Some(state) {
            return Ok(());
        }
        let path = self.path(state.public_ip);
        if let Err(error) = self.io.write(&path, &state.render()) {
            if !std::mem::replace(&mut self.failed, true) {
                tracing::warn!(
                    "state file {} cannot be written: {error}; until it is, a restarted flanneld knows this host by its \
                     public IP only",
                    path.display()
                );
            }
            return Err(error);
        }
        if std::mem::take(&mut self.failed) {
            tracing::info!("state file {} is written again", path.display());
        }
        let old = self.stored.replace(state.clone());
        if let Some(old) = old.filter(|old| old.public_ip != state.public_ip) {
            self.io.remove(&self.path(old.public_ip));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state_file::StoreProgress;
    use ipnet::Ipv4Net;

    fn state(ip: &str, nic: &str) -> Remembered {
        Remembered {
            mac: "0e:00:00:00:00:01".parse().unwrap(),
            lease_id: None,
            subnet: "10.5.72.0/24".parse::<Ipv4Net>().unwrap(),
            public_ip: ip.parse().unwrap(),
            nic_mac: nic.parse().ok(),
            store_progress: StoreProgress { revision: 7, hold_until: None },
            rivals: Default::default(),
            trial: None,
        }
    }

    fn file(directory: PathBuf, network_id: u32) -> StateFile {
        StateFile::new(directory, "/coreos.com/network", network_id, FileIo::Here)
    }

    fn load(file: &mut StateFile, public_ip: Ipv4Addr, nic_mac: Option<VtepMac>) -> Option<Remembered> {
        file.disk.stored = file.disk.load(public_ip, nic_mac);
        file.disk.stored.clone()
    }

    #[test]
    fn a_host_is_remembered_by_its_address_or_else_by_its_nic() {
        let dir = tempfile::tempdir().unwrap();
        let memory = || file(dir.path().join("state"), 1);
        let [a, b] = [state("192.168.0.1", "0e:00:00:00:00:aa"), state("192.168.0.2", "0e:00:00:00:00:bb")];
        memory().save(&a);
        memory().save(&b);
        assert_eq!(load(&mut memory(), a.public_ip, None), Some(a.clone()));
        assert_eq!(load(&mut memory(), "192.168.0.9".parse().unwrap(), None), None);
        let mut moved = memory();
        assert_eq!(load(&mut moved, "192.168.0.9".parse().unwrap(), b.nic_mac), Some(b.clone()));
        moved.save(&state("192.168.0.9", "0e:00:00:00:00:bb"));
        assert_eq!(load(&mut memory(), b.public_ip, None), None, "the old address is forgotten");
        assert_eq!(load(&mut file(dir.path().join("state"), 2), a.public_ip, None), None);
    }

    #[test]
    fn an_empty_file_and_one_that_is_no_file_are_named_and_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = file(dir.path().to_owned(), 1);
        let state = state("192.168.0.1", "0e:00:00:00:00:aa");
        let path = memory.disk.path(state.public_ip);
        fs::write(&path, "").unwrap();
        let logged = crate::telemetry::captured(|| assert_eq!(load(&mut memory, state.public_ip, None), None));
        assert!(logged.contains("is ignored: it is empty"), "{logged}");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(load(&mut memory, state.public_ip, None), None);
        memory.save(&state);
        assert!(!fs::metadata(&path).unwrap().is_file());
    }

    #[test]
    fn a_state_that_could_not_be_written_comes_again_unless_a_newer_one_does() {
        let [old, new] = ["0e:00:00:00:00:aa", "0e:00:00:00:00:bb"].map(|nic| state("192.168.0.1", nic));
        let next =
            Next { state: Mutex::new(Some(new.clone())), changed: Condvar::new(), is_idle: watch::channel(true).0 };
        next.put_back(old.clone());
        assert_eq!(next.take(), new);
        next.put_back(old.clone());
        next.rest();
        assert!(!*next.is_idle.borrow());
        assert_eq!(next.take(), old);
    }
}
