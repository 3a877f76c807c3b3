//! Our own lease: found or created at the start, then kept for as long as the daemon runs. Every write depends on the
//! key's revision, so no write overwrites another host's unseen.

mod acquire;
mod conflict;
mod upkeep;
mod write;

use super::network::Network;
use super::runtime::Runtime;
use super::settings::LeaseSettings;
use super::status::{Condition, StatusHandle};
use crate::files::StateFile;
use crate::model::identity::{Identity, InUse, Surroundings};
use crate::model::lease::{LeaseAttrs, LeaseId, Record, Revision};
use crate::model::lease_set::Moment;
use crate::model::mac::VtepMac;
use crate::model::state_file::{Remembered, StoreProgress};
use crate::model::subnet::SubnetKey;
use crate::store::{Leases, Snapshot};
use conflict::OwnershipProbe;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

/// Our lease as it is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnLease {
    /// Our subnet.
    pub(super) subnet: Ipv4Net,
    /// The MAC of our tunnel endpoint.
    pub(super) mac: VtepMac,
    /// The etcd lease that keeps the key alive. `None` for a reservation, which never expires.
    lease_id: Option<LeaseId>,
    created: Revision,
    modified: Revision,
    /// The outcome of our last write is not known, so a later revision of the key may be our own. A keep-alive that
    /// failed does not count as a write: otherwise the writes of a copy of this host would pass for ours.
    unsure: bool,
    attrs: LeaseAttrs,
    /// When the key is written again.
    write_at: Moment,
}

/// Our addresses: part of the lease and of the state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    /// Where other hosts send their packets.
    pub(super) public_ip: Ipv4Addr,
    /// Hardware address of the external interface.
    pub(super) nic_mac: Option<VtepMac>,
}

/// Our key as the watch last showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyObservation {
    /// The revision of the store that shows it so.
    pub(super) revision: Revision,
    /// The key. `None` if it was absent.
    pub(super) record: Option<Record>,
}

/// Everything that is known of this host before the store's leases are read.
pub(super) struct StartingPoint {
    /// The state file.
    pub(super) state_file: StateFile,
    /// The proofs that a lease is ours.
    pub(super) identity: Identity,
    /// Our addresses.
    pub(super) address: Address,
    /// The addresses that our subnet must not hold.
    pub(super) surroundings: Surroundings,
    /// The peers that an earlier run left in the kernel.
    pub(super) left_behind: Vec<Record>,
    /// How much of the store's history an earlier run has seen.
    pub(super) store_progress: StoreProgress,
    /// The lease that an earlier run was probing when it ended, and when it had written it.
    pub(super) probed: Option<(SubnetKey, Revision)>,
}

/// Our lease, and what was read on the way to it.
pub(super) struct Acquired {
    /// Our lease.
    pub(super) lease: OwnLease,
    /// The list of all keys that the lease was found by, so that the peers need not be listed again.
    pub(super) listed: Option<Snapshot>,
    /// The peers that an earlier run left in the kernel, and until when they are held although the store may not have
    /// them. `None` if nothing is held.
    pub(super) held_peers: Option<(Vec<Record>, Moment)>,
}

/// The outcome of one attempt to own a lease.
enum Attempt {
    Owned(OwnLease),
    /// We have written the lease, but it may be another host's, which needs time to defend it.
    Probing(OwnLease),
    /// The key has changed meanwhile: list again.
    Again,
    /// Nothing can be done for now, for this reason.
    Wait(String),
}

/// Owns our lease.
pub(super) struct LeaseManager<S> {
    store: Rc<S>,
    runtime: Rc<Runtime>,
    status: StatusHandle,
    settings: LeaseSettings,
    network: Rc<Network>,
    state_file: StateFile,
    identity: Identity,
    address: Address,
    /// The addresses that our subnet must not hold.
    surroundings: Surroundings,
    /// The peers that an earlier run left in the kernel.
    left_behind: Vec<Record>,
    /// How much of the store's history an earlier run has seen, then how much this one has.
    store_progress: StoreProgress,
    /// Whether the first list showed the store set back, or without our lease.
    set_back: Option<bool>,
    probe: OwnershipProbe,
    listed: Option<Snapshot>,
}

impl<S: Leases> LeaseManager<S> {
    /// A manager without a lease yet.
    pub(super) fn new(
        store: Rc<S>,
        runtime: Rc<Runtime>,
        status: StatusHandle,
        settings: LeaseSettings,
        network: Rc<Network>,
        start: StartingPoint,
    ) -> Self {
        LeaseManager {
            store,
            runtime,
            status,
            settings,
            network,
            state_file: start.state_file,
            identity: start.identity,
            address: start.address,
            surroundings: start.surroundings,
            left_behind: start.left_behind,
            store_progress: start.store_progress,
            set_back: None,
            probe: OwnershipProbe::new(start.probed),
            listed: None,
        }
    }

    /// Our addresses.
    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// How much of the store's history has been seen.
    pub(super) fn store_progress(&self) -> StoreProgress {
        self.store_progress
    }

    fn ttl(&self) -> Duration {
        self.settings.times.ttl
    }

    /// Uses this subnet from now on.
    fn settle(&mut self, own: &OwnLease) {
        self.probe.end_probe();
        self.remember(own.subnet, own.mac, own.lease_id);
        if self.identity.in_use.map(|in_use| in_use.subnet) != Some(own.subnet) {
            let lost_races = self.status.read().counters.lost_races;
            tracing::info!(
                subnet = %own.subnet, public_ip = %self.address.public_ip, mac = %own.mac, lost_races, "lease acquired"
            );
        }
        self.identity.in_use = Some(InUse { subnet: own.subnet, created: own.created });
        self.status.update(|status| (status.own.subnet, status.own.lease) = (Some(own.subnet), own.lease_id));
        self.status.clear(Condition::Lease);
    }

    /// Writes the state file.
    fn remember(&mut self, subnet: Ipv4Net, mac: VtepMac, lease_id: Option<LeaseId>) {
        self.identity.remembered_mac = Some(mac);
        self.identity.remembered_lease = lease_id;
        self.identity.remembered_subnet = Some(subnet);
        let Address { public_ip, nic_mac } = self.address;
        let whole_seconds = |until: Moment| Duration::from_secs(until.as_secs());
        let StoreProgress { revision, hold_until } = self.store_progress;
        let store_progress = StoreProgress { revision, hold_until: hold_until.map(whole_seconds) };
        self.state_file.save(&Remembered {
            mac,
            lease_id,
            subnet,
            public_ip,
            nic_mac,
            store_progress,
            rivals: self.identity.rivals.clone(),
            trial: self.probe.probe_of(subnet),
        });
    }
}
