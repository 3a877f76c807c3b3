//! What a daemon tells its service manager, with the time of each message.

use std::fs;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// One `KEY=VALUE` of the sd_notify protocol.
#[derive(Debug, Clone)]
pub struct Notification {
    pub at: Instant,
    pub text: String,
}

/// A NOTIFY_SOCKET and the thread that listens to it.
pub struct Notify {
    path: PathBuf,
    socket: UnixDatagram,
    heard: Arc<Heard>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Heard {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    notifications: Vec<Notification>,
    at_ready: Option<Box<dyn FnOnce() + Send>>,
}

impl Notify {
    pub fn listen(path: &Path) -> Notify {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path).expect("a NOTIFY_SOCKET");
        let heard = Arc::<Heard>::default();
        let listener = thread::spawn({
            let socket = socket.try_clone().expect("a second handle");
            let heard = heard.clone();
            move || heard.listen(&socket)
        });
        Notify { path: path.to_owned(), socket, heard, listener: Some(listener) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn notifications(&self) -> Vec<Notification> {
        self.heard.state.lock().unwrap().notifications.clone()
    }

    /// Runs `action` the moment READY=1 arrives, on the listening thread; to be called before that.
    pub fn at_ready(&self, action: impl FnOnce() + Send + 'static) {
        self.heard.state.lock().unwrap().at_ready = Some(Box::new(action));
    }

    /// Whether READY=1 comes within `timeout`.
    pub fn wait_ready(&self, timeout: Duration) -> bool {
        let state = self.heard.state.lock().unwrap();
        let not_ready = |state: &mut State| !state.ready();
        let (state, _) = self.heard.changed.wait_timeout_while(state, timeout, not_ready).unwrap();
        state.ready()
    }
}

impl State {
    fn ready(&self) -> bool {
        self.notifications.iter().any(|notification| notification.text == "READY=1")
    }
}

impl Heard {
    fn listen(&self, socket: &UnixDatagram) {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = socket.recv(&mut buffer) {
            let at = Instant::now();
            let text = String::from_utf8_lossy(&buffer[..length]);
            let mut state = self.state.lock().unwrap();
            let lines = text.lines().map(|line| Notification { at, text: line.to_owned() });
            state.notifications.extend(lines);
            if state.ready()
                && let Some(action) = state.at_ready.take()
            {
                action();
            }
            drop(state);
            self.changed.notify_all();
        }
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}
