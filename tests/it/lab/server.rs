//! A web server in a namespace that tells everybody who they seem to be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};

use super::netns::{Netns, http_get};

/// Answers every GET with its name and the address that the request came from: `endpoint-1 172.30.46.2`.
pub struct Server {
    listener: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// What a server said: who it is, and who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub server: String,
    pub client: String,
}

impl Answer {
    pub fn parse(text: &str) -> Option<Answer> {
        let (server, client) = text.trim().split_once(' ')?;
        Some(Answer { server: server.to_owned(), client: client.to_owned() })
    }
}

/// Asks a server at `address:port`, from inside a namespace.
pub(super) fn ask(netns: &Netns, address: &str) -> Result<Answer, String> {
    let to: SocketAddr = address.parse().expect("address:port");
    let (_, body) = netns.enter(|| http_get(to, "/cgi-bin/who")).map_err(|error| format!("{address}: {error}"))?;
    Answer::parse(&body).ok_or(body)
}

impl Server {
    pub(super) fn start(netns: &Netns, name: &str) -> Server {
        // A socket stays in the namespace that it was made in.
        let listener = netns.enter(|| TcpListener::bind("0.0.0.0:80")).expect("port 80");
        let name = name.to_owned();
        let handle = listener.try_clone().expect("a second handle").into();
        let serve = move || {
            while let Ok((stream, peer)) = listener.accept() {
                // A client that goes away misses its answer.
                let _ = answer(stream, &name, peer);
            }
        };
        Server { listener: handle, thread: Some(thread::spawn(serve)) }
    }
}

fn answer(mut stream: TcpStream, name: &str, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            length => request.extend_from_slice(&part[..length]),
        }
    }
    write!(stream, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n{name} {}", peer.ip())
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
