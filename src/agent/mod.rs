//! The running daemon. It sees store, kernel and firewall only as traits.
//!
//! [`run`] is the life of a node: wait for the network config, wait for the external interface, join the overlay, then
//! run four loops that share one thread and meet only through channels (`wiring`).
//!
//! ```text
//!   store ---- peers ------ changes of leases -----> reconcile ---- kernel
//!     |                                              |  |   |  \--- subnet.env, docker_opts.env
//!     +---- lease_manager <--- own key, addresses ---+  |   |
//!                                                       |   |
//!   firewall tools ---- firewall <--- host's networks --+   +---- status ---- /healthz, /readyz, systemd
//! ```

mod announce;
mod condition;
pub mod firewall;
pub mod health;
mod join;
mod lease_manager;
mod loop_state;
mod network;
mod nic;
pub mod peers;
mod rate_limit;
mod read_schedule;
mod reconcile;
pub mod repair_limiter;
mod report;
mod retry;
pub mod retry_queue;
pub mod runtime;
pub mod settings;
pub mod status;
mod wiring;

pub use settings::Settings;

use crate::files::EnvFiles;
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::model::desired::DesiredState;
use crate::store::{Leases, Snapshot};
use firewall::FirewallLoop;
use lease_manager::{LeaseManager, OwnLease};
use network::Network;
use reconcile::Reconciler;
use runtime::Runtime;
use status::StatusHandle;
use std::convert::Infallible;
use std::rc::Rc;

/// The parts that a daemon is made of.
pub struct Parts<S, K, F> {
    /// Where leases live.
    pub store: Rc<S>,
    /// The host's network state.
    pub kernel: K,
    /// The host's firewall.
    pub firewall: F,
    /// The operator's settings.
    pub settings: Settings,
    /// Time, randomness and the service manager.
    pub runtime: Rc<Runtime>,
    /// How the daemon is doing.
    pub status: StatusHandle,
}

/// Joins the overlay and keeps this host in it, forever. If the future is dropped, the daemon stops and leaves kernel,
/// files and lease as they are.
pub async fn run<S: Leases, K: Kernel, F: Firewall>(parts: Parts<S, K, F>) -> Infallible {
    let (runtime, status) = (parts.runtime.clone(), parts.status.clone());
    tokio::select! {
        biased;
        never = health::beat(&runtime, &status) => never,
        never = live(parts) => never,
    }
}

async fn live<S: Leases, K: Kernel, F: Firewall>(mut parts: Parts<S, K, F>) -> Infallible {
    loop {
        let network = network::wait(&parts).await;
        let interfaces = nic::wait(&mut parts, &*network.backend).await;
        // Without a lease the network config may still change. Then everything is read again.
        if let Some(node) = Node::join(&mut parts, network, interfaces).await {
            return node.run(parts).await;
        }
    }
}

/// A host that has joined the overlay.
struct Node<S> {
    network: Rc<Network>,
    files: EnvFiles,
    desired: DesiredState,
    lease_manager: LeaseManager<S>,
    lease: OwnLease,
    /// The list of all leases that our own was found by.
    listed: Option<Snapshot>,
}

impl<S: Leases> Node<S> {
    /// Runs the loops of this host forever.
    async fn run<K: Kernel, F: Firewall>(self, parts: Parts<S, K, F>) -> Infallible {
        let Parts { store, kernel, firewall, settings, runtime, status } = parts;
        let Node { network, files, desired, lease_manager, lease, listed } = self;
        let ends = wiring::wire(lease_manager.address(), lease_manager.store_progress(), store.endpoints());
        let direct_nic = network.backend.routes_directly().then(|| desired.own().nic.name.clone());
        let (device, vni) = (network.backend.device_name(), network.backend.network_id());
        let rules = settings.firewall.rules(network.net.into(), lease.subnet.into(), device, direct_nic, vni);
        let (surroundings, sets) = ((runtime.clone(), status.clone()), vec![rules]);
        let firewall_loop =
            FirewallLoop::new(firewall, network.mode, sets, settings.firewall, surroundings.clone(), ends.firewall);
        let public_ip = settings.iface.public_ip;
        let reconciler = Reconciler::new(kernel, desired, files, public_ip, surroundings, ends.reconciler);
        // Polled in this order, so that a simulation with the same seed is the same run. The reconciler comes last: a storm of
        // the kernel's reports uses up what tokio lets one task do at a time, and loops behind it would starve.
        tokio::select! {
            biased;
            never = firewall_loop.run() => never,
            never = lease_manager.maintain(lease, ends.lease) => never,
            never = peers::follow(store, runtime, status, ends.peers, peers::Cadence::default(), listed) => never,
            never = reconciler.run() => never,
        }
    }
}
