//! The service manager, notified in its sd_notify protocol.

use crate::model::foreign::line;
use sd_notify::NotifyState;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// How often the watchdog is fed at most. systemd's shortest interval that makes sense is longer.
const WATCHDOG_EVERY: Duration = Duration::from_secs(1);

/// The longest value of a variable, in bytes. systemd ignores messages of more than 4,096.
const LONGEST_VALUE: usize = 2000;

/// The listener at `NOTIFY_SOCKET`. It is never waited for: news for which it has no room are sent with the next ones.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<OsString>,
    /// By the name of the variable: of each only the last value counts.
    unsent: RefCell<BTreeMap<String, String>>,
    fed_at: Cell<Option<Instant>>,
}

impl ServiceManager {
    /// The one that the environment names, if any.
    pub fn from_env() -> Self {
        ServiceManager::at(std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()))
    }

    fn at(socket: Option<OsString>) -> Self {
        ServiceManager { socket, unsent: RefCell::default(), fed_at: Cell::default() }
    }

    /// Sends the news, and those that could not be sent before. Each is one line, whatever it holds.
    pub fn notify(&self, news: &NotifyState<'_>) {
        let Some(socket) = &self.socket else { return };
        if matches!(news, NotifyState::Watchdog) && !self.feeds_now() {
            return;
        }
        let assignment = news.to_string();
        let (name, value) = assignment.split_once('=').unwrap_or((&assignment, ""));
        let mut unsent = self.unsent.borrow_mut();
        unsent.insert(name.to_owned(), cut(&line(value)).to_owned());
        let text: String = unsent.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        match send(socket, text.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tracing::debug!("the service manager does not listen: its news are sent later");
                return;
            }
            Err(error) => tracing::debug!("the service manager cannot be notified: {error}"),
            Ok(()) => {}
        }
        unsent.clear();
    }

    fn feeds_now(&self) -> bool {
        let now = Instant::now();
        let is_due = self.fed_at.get().is_none_or(|fed| now.duration_since(fed) >= WATCHDOG_EVERY);
        if is_due {
            self.fed_at.set(Some(now));
        }
        is_due
    }
}

fn cut(text: &str) -> &str {
    let ends = text.char_indices().map(|(start, character)| start + character.len_utf8());
    &text[..ends.take_while(|end| *end <= LONGEST_VALUE).last().unwrap_or(0)]
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
    use proptest::prelude::*;

    fn hear(ear: &UnixDatagram) -> String {
        let mut buffer = [0; 8192];
        let length = ear.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn listener() -> (UnixDatagram, ServiceManager, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let ear = UnixDatagram::bind(&path).unwrap();
        (ear, ServiceManager::at(Some(path.into())), dir)
    }

    #[test]
    fn one_that_does_not_listen_is_not_waited_for_and_gets_everything_later() {
        let (ear, service_manager, dir) = listener();
        let noise = UnixDatagram::unbound().unwrap();
        noise.set_nonblocking(true).unwrap();
        while noise.send_to(b"x", dir.path().join("notify")).is_ok() {}
        service_manager.notify(&NotifyState::Ready);
        service_manager.notify(&NotifyState::Status("one"));
        service_manager.notify(&NotifyState::Status("two"));
        ear.set_nonblocking(true).unwrap();
        while ear.recv(&mut [0; 8]).is_ok() {}
        service_manager.notify(&NotifyState::Watchdog);
        assert_eq!(hear(&ear), "READY=1\nSTATUS=two\nWATCHDOG=1\n");
    }

    #[test]
    fn the_watchdog_is_fed_at_most_once_a_second() {
        let (ear, service_manager, _dir) = listener();
        for _ in 0..1000 {
            service_manager.notify(&NotifyState::Watchdog);
        }
        service_manager.notify(&NotifyState::Ready);
        assert_eq!(hear(&ear), "WATCHDOG=1\n");
        let next = hear(&ear);
        assert!(next == "READY=1\n" || next == "WATCHDOG=1\n", "{next}");
        service_manager.fed_at.set(service_manager.fed_at.get().and_then(|fed| fed.checked_sub(WATCHDOG_EVERY)));
        service_manager.notify(&NotifyState::Watchdog);
        assert!(std::iter::repeat_with(|| hear(&ear)).take(3).any(|heard| heard == "WATCHDOG=1\n"));
    }

    #[test]
    fn a_socket_may_be_abstract_missing_or_no_socket() {
        let name = format!("flanneld-test-{}", std::process::id());
        let ear = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ServiceManager::at(Some(format!("@{name}").into())).notify(&NotifyState::Ready);
        assert_eq!(hear(&ear), "READY=1\n");
        for path in ["/nonexistent/notify", "/", "", &"x".repeat(300)] {
            ServiceManager::at(Some(path.into())).notify(&NotifyState::Ready);
        }
        ServiceManager::at(None).notify(&NotifyState::Ready);
    }

    proptest! {
        #[test]
        fn any_status_is_one_short_assignment(status: String, repeat in 1usize..2000) {
            let (ear, service_manager, _dir) = listener();
            service_manager.notify(&NotifyState::Status(&status.repeat(repeat)));
            let heard = hear(&ear);
            prop_assert!(heard.starts_with("STATUS=") && heard.ends_with('\n') && heard.len() < 4096);
            prop_assert!(heard.trim_end_matches('\n').chars().all(crate::model::foreign::is_plain), "{heard:?}");
        }
    }
}
