//! Logs refusals that began or ended, and networks that overlap the overlay.

use crate::model::findings::Finding;
use crate::model::foreign::{QUOTED, shown};

/// Logs each finding in a line of its own.
pub(super) fn log(findings: Vec<Finding>) {
    for finding in findings {
        match finding {
            Finding::Refused { lease, reason } => tracing::warn!(lease = name(&lease), "refused: {reason}"),
            Finding::RefusalEnded { lease } => tracing::info!(lease = name(&lease), "no longer refused"),
            Finding::WiderNetwork { interface, network, overlay } => tracing::warn!(
                "{interface} is in {network}, which overlaps the overlay {overlay}: what is there inside the subnet of a \
                 peer cannot be reached from here"
            ),
        }
    }
}

/// The name of a key, which others choose.
fn name(lease: &str) -> String {
    shown(lease, QUOTED)
}
