//! The stores, the one in etcd against a real etcd. Needs the programs etcd and etcdctl.

mod auth;
mod breaker;
mod contract;
mod edges;
mod etcd;
mod failures;
mod follower;
mod guarantees;
mod lab;
mod outages;
mod pki;
mod proxy;
mod tls;
mod wire;

/// Each contract is a test of both stores.
macro_rules! contracts {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                crate::contract::$name(&flanneld_lab::store::MemoryStore::new()).await;
            })*
        }
        mod real {
            $(#[tokio::test]
            async fn $name() {
                crate::contract::$name(&crate::etcd::Etcd::start()).await;
            })*
        }
    };
}

contracts! {
    of_two_that_create_one_wins
    an_overwrite_wants_the_revision_that_was_seen
    a_kept_lease_stays_the_same
    who_writes_the_same_too_late_has_not_written_it
    a_reservation_needs_no_lease
    a_lease_lives_while_it_is_renewed_and_then_expires
    a_lease_that_is_given_back_takes_its_key_along
    a_removal_wants_the_revision_that_was_seen
    a_watch_tells_all_that_happens_after_a_listing
    keys_deleted_together_share_one_revision
    what_is_no_lease_is_listed_all_the_same
    what_is_compacted_cannot_be_watched
    a_watch_may_be_dropped_while_it_waits
    the_config_is_text_or_none
}
