//! Logs refusals that began or ended, and networks that overlap the overlay.

use crate::model::findings::Finding;

/// Logs each finding in a line of its own.
pub(super) fn log(findings: Vec<Finding>) {
    for finding in findings {
        match finding {
            Finding::Refused { lease, reason } => tracing::warn!(lease = &*lease, "refused: {reason}"),
            Finding::RefusalEnded { lease } => tracing::info!(lease = &*lease, "no longer refused"),
            Finding::WiderNetwork { interface, network, overlay } => tracing::warn!(
                "{interface} is in {network}, which overlaps the overlay {overlay}: what is there inside the subnet of a \
                 peer cannot be reached from here"
            ),
        }
    }
}
