//! The kernel's own reports: changes of links, addresses, neighbours, FDB entries and routes.

use super::socket::enlarge_receive_buffer;
use super::wire::{Kind, frames};
use super::{Event, KernelError, decode};
use crate::model::entry::{FdbEntry, FdbReport, RouteReport};
use crate::model::kernel_state::{Observed, Scope};
use netlink_packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::libc;
use std::io;

/// `RTNLGRP_*`: links, neighbours (FDB entries are among them), addresses and routes of both families.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// Room for unread reports. One takes about 832 bytes, and our own changes are reported too: this is enough for what
/// 25,000 peers need. Only what is used costs memory.
const RECEIVE_BUFFER: usize = 64 << 20;
const INPUT: usize = 64 << 10;

/// A socket that hears of all changes in the network namespace of the thread that opened it.
pub struct Listener {
    socket: TokioSocket,
    input: Vec<u8>,
    /// `input` has been read but not yet taken.
    waiting: bool,
    overrun: bool,
}

impl Listener {
    /// Starts listening. Needs a tokio runtime.
    pub fn open() -> Result<Self, KernelError> {
        let socket = open().map_err(|error| {
            KernelError::from_errno("listen to netlink", error.raw_os_error().unwrap_or(libc::EIO), "")
        })?;
        Ok(Listener { socket, input: Vec::with_capacity(INPUT), waiting: false, overrun: false })
    }

    /// Waits until there is something to be taken. Cancel-safe.
    pub async fn readable(&mut self) {
        if self.waiting || self.overrun {
            return;
        }
        self.input.clear();
        match self.socket.recv(&mut self.input).await {
            Ok(_) => self.waiting = true,
            Err(error) => self.lost(&error),
        }
    }

    /// Everything reported so far that concerns us; `index` is that of our device.
    pub fn take(&mut self, scope: &Scope, index: Option<u32>) -> Vec<Event> {
        let mut events = Vec::new();
        if std::mem::take(&mut self.waiting) {
            read(&self.input, scope, index, &mut events);
        }
        loop {
            self.input.clear();
            match self.socket.socket_ref().recv(&mut self.input, libc::MSG_DONTWAIT) {
                Ok(_) => read(&self.input, scope, index, &mut events),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.lost(&error);
                    if error.raw_os_error() != Some(libc::ENOBUFS) {
                        break;
                    }
                }
            }
        }
        if std::mem::take(&mut self.overrun) {
            events.push(Event::Overrun);
        }
        events
    }

    /// Whatever the error is: something may have gone unheard.
    fn lost(&mut self, error: &io::Error) {
        tracing::debug!("reports of the kernel are lost: {error}");
        self.overrun = true;
    }
}

fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let inner = socket.socket_mut();
    inner.bind_auto()?;
    enlarge_receive_buffer(inner, RECEIVE_BUFFER);
    for group in GROUPS {
        inner.add_membership(group)?;
    }
    Ok(socket)
}

/// Appends what one datagram reports to `events`, as far as it concerns us.
pub fn read(datagram: &[u8], scope: &Scope, index: Option<u32>, events: &mut Vec<Event>) {
    for frame in frames(datagram) {
        let Some(frame) = frame else {
            events.push(Event::Unclear);
            continue;
        };
        if frame.kind() != Kind::Object {
            continue;
        }
        match NetlinkMessage::<Message>::deserialize(frame.bytes) {
            Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => {
                events.extend(event(message, frame.flags, scope, index));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!("a report of the kernel cannot be decoded: {error}");
                events.push(Event::Unclear);
            }
        }
    }
}

fn event(message: Message, flags: u16, scope: &Scope, index: Option<u32>) -> Option<Event> {
    match message {
        Message::NewLink(link) | Message::DelLink(link) => {
            if link.header.interface_family == AddressFamily::Bridge {
                return None;
            }
            let interface = decode::interface(&link);
            let ours = interface.name == scope.device || Some(interface.index) == index;
            let (index, name) = (interface.index, Some(interface.name));
            Some(if ours { Event::Device } else { Event::Host { index, name } })
        }
        Message::NewAddress(address) | Message::DelAddress(address) => {
            let on = address.header.index;
            Some(if Some(on) == index { Event::Device } else { Event::Host { index: on, name: None } })
        }
        Message::NewNeighbour(neighbor) => neighbor_event(&neighbor, true, index?),
        Message::DelNeighbour(neighbor) => neighbor_event(&neighbor, false, index?),
        Message::NewRoute(route) => route_event(&route, true, flags & NLM_F_REPLACE != 0, scope, index),
        Message::DelRoute(route) => route_event(&route, false, false, scope, index),
        _ => None,
    }
}

fn neighbor_event(message: &NeighbourMessage, there: bool, index: u32) -> Option<Event> {
    if message.header.family == AddressFamily::Bridge {
        let mac = decode::fdb_mac(message, index).filter(|_| decode::is_whole_fdb_report(message))?;
        // One that is learned, or has more than an address, is none of ours, but may stand where ours stood.
        let plain = decode::fdb_entry(message, index).and_then(|(_, dst)| dst);
        return Some(Event::Entry(Observed::FdbEntry(match plain {
            Some(dst) if there => FdbReport::Set(FdbEntry { mac, dst }),
            Some(dst) => FdbReport::Gone(FdbEntry { mac, dst }),
            None => FdbReport::Foreign(mac),
        })));
    }
    let (ip, neighbor) = decode::neighbor(message, index)?;
    Some(Event::Entry(Observed::Neighbor((ip, neighbor.filter(|_| there)))))
}

fn route_event(
    message: &RouteMessage,
    there: bool,
    replaced: bool,
    scope: &Scope,
    index: Option<u32>,
) -> Option<Event> {
    let family = message.header.address_family;
    if !decode::default_routes(message, family).is_empty() {
        return Some(Event::Host { index: 0, name: None });
    }
    let Some(route) = decode::route(message, family, index, scope) else {
        return decode::link_route(message).map(|_| Event::Underlay);
    };
    Some(Event::Entry(Observed::Route(match (there, replaced) {
        (false, _) => RouteReport::Gone(route),
        (true, true) => RouteReport::Replaced(route),
        (true, false) => RouteReport::Added(route),
    })))
}
