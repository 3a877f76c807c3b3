//! The external interface, which carries the tunnel's packets.

use super::Parts;
use super::retry::retry;
use super::status::Condition;
use crate::backend::Backend;
use crate::kernel::Kernel;
use crate::model::iface::{self, ExternalInterface, HostView, IfaceRules};

/// Waits until the host has an interface that the rules choose. Returns all interfaces of the host as well.
pub(super) async fn wait<S, K: Kernel, F>(
    parts: &mut Parts<S, K, F>,
    backend: &dyn Backend,
) -> (ExternalInterface, HostView) {
    let Parts { kernel, settings, runtime, status, .. } = parts;
    let find = async || find(kernel, &settings.iface, backend).await.map_err(|reason| format!("waiting: {reason}"));
    let (nic, host) = retry(runtime, status, Condition::Interface, find).await;
    tracing::info!("external interface {nic}");
    (nic, host)
}

async fn find<K: Kernel>(
    kernel: &mut K,
    rules: &IfaceRules,
    backend: &dyn Backend,
) -> Result<(ExternalInterface, HostView), String> {
    let host = kernel.host().await.map_err(|error| error.to_string())?;
    let reach = match rules.can_reach {
        Some(ip) => kernel.route_to(ip).await.map_err(|error| error.to_string())?,
        None => None,
    };
    let nic = iface::choose(rules, &host, reach).map_err(|error| error.to_string())?;
    match backend.interface_complaint(&nic) {
        Some(reason) => Err(reason),
        None => Ok((nic, host)),
    }
}
