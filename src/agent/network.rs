//! The network config in the store: waited for, read, and compared with what it was.

use super::Parts;
use super::retry::retry;
use super::status::Condition;
use crate::backend::{self, Backend};
use crate::firewall::Mode;
use crate::model::config::Overlay;
use crate::store::Registry;
use ipnet::{IpNet, Ipv4Net};
use std::rc::Rc;

/// The network as configured.
pub(super) struct Network {
    /// The whole overlay.
    pub(super) net: Ipv4Net,
    /// The subnets to choose from.
    pub(super) overlay: Overlay,
    /// How packets are carried between hosts.
    pub(super) backend: Rc<dyn Backend>,
    /// Whether the config names the backend. If it does not, leases of another type call for an explicit one.
    pub(super) backend_is_explicit: bool,
    /// Which of the kernel's firewalls holds the rules.
    pub(super) mode: Mode,
    /// The config's text.
    text: Vec<u8>,
}

/// Waits until the store holds a valid network config.
pub(super) async fn wait<S: Registry, K, F>(parts: &Parts<S, K, F>) -> Network {
    let key = format!("{}/config", parts.settings.prefix);
    let network =
        retry(&parts.runtime, &parts.status, Condition::Config, async || read(&*parts.store, &key).await).await;
    tracing::info!(
        network = %network.net, subnet_len = network.overlay.subnets.subnet_len(), backend = network.backend.kind(),
        "network config read"
    );
    network
}

/// The prefix may well be wrong, and to put a second config in its place would split the cluster.
fn no_config(key: &str, others: &[String]) -> String {
    let found = match others {
        [] => "no config was found under other prefixes".to_owned(),
        others => format!("configs exist at {}", others.join(", ")),
    };
    format!(
        "waiting for the network config: there is no key {key}; check --etcd-prefix ({found}). For a new network put one \
         there with: etcdctl put {key} '{{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}'"
    )
}

async fn read<S: Registry>(store: &S, key: &str) -> Result<Network, String> {
    match store.config().await {
        Err(error) => Err(format!("waiting for etcd: {error}")),
        Ok(None) => Err(no_config(key, &store.other_configs().await)),
        Ok(Some(text)) => {
            Network::parse(text).map_err(|problems| format!("waiting for a valid network config: {key}: {problems}"))
        }
    }
}

impl Network {
    fn parse(text: Vec<u8>) -> Result<Self, String> {
        let (config, backend) = backend::read_config(&text).map_err(|errors| errors.to_string())?;
        match config.ipv4 {
            Some(overlay @ Overlay { network: IpNet::V4(net), .. }) => {
                let backend_is_explicit = config.backend.is_some();
                let mode = if config.enable_nftables { Mode::Nftables } else { Mode::Iptables };
                Ok(Network { net, overlay, backend: backend.into(), backend_is_explicit, mode, text })
            }
            _ => Err("Network is missing".into()),
        }
    }

    /// Whether the store now holds another network config than this one. A store that does not answer, or that holds
    /// none, is no change.
    pub(super) async fn has_changed<S: Registry>(&self, store: &S) -> bool {
        matches!(store.config().await, Ok(Some(text)) if text != self.text)
    }
}
