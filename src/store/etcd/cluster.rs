//! The etcd cluster in use, and the members that belong to another one.
//!
//! If an endpoint list names two clusters, a change of the member looks like a store that was wiped, and two hosts may
//! lease one subnet. Each member is therefore asked for its cluster ID before it is used. A cluster that was built anew
//! has another ID, too: it is accepted at a member that had the old one.

use std::cell::{Cell, RefCell};
use std::time::Duration;
use tokio::time::Instant;

/// If the cluster in use has not answered for this long, another one is taken for its successor.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(3600);

/// An etcd cluster's ID; never 0.
pub(super) type ClusterId = u64;

/// The cluster IDs of all members.
pub(super) struct Clusters {
    in_use: Cell<Option<ClusterId>>,
    answered_at: Cell<Instant>,
    members: RefCell<Vec<Option<ClusterId>>>,
}

/// The meaning of a member's cluster ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The member belongs to the cluster in use.
    Member,
    /// The member's cluster was built anew, or replaces one that is gone: from now on it is the one in use.
    Successor,
    /// The member belongs to another cluster than this one, and was not known to before.
    NewForeigner(ClusterId),
    /// The same, and it was known.
    Foreigner(ClusterId),
}

impl Clusters {
    /// No ID is known yet of any of `count` members.
    pub(super) fn of(count: usize) -> Self {
        Clusters {
            in_use: Cell::default(),
            answered_at: Cell::new(Instant::now()),
            members: RefCell::new(vec![None; count]),
        }
    }

    /// A member of the cluster in use has answered.
    pub(super) fn answered(&self) {
        self.answered_at.set(Instant::now());
    }

    /// The members whose cluster is not known.
    pub(super) fn unknown(&self) -> Vec<usize> {
        self.members.borrow().iter().enumerate().filter(|(_, id)| id.is_none()).map(|(index, _)| index).collect()
    }

    /// Judges a member by the cluster ID that it reports.
    pub(super) fn judge(&self, member: usize, id: ClusterId) -> Verdict {
        let before = self.members.borrow_mut()[member].replace(id);
        let Some(in_use) = self.in_use.get() else {
            self.in_use.set(Some(id));
            return Verdict::Member;
        };
        if id == in_use {
            return Verdict::Member;
        }
        if before == Some(in_use) || self.answered_at.get().elapsed() >= GIVEN_UP_AFTER {
            self.in_use.set(Some(id));
            return Verdict::Successor;
        }
        if before == Some(id) { Verdict::Foreigner(in_use) } else { Verdict::NewForeigner(in_use) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const OURS: ClusterId = 7;
    const OTHER: ClusterId = 8;

    #[tokio::test(start_paused = true)]
    async fn members_of_another_cluster_are_found_and_reported_once() {
        let clusters = Clusters::of(3);
        assert_eq!(clusters.judge(0, OURS), Verdict::Member);
        assert_eq!(clusters.judge(2, OTHER), Verdict::NewForeigner(OURS));
        assert_eq!(clusters.judge(2, OTHER), Verdict::Foreigner(OURS));
        assert_eq!(clusters.judge(1, OURS), Verdict::Member);
        assert_eq!(clusters.unknown(), [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_was_built_anew_is_accepted() {
        let clusters = Clusters::of(2);
        clusters.judge(0, OURS);
        clusters.judge(1, OURS);
        assert_eq!(clusters.judge(1, OTHER), Verdict::Successor);
        assert_eq!(clusters.judge(0, OTHER), Verdict::Member);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_never_answers_again_is_replaced_in_the_end() {
        let clusters = Clusters::of(2);
        clusters.judge(0, OURS);
        assert_eq!(clusters.judge(1, OTHER), Verdict::NewForeigner(OURS));
        advance(GIVEN_UP_AFTER / 2).await;
        clusters.answered();
        advance(GIVEN_UP_AFTER / 2).await;
        assert_eq!(clusters.judge(1, OTHER), Verdict::Foreigner(OURS));
        advance(GIVEN_UP_AFTER / 2).await;
        assert_eq!(clusters.judge(1, OTHER), Verdict::Successor);
    }
}
