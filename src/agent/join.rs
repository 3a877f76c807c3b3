//! Joining the overlay: reads what an earlier run left on the host, finds out what proves a lease ours, and acquires our
//! own lease.

use super::lease_manager::{Acquired, Address, LeaseManager, StartingPoint};
use super::network::Network;
use super::retry::retry;
use super::status::Condition;
use super::{Node, Parts, Settings};
use crate::files::{EnvFiles, FileIo, StateFile};
use crate::kernel::Kernel;
use crate::model::desired::{DesiredState, LocalNode};
use crate::model::identity::{Identity, Surroundings};
use crate::model::iface::{ExternalInterface, HostView};
use crate::model::kernel_state::{Have, Scope};
use crate::model::lease::Record;
use crate::model::lease_set::Moment;
use crate::model::peer_policy;
use crate::model::subnet::SubnetKey;
use crate::store::Leases;
use std::rc::Rc;

impl<S: Leases> Node<S> {
    /// Joins the overlay, and waits for as long as that takes. `None` if the network config has changed meanwhile.
    pub(super) async fn join<K: Kernel, F>(
        parts: &mut Parts<S, K, F>,
        network: Network,
        (nic, host): (ExternalInterface, HostView),
    ) -> Option<Self> {
        let network = Rc::new(network);
        let files = env_files(&parts.settings, parts.runtime.files());
        let have = left_in_kernel(parts, &network, nic.index).await;
        let start = starting_point(parts, &network, (&nic, &host), &files, &have).await;
        let (store, runtime, status) = (parts.store.clone(), parts.runtime.clone(), parts.status.clone());
        let leases = parts.settings.leases;
        let mut lease_manager = LeaseManager::new(store, runtime, status, leases, network.clone(), start);
        let Acquired { lease, listed, held_peers } = lease_manager.acquire().await?;
        let own = LocalNode { nic, subnet: lease.subnet, mac: lease.mac };
        let desired = desired_state(parts, &network, own, host, held_peers);
        Some(Node { network, files, desired, lease_manager, lease, listed })
    }
}

fn env_files(settings: &Settings, io: FileIo) -> EnvFiles {
    let ip_masq = settings.firewall.masquerade.is_some();
    EnvFiles::new(settings.files.subnet_env.clone(), settings.files.docker_opts.clone(), ip_masq, io)
}

/// Reads what an earlier run left in the kernel. That is part of the proof that a lease is ours, so a failure to read it
/// is waited for.
async fn left_in_kernel<S, K: Kernel, F>(parts: &mut Parts<S, K, F>, network: &Network, nic: u32) -> Have {
    let scope =
        Scope { device: network.backend.device_name(), networks: [network.net.into()].into_iter().collect(), nic };
    let Parts { kernel, runtime, status, .. } = parts;
    let observe =
        async || kernel.observe(&scope).await.map_err(|error| format!("the kernel's state cannot be read: {error}"));
    retry(runtime, status, Condition::Kernel, observe).await
}

/// Gathers what the state file, the kernel and `subnet.env` say of an earlier run.
async fn starting_point<S: Leases, K, F>(
    parts: &Parts<S, K, F>,
    network: &Network,
    (nic, host): (&ExternalInterface, &HostView),
    files: &EnvFiles,
    have: &Have,
) -> StartingPoint {
    let settings = &parts.settings;
    let (state_dir, network_id) = (settings.files.state_dir.clone(), network.backend.network_id());
    let mut state_file = StateFile::new(state_dir, &settings.prefix, network_id, parts.runtime.files());
    let state = state_file.load(nic.public_ip, nic.mac).await;
    StartingPoint {
        state_file,
        store_progress: state.as_ref().map(|state| state.store_progress).unwrap_or_default(),
        probed: state.as_ref().and_then(|state| Some((SubnetKey::v4(state.subnet), state.trial?))),
        identity: Identity {
            public_ip: Some(nic.public_ip),
            remembered_mac: state.as_ref().map(|state| state.mac),
            remembered_lease: state.as_ref().and_then(|state| state.lease_id),
            remembered_subnet: state.as_ref().map(|state| state.subnet),
            env_subnet: files.previous_subnet().await,
            device_mac: have.device_mac(),
            rivals: state.map(|state| state.rivals).unwrap_or_default(),
            in_use: None,
        },
        address: Address { public_ip: nic.public_ip, nic_mac: nic.mac },
        surroundings: Surroundings {
            on_host: host.connected(&network.backend.device_name()).map(|(_, net)| net.trunc()).collect(),
            needed: peer_policy::underlay(nic, host, &parts.store.endpoints().borrow()),
        },
        left_behind: network.backend.recover(have),
    }
}

/// The facts that are known before the first list of peers is taken in.
fn desired_state<S: Leases, K, F>(
    parts: &Parts<S, K, F>,
    network: &Network,
    own: LocalNode,
    host: HostView,
    held_peers: Option<(Vec<Record>, Moment)>,
) -> DesiredState {
    let (settings, endpoints) = (&parts.settings, parts.store.endpoints().borrow().clone());
    let peer_hold = settings.leases.peer_hold;
    let mut desired = DesiredState::new(network.backend.clone(), network.net, endpoints, own, host, peer_hold);
    if settings.device.blackhole_route {
        desired.add_blackhole();
    }
    if settings.device.tx_checksum_off {
        desired.set_tx_checksum_off();
    }
    if let Some((peers, until)) = held_peers {
        desired.hold(peers, until);
    }
    desired
}
