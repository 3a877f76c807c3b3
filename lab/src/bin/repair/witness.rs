//! A second listener in the host's namespace. It records the time of each report of the kernel and shares no code with the
//! daemon's own listener.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// `RTNLGRP_LINK`, `RTNLGRP_NEIGH`, `RTNLGRP_IPV4_ROUTE`.
const GROUPS: [u32; 3] = [1, 3, 7];
const RECEIVE_BUFFER: usize = 64 << 20;
/// How often the listening thread checks whether it should stop.
const LOOK_UP_EVERY: i64 = 100;

/// What the kernel reports of one object. `there` is false when it went.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Report {
    Link { there: bool, name: String, up: bool },
    Neighbor { there: bool, ip: IpAddr, mac: Vec<u8>, permanent: bool },
    Fdb { there: bool, mac: Vec<u8>, dst: Option<Ipv4Addr> },
    Route { there: bool, dest: Ipv4Addr, gateway: Option<Ipv4Addr> },
}

/// A listening thread. Reports are read from it in their order.
pub struct Witness {
    heard: Receiver<(Instant, Vec<u8>)>,
    queue: VecDeque<(Instant, Report)>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Listens in the namespace of the calling thread.
    pub fn start() -> Witness {
        let mut socket = Socket::new(NETLINK_ROUTE).expect("a netlink socket");
        socket.bind_auto().expect("binding it");
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).expect("its receive buffer");
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(LOOK_UP_EVERY)).expect("its timeout");
        GROUPS.into_iter().for_each(|group| socket.add_membership(group).expect("a multicast group"));
        let (tell, heard) = channel();
        let over = Arc::<AtomicBool>::default();
        let until = over.clone();
        let thread = thread::spawn(move || listen(&socket, &tell, &until));
        Witness { heard, queue: Default::default(), over, thread: Some(thread) }
    }

    /// The next report; `None` when there is none before `deadline`.
    pub fn next(&mut self, deadline: Instant) -> Option<(Instant, Report)> {
        loop {
            if let Some(first) = self.queue.pop_front() {
                return Some(first);
            }
            match self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, datagram)) => self.queue.extend(reports(&datagram).map(|report| (at, report))),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the kernel's reports were lost"),
            }
        }
    }

    /// When the first report came for which `is` holds.
    pub fn first(&mut self, deadline: Instant, mut is: impl FnMut(&Report) -> bool) -> Option<Instant> {
        while let Some((at, report)) = self.next(deadline) {
            if is(&report) {
                return Some(at);
            }
        }
        None
    }

    /// When the last of `wanted` was reported.
    pub fn all(&mut self, deadline: Instant, mut wanted: HashSet<Report>) -> Option<Instant> {
        while let Some((at, report)) = self.next(deadline) {
            if wanted.remove(&report) && wanted.is_empty() {
                return Some(at);
            }
        }
        None
    }

    /// Drops reports until none has come for a while.
    pub fn settle(&mut self, quiet: Duration) {
        while self.next(Instant::now() + quiet).is_some() {}
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Only takes the time; what was reported is read where nobody waits for it.
fn listen(socket: &Socket, tell: &Sender<(Instant, Vec<u8>)>, over: &AtomicBool) {
    let mut buffer = Vec::with_capacity(64 << 10);
    while !over.load(Ordering::Relaxed) {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) if tell.send((Instant::now(), buffer.clone())).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn reports(datagram: &[u8]) -> impl Iterator<Item = Report> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
    .filter_map(|message| match NetlinkMessage::<Message>::deserialize(message).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => report(&message),
        _ => None,
    })
}

fn report(message: &Message) -> Option<Report> {
    match message {
        Message::NewLink(link) => Some(link_report(link, true)),
        Message::DelLink(link) => Some(link_report(link, false)),
        Message::NewNeighbour(neighbor) => neighbor_report(neighbor, true),
        Message::DelNeighbour(neighbor) => neighbor_report(neighbor, false),
        Message::NewRoute(route) => route_report(route, true),
        Message::DelRoute(route) => route_report(route, false),
        _ => None,
    }
}

fn link_report(message: &LinkMessage, there: bool) -> Report {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    Report::Link { there, name: name.unwrap_or_default(), up: message.header.flags.contains(LinkFlags::Up) }
}

fn neighbor_report(message: &NeighbourMessage, there: bool) -> Option<Report> {
    let (mut mac, mut to) = (Vec::new(), None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac.clone_from(bytes),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                to = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from);
            }
            _ => {}
        }
    }
    if message.header.family == AddressFamily::Bridge {
        let dst = to.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
        return Some(Report::Fdb { there, mac, dst });
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(Report::Neighbor { there, ip: to?, mac, permanent })
}

fn route_report(message: &RouteMessage, there: bool) -> Option<Report> {
    let (mut dest, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => dest = Some(*ip),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
            _ => {}
        }
    }
    Some(Report::Route { there, dest: dest?, gateway })
}
