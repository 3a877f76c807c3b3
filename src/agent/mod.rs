//! The running daemon. It sees store and kernel only as traits.
//!
//! ```text
//!  store --- peers ----+                        +--- kernel
//!   |                  v                        |
//!   +------ lease_manager <-> reconcile (desired: want) -+--- subnet.env, docker_opts.env
//!                      |
//!                    status --- /healthz, /readyz, systemd
//! ```

mod announce;
pub mod firewall;
pub mod lease_manager;
mod loop_state;
pub mod peers;
pub mod reconcile;
pub mod repair_limiter;
mod report;
pub mod retry_queue;
pub mod runtime;
pub mod status;

use crate::backend::{self, Backend};
use crate::files::{EnvFiles, StateFile};
use crate::firewall::{Firewall, Mode};
use crate::kernel::Kernel;
use crate::model::config::{NetworkConfig, Overlay};
use crate::model::desired::{DesiredState, LocalNode};
use crate::model::identity::Identity;
use crate::model::iface::{self, ExternalInterface, HostView, IfaceRules};
use crate::model::kernel_state::{Have, Scope};
use crate::model::subnet::SubnetKey;
use crate::store::{Leases, Registry};
use firewall::{FirewallLoop, FirewallSettings};
use ipnet::IpNet;
use lease_manager::{Address, LeaseManager, LeaseTimes, OwnershipProbe, StoreProgress};
use reconcile::Reconciler;
use runtime::{Backoff, Runtime};
use status::{Condition, StatusHandle};
use std::convert::Infallible;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What the operator wants, beyond what stands in the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where in the store everything is, for messages and for the state file's name.
    pub prefix: String,
    /// How to find the external interface.
    pub iface: IfaceRules,
    /// How long our lease lives, and when it is renewed.
    pub times: LeaseTimes,
    /// `subnet.env`.
    pub subnet_file: PathBuf,
    /// `docker_opts.env`, if it is wanted.
    pub docker_opts_file: Option<PathBuf>,
    /// Where the state file is.
    pub state_dir: PathBuf,
    /// How long entries of a peer stay that vanished in a way that does not look like its own doing.
    pub peer_hold: Duration,
    /// What the firewall is to hold.
    pub firewall: FirewallSettings,
    /// Whether a blackhole route takes what is sent to addresses of our subnet that nobody has.
    pub blackhole_route: bool,
    /// Whether packets get their checksums before they reach our device, for the sake of what is below it and spoils them.
    pub tx_checksum_off: bool,
    /// Whether the lease is given back whenever the daemon stops (which is the caller's to do).
    pub gives_back: bool,
}

