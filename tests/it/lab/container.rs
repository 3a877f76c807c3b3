//! A container, as far as the network is concerned: a namespace behind docker0.

use std::io::Read;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use ipnet::Ipv4Net;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::Netns;
use super::server::{self, Answer, Server};

pub struct Container {
    netns: Netns,
    address: Ipv4Addr,
}

/// A ping that goes on until it is asked for its result.
pub struct Pinging {
    child: Child,
}

#[derive(Debug)]
pub struct Pinged {
    pub sent: u32,
    pub received: u32,
}

impl Pinged {
    /// The last packet may still have been on its way when ping was stopped.
    pub fn lost_nothing(&self) -> bool {
        println!("{} sent, {} received", self.sent, self.received);
        self.received > 0 && self.received + 1 >= self.sent
    }
}

impl Container {
    /// The `n`th address of the gateway's subnet, on a veth pair that ends in docker0.
    pub(super) fn create(name: String, host: &Netns, veth: &str, gateway: Ipv4Net, n: u8, mtu: &str) -> Container {
        let address = Ipv4Addr::from(u32::from(gateway.network()) + u32::from(n));
        let netns = Netns::create(name);
        host.ip(&format!("link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", netns.name()));
        host.ip(&format!("link set {veth} master docker0 up"));
        netns.ip(&format!("addr add {address}/{} dev eth0", gateway.prefix_len()));
        netns.ip("link set eth0 up");
        netns.ip(&format!("route add default via {}", gateway.addr()));
        Container { netns, address }
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that will run inside.
    #[allow(dead_code, reason = "a bench uses it")]
    pub fn command(&self, program: &str) -> Command {
        self.netns.command(program)
    }

    /// A web server on port 80.
    pub fn serve(&self, name: &str) -> Server {
        Server::start(&self.netns, name)
    }

    /// Asks a server at `address:port`.
    pub fn ask(&self, address: &str) -> Result<Answer, String> {
        server::ask(&self.netns, address)
    }

    /// Ok if every packet was answered.
    pub fn ping(&self, to: Ipv4Addr, count: u32) -> Result<String, String> {
        self.ping_with(to, &["-c", &count.to_string()])
    }

    /// One packet of `size` bytes, IP header included, that nobody may fragment.
    pub fn ping_full_size(&self, to: Ipv4Addr, size: u32) -> Result<String, String> {
        self.ping_with(to, &["-c", "1", "-M", "do", "-s", &(size - 28).to_string()])
    }

    fn ping_with(&self, to: Ipv4Addr, flags: &[&str]) -> Result<String, String> {
        let to = to.to_string();
        let text = self.netns.run(&[&["ping", "-n", "-i", "0.1", "-W", "2"], flags, &[&to]].concat())?;
        if text.contains(" 0% packet loss") { Ok(text) } else { Err(text) }
    }

    /// Fifty packets a second.
    pub fn ping_background(&self, to: Ipv4Addr) -> Pinging {
        self.ping_every("0.02", to)
    }

    /// A packet every `seconds`.
    pub fn ping_every(&self, seconds: &str, to: Ipv4Addr) -> Pinging {
        let mut command = self.netns.command("ping");
        command.args(["-n", "-q", "-i", seconds, &to.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        Pinging { child: command.spawn().expect("ping") }
    }
}

impl Pinging {
    pub fn stop(mut self) -> Pinged {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).expect("SIGINT");
        let mut text = String::new();
        self.child.stdout.take().expect("its output").read_to_string(&mut text).expect("its output");
        let summary = text.lines().find(|line| line.contains("packets transmitted")).expect("a summary");
        let mut numbers = summary.split(' ').filter_map(|word| word.parse().ok());
        let (sent, received) = (numbers.next().unwrap(), numbers.next().unwrap());
        Pinged { sent, received }
    }
}

impl Drop for Pinging {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
