//! The service manager, told in its sd_notify protocol.

use sd_notify::NotifyState;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Whoever listens at `NOTIFY_SOCKET`. It is never waited for: what it has no room for is told with the next news.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<OsString>,
    /// By the name of the variable: of each only the last value counts.
    unsent: RefCell<BTreeMap<String, String>>,
}

impl ServiceManager {
    /// The one that the environment names, if any.
    pub fn from_env() -> Self {
        ServiceManager::at(std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()))
    }

    fn at(socket: Option<OsString>) -> Self {
        ServiceManager { socket, unsent: RefCell::default() }
    }

    /// Tells the news, and what could not be told before.
    pub fn tell(&self, news: &NotifyState<'_>) {
        let Some(socket) = &self.socket else { return };
        let line = news.to_string();
        let name = line.split('=').next().unwrap_or_default().to_owned();
        let mut unsent = self.unsent.borrow_mut();
        unsent.insert(name, line);
        let text: String = unsent.values().map(|line| format!("{line}\n")).collect();
        match send(socket, text.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tracing::debug!("the service manager does not listen: told later");
                return;
            }
            Err(error) => tracing::debug!("the service manager cannot be told: {error}"),
            Ok(()) => {}
        }
        unsent.clear();
    }
}

fn send(path: &OsStr, text: &[u8]) -> io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(ear: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = ear.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn one_that_does_not_listen_is_not_waited_for_and_told_everything_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let ear = UnixDatagram::bind(&path).unwrap();
        let noise = UnixDatagram::unbound().unwrap();
        noise.set_nonblocking(true).unwrap();
        while noise.send_to(b"x", &path).is_ok() {}
        let service_manager = ServiceManager::at(Some(path.into()));
        service_manager.tell(&NotifyState::Ready);
        service_manager.tell(&NotifyState::Status("one"));
        service_manager.tell(&NotifyState::Status("two"));
        ear.set_nonblocking(true).unwrap();
        while ear.recv(&mut [0; 8]).is_ok() {}
        service_manager.tell(&NotifyState::Watchdog);
        assert_eq!(hear(&ear), "READY=1\nSTATUS=two\nWATCHDOG=1\n");
        service_manager.tell(&NotifyState::Watchdog);
        assert_eq!(hear(&ear), "WATCHDOG=1\n");
    }

    #[test]
    fn a_socket_may_be_abstract_missing_or_no_socket() {
        let name = format!("flanneld-test-{}", std::process::id());
        let ear = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ServiceManager::at(Some(format!("@{name}").into())).tell(&NotifyState::Ready);
        assert_eq!(hear(&ear), "READY=1\n");
        for path in ["/nonexistent/notify", "/", "", &"x".repeat(300)] {
            ServiceManager::at(Some(path.into())).tell(&NotifyState::Ready);
        }
        ServiceManager::at(None).tell(&NotifyState::Ready);
    }
}
