//! The channels between the loops of a daemon, made in one place. Each loop takes its ends as one value.

use super::lease_manager::{Address, KeyObservation};
use super::peers::News;
use crate::firewall::obstacles::OnHost;
use crate::model::state_file::StoreProgress;
use std::net::IpAddr;
use tokio::sync::{mpsc, watch};

/// The reconciler waits for no more changes than this before the follower of the peers waits for it.
const NEWS: usize = 64;

/// All ends of all channels.
pub(super) struct Wiring {
    pub(super) reconciler: ReconcilerEnds,
    pub(super) lease: LeaseEnds,
    pub(super) firewall: FirewallEnds,
    pub(super) peers: mpsc::Sender<News>,
}

/// The reconciler's ends.
pub(super) struct ReconcilerEnds {
    /// The peers' leases.
    pub(super) news: mpsc::Receiver<News>,
    /// Whether the firewall's rules are in place. The host is not ready without them.
    pub(super) rules_in_place: watch::Receiver<bool>,
    /// Our own key, as the watch shows it.
    pub(super) observations: watch::Sender<Option<KeyObservation>>,
    /// Our addresses.
    pub(super) addresses: watch::Sender<Address>,
    /// How much of the store's history is known.
    pub(super) store_progress: watch::Sender<StoreProgress>,
    /// The networks on the host's interfaces.
    pub(super) on_host: watch::Sender<Vec<OnHost>>,
    /// The addresses of the store's members.
    pub(super) endpoints: watch::Receiver<Vec<IpAddr>>,
}

/// The lease manager's ends.
pub(super) struct LeaseEnds {
    /// Our own key, as the watch shows it.
    pub(super) observations: watch::Receiver<Option<KeyObservation>>,
    /// Our addresses.
    pub(super) addresses: watch::Receiver<Address>,
    /// How much of the store's history is known.
    pub(super) store_progress: watch::Receiver<StoreProgress>,
}

/// The firewall loop's ends.
pub(super) struct FirewallEnds {
    /// The networks on the host's interfaces.
    pub(super) on_host: watch::Receiver<Vec<OnHost>>,
    /// Whether the rules have been in place, as far as they are wanted and can be had.
    pub(super) rules_in_place: watch::Sender<bool>,
}

/// Makes all channels. `address` and `progress` are what the lease manager knows already; the store owns the sender of
/// `endpoints`.
pub(super) fn wire(address: Address, progress: StoreProgress, mut endpoints: watch::Receiver<Vec<IpAddr>>) -> Wiring {
    // The reconciler looks once: they may have changed since the desired state was made.
    endpoints.mark_changed();
    let (news_sender, news) = mpsc::channel(NEWS);
    let (rules_sender, rules_in_place) = watch::channel(false);
    let (observation_sender, observations) = watch::channel(None);
    let (address_sender, addresses) = watch::channel(address);
    let (progress_sender, store_progress) = watch::channel(progress);
    let (on_host_sender, on_host) = watch::channel(Vec::new());
    Wiring {
        reconciler: ReconcilerEnds {
            news,
            rules_in_place,
            observations: observation_sender,
            addresses: address_sender,
            store_progress: progress_sender,
            on_host: on_host_sender,
            endpoints,
        },
        lease: LeaseEnds { observations, addresses, store_progress },
        firewall: FirewallEnds { on_host, rules_in_place: rules_sender },
        peers: news_sender,
    }
}