/// Runs for ever: joins the overlay and keeps this host in it. Dropping the future stops it and leaves kernel, files
/// and lease as they are.
pub async fn run<S: Leases, K: Kernel, F: Firewall>(
    store: Rc<S>,
    mut kernel: K,
    firewall: F,
    settings: Settings,
    runtime: Rc<Runtime>,
    status: StatusHandle,
) -> Infallible {
    let network = wait_for_config(&*store, &settings, &runtime, &status).await;
    let (nic, host) = wait_for_interface(&mut kernel, &settings.iface, &runtime, &status).await;
    let ip_masq = settings.firewall.masquerade.is_some();
    let files = EnvFiles::new(settings.subnet_file.clone(), settings.docker_opts_file.clone(), ip_masq);
    let mut state_file = StateFile::new(settings.state_dir.clone(), &settings.prefix, network.backend.network_id());
    let remembered = state_file.load(nic.public_ip, nic.mac);
    let address = Address { public_ip: nic.public_ip, nic_mac: nic.mac };
    let (device_mac, left_behind) = {
        let left = left_behind(&mut kernel, &network, nic.index, &runtime, &status).await;
        (left.device_mac(), network.backend.recover(&left))
    };
    let identity = Identity {
        public_ip: Some(nic.public_ip),
        remembered_mac: remembered.as_ref().map(|state| state.mac),
        remembered_lease: remembered.as_ref().and_then(|state| state.lease_id),
        remembered_subnet: remembered.as_ref().map(|state| state.subnet),
        env_subnet: files.previous_subnet(),
        device_mac,
        rivals: remembered.as_ref().map(|state| state.rivals.clone()).unwrap_or_default(),
        in_use: None,
    };
    let store_progress = remembered
        .as_ref()
        .map(|state| StoreProgress { revision: state.revision, hold_until: state.hold_until.map(Duration::from_secs) });
    let probed = remembered.as_ref().and_then(|state| Some((SubnetKey::v4(state.subnet), state.trial?)));
    let mut lease_manager = LeaseManager {
        store: store.clone(),
        runtime: runtime.clone(),
        status: status.clone(),
        config: network.config,
        backend: network.backend.clone(),
        backend_is_explicit: network.backend_is_explicit,
        overlay: network.overlay,
        times: settings.times,
        state_file,
        identity,
        address,
        on_host: host.connected(&network.backend.device_name()).map(|(_, net)| net.trunc()).collect(),
        left_behind,
        store_progress: store_progress.unwrap_or_default(),
        peer_hold: settings.peer_hold,
        gives_back: settings.gives_back,
        set_back: None,
        probe: OwnershipProbe::new(probed),
        listed: None,
    };
    let Some(held) = lease_manager.acquire().await else {
        // The network config has changed meanwhile.
        return Box::pin(run(store, kernel, firewall, settings, runtime, status)).await;
    };
    let direct_nic = network.backend.routes_directly().then(|| nic.name.clone());
    let own = LocalNode { nic, subnet: held.subnet, mac: held.mac };
    let mut endpoints = store.endpoints();
    let (device, network_id) = (network.backend.device_name(), network.backend.network_id());
    let mut desired = DesiredState::new(
        network.backend,
        network.net,
        endpoints.borrow_and_update().clone(),
        own,
        host,
        settings.peer_hold,
    );
    if settings.blackhole_route {
        desired.add_blackhole();
    }
    if settings.tx_checksum_off {
        desired.set_tx_checksum_off();
    }
    let (left_behind, listed) = (std::mem::take(&mut lease_manager.left_behind), lease_manager.listed.take());
    match lease_manager.hold_until() {
        Some(until) => desired.hold(left_behind, until),
        None => drop(left_behind),
    }
    let rules = settings.firewall.rules(network.net.into(), held.subnet.into(), device, direct_nic, network_id);
    let (tell_rules, rules_stand) = watch::channel(false);
    let firewall_loop = FirewallLoop::new(
        firewall,
        network.mode,
        vec![rules],
        settings.firewall,
        runtime.clone(),
        status.clone(),
        tell_rules,
    );
    let (tell_on_host, on_host) = watch::channel(Vec::new());
    let (observe_key, observations) = watch::channel(None);
    let (publish_store_progress, store_progress_updates) = watch::channel(lease_manager.store_progress);
    let (tell_address, addresses) = watch::channel(address);
    let (tell_news, news) = mpsc::channel(64);
    let reconciler = Reconciler {
        kernel,
        desired,
        files,
        public_ip: settings.iface.public_ip,
        runtime: runtime.clone(),
        status: status.clone(),
        observations: observe_key,
        addresses: tell_address,
        store_progress_updates: publish_store_progress,
        on_host: tell_on_host,
        rules_stand,
        endpoints,
    };
    // In this order, as are all choices of the daemon: the same seed gives the same run.
    tokio::select! {
        biased;
        never = reconciler.run(news) => never,
        never = firewall_loop.run(on_host) => never,
        never = lease_manager.maintain(held, observations, addresses, store_progress_updates) => never,
        never = peers::follow(store, runtime, status, tell_news, peers::Cadence::default(), listed) => never,
    }
}

