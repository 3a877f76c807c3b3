//! How leases become kernel state. One file a backend; a new one is a file here and an arm in `from_config`.

pub mod vxlan;

pub use crate::model::backend::{Backend, Entries, OwnEntries};

use crate::model::config::{ConfigErrors, Draft, NetworkConfig};
use crate::model::foreign::{QUOTED, shown};

/// The backends that this version has, as the config names them.
pub const KINDS: &[&str] = &[vxlan::KIND];

/// Reads the network config and makes the backend that it asks for.
///
/// # Errors
/// Every problem: of the config, of its Backend member, and what this version cannot do.
pub fn read_config(text: &[u8]) -> Result<(NetworkConfig, Box<dyn Backend>), ConfigErrors> {
    let Draft { config, enable_ipv4, enable_ipv6, mut problems, .. } = NetworkConfig::draft(text)?;
    if enable_ipv6 {
        let instead = if enable_ipv4 { "" } else { " and EnableIPv4 to true" };
        problems.push(format!("EnableIPv6 is not implemented by this version: set EnableIPv6 to false{instead}"));
    }
    match from_config(&config) {
        Ok(backend) if problems.is_empty() => Ok((config, backend)),
        Ok(_) => Err(ConfigErrors(problems)),
        Err(ConfigErrors(more)) => Err(ConfigErrors([problems, more].concat())),
    }
}

/// The backend that the config asks for. Without one it is VXLAN, as flannel's documentation says.
fn from_config(config: &NetworkConfig) -> Result<Box<dyn Backend>, ConfigErrors> {
    let Some(backend) = &config.backend else { return Ok(Box::new(vxlan::Vxlan::default())) };
    let problem = match backend.kind.as_str() {
        vxlan::KIND => return Ok(Box::new(vxlan::Vxlan::from_params(&backend.params)?)),
        "" => format!("Backend has no Type: set one of {}", KINDS.join(", ")),
        other => {
            format!("Backend Type \"{}\" is not one that this version has: {}", shown(other, QUOTED), KINDS.join(", "))
        }
    };
    Err(ConfigErrors(vec![problem]))
}
