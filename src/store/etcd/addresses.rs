//! The addresses of all members of the cluster. No peer may take them into the overlay, so they are looked up for every
//! member, not only for the one that is asked.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::watch::{Receiver, Sender};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long one lookup may take.
const LOOKUP: Duration = Duration::from_secs(5);
/// The first and the longest pause after a lookup that failed.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The addresses of all members, published whenever a lookup finds others than before.
pub(super) struct Addresses {
    names: Vec<Name>,
    known: Arc<Known>,
}

/// A member that is given by a host name.
struct Name {
    member: usize,
    host: String,
    port: u16,
    /// The lookup under way. It ends with the pool.
    lookup: RefCell<JoinSet<()>>,
}

/// The addresses that have been found so far.
struct Known {
    by_member: Mutex<Vec<Vec<IpAddr>>>,
    publish: Sender<Vec<IpAddr>>,
}

impl Addresses {
    /// The members with these hosts and ports. A host that is an address is known at once; nothing is looked up yet.
    pub(super) fn new<'h>(members: impl Iterator<Item = (&'h str, u16)>) -> Self {
        let (mut names, mut by_member) = (Vec::new(), Vec::new());
        for (member, (host, port)) in members.enumerate() {
            let address: Option<IpAddr> = host.parse().ok();
            if address.is_none() {
                names.push(Name { member, host: host.to_owned(), port, lookup: RefCell::default() });
            }
            by_member.push(Vec::from_iter(address));
        }
        let known = Known { by_member: Mutex::new(by_member), publish: Sender::default() };
        known.publish();
        Addresses { names, known: Arc::new(known) }
    }

    /// The addresses of all members, as they become known.
    pub(super) fn subscribe(&self) -> Receiver<Vec<IpAddr>> {
        self.known.publish.subscribe()
    }

    /// Looks all names up, unless a lookup is under way, and does not wait for the answers. Needs a tokio runtime.
    pub(super) fn look_up(&self) {
        for name in &self.names {
            let mut lookup = name.lookup.borrow_mut();
            while lookup.try_join_next().is_some() {}
            if lookup.is_empty() {
                lookup.spawn(look_up(self.known.clone(), name.member, name.host.clone(), name.port));
            }
        }
    }
}

impl Known {
    /// Replaces the addresses of one member.
    fn set(&self, member: usize, addresses: Vec<IpAddr>) {
        self.by_member.lock().unwrap_or_else(PoisonError::into_inner)[member] = addresses;
        self.publish();
    }

    fn publish(&self) {
        let by_member = self.by_member.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = by_member.concat();
        all.sort_unstable();
        all.dedup();
        self.publish.send_if_modified(|known| std::mem::replace(known, all.clone()) != all);
    }
}

/// Looks a name up until that succeeds once. What was known of the member stays until then.
async fn look_up(known: Arc<Known>, member: usize, host: String, port: u16) {
    let (mut pause, longest) = PAUSES;
    loop {
        match timeout(LOOKUP, lookup_host((host.as_str(), port))).await {
            Ok(Ok(found)) => return known.set(member, found.map(|address| address.ip()).collect()),
            Ok(Err(error)) => tracing::debug!("{host}: {error}"),
            Err(_) => tracing::debug!("{host}: no answer within {} s", LOOKUP.as_secs()),
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_before_anything_is_dialled() {
        let members = [("10.0.0.2", 2379), ("fd00::1", 2379), ("etcd.example", 2379), ("10.0.0.2", 2380)];
        let addresses = Addresses::new(members.into_iter());
        assert_eq!(*addresses.subscribe().borrow(), ["10.0.0.2", "fd00::1"].map(|a| a.parse::<IpAddr>().unwrap()));
    }

    #[tokio::test]
    async fn every_name_is_looked_up_and_one_that_is_unknown_delays_no_other() {
        let addresses = Addresses::new([("no-such-host.invalid", 1), ("localhost", 2)].into_iter());
        let mut published = addresses.subscribe();
        addresses.look_up();
        addresses.look_up();
        let found = published.wait_for(|all| !all.is_empty()).await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