/// The network as configured.
struct Network {
    net: ipnet::Ipv4Net,
    overlay: Overlay,
    backend: Rc<dyn Backend>,
    backend_is_explicit: bool,
    mode: Mode,
    config: Vec<u8>,
}

async fn wait_for_config<S: Registry>(
    store: &S,
    settings: &Settings,
    runtime: &Runtime,
    status: &StatusHandle,
) -> Network {
    let key = format!("{}/config", settings.prefix);
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    loop {
        let reason = match store.config().await {
            Err(error) => format!("waiting for etcd: {error}"),
            Ok(None) => format!(
                "waiting for the network config: there is no key {key}; put one there with: \
                 etcdctl put {key} '{{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}'"
            ),
            Ok(Some(text)) => match read_config(&text) {
                Ok(network) => {
                    status.clear(Condition::Config);
                    let (net, subnets) = (network.net, network.overlay.subnets);
                    tracing::info!(
                        network = %net, subnet_len = subnets.subnet_len(), backend = network.backend.kind(),
                        "network config read"
                    );
                    return network;
                }
                Err(problems) => format!("waiting for a valid network config: {key}: {problems}"),
            },
        };
        let pause = backoff.pause(runtime);
        status.raise_starting(Condition::Config, reason, pause);
        tokio::time::sleep(pause).await;
    }
}

fn read_config(text: &[u8]) -> Result<Network, String> {
    let config = NetworkConfig::parse(text).map_err(|errors| errors.to_string())?;
    let backend = backend::from_config(&config)?;
    match config.ipv4 {
        Some(overlay @ Overlay { network: IpNet::V4(net), .. }) => {
            let backend_is_explicit = config.backend.is_some();
            let mode = if config.enable_nftables { Mode::Nftables } else { Mode::Iptables };
            Ok(Network { net, overlay, backend: backend.into(), backend_is_explicit, mode, config: text.to_vec() })
        }
        _ => Err("Network is missing".into()),
    }
}

async fn wait_for_interface<K: Kernel>(
    kernel: &mut K,
    rules: &IfaceRules,
    runtime: &Runtime,
    status: &StatusHandle,
) -> (ExternalInterface, HostView) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    loop {
        let reason = match find_interface(kernel, rules).await {
            Ok((nic, host)) => {
                status.clear(Condition::Interface);
                tracing::info!("external interface {nic}");
                return (nic, host);
            }
            Err(reason) => reason,
        };
        let pause = backoff.pause(runtime);
        status.raise_starting(Condition::Interface, format!("waiting: {reason}"), pause);
        tokio::time::sleep(pause).await;
    }
}

async fn find_interface<K: Kernel>(
    kernel: &mut K,
    rules: &IfaceRules,
) -> Result<(ExternalInterface, HostView), String> {
    let host = kernel.host().await.map_err(|error| error.to_string())?;
    let reach = match rules.can_reach {
        Some(ip) => kernel.route_to(ip).await.map_err(|error| error.to_string())?,
        None => None,
    };
    let nic = iface::choose(rules, &host, reach).map_err(|error| error.to_string())?;
    Ok((nic, host))
}

/// What an earlier run left in the kernel. It is part of the proof of who we are, so a failure to read it is waited out.
async fn left_behind<K: Kernel>(
    kernel: &mut K,
    network: &Network,
    nic: u32,
    runtime: &Runtime,
    status: &StatusHandle,
) -> Have {
    let scope = Scope { device: network.backend.device_name(), networks: vec![network.net.into()], nic };
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    loop {
        match kernel.observe(&scope).await {
            Ok(have) => {
                status.clear(Condition::Kernel);
                return have;
            }
            Err(error) => {
                let pause = backoff.pause(runtime);
                status.raise_starting(Condition::Kernel, format!("the kernel's state cannot be read: {error}"), pause);
                tokio::time::sleep(pause).await;
            }
        }
    }
}
