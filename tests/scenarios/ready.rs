//! What the service manager is told, and when.

use crate::lab::{Cluster, DEVICE, Peer, TTL, hours, millis, mins, secs};
use flanneld::agent::runtime::Notice;
use flanneld::agent::{self, Parts};
use flanneld::firewall::obstacles::OnHost;
use flanneld::firewall::tools::ToolError;
use flanneld::firewall::{Firewall, Look, Masquerade, Mode, RuleSet};
use flanneld::store::StoreError;
use std::rc::Rc;

/// A host that has its lease, and does not watch its peers yet.
async fn about_to_watch() -> Cluster {
    let mut cluster = Cluster::new(1);
    let guest = Peer::guest(201);
    cluster.store.put_for(&guest.key(), guest.json(), TTL);
    cluster[1].store.set_latency(millis(10));
    cluster.start(1);
    while cluster[1].status().read().own.subnet.is_none() {
        cluster.pass(millis(1)).await;
    }
    cluster
}

#[tokio::test(start_paused = true)]
async fn an_etcd_that_hangs_once_the_lease_is_held_holds_up_nothing() {
    let cluster = about_to_watch().await;
    cluster[1].store.set_latency(hours(1));
    cluster.until(secs(1), "it is ready", |cluster| cluster[1].is_ready()).await;
    cluster.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn an_etcd_that_fails_once_the_lease_is_held_holds_up_nothing() {
    let cluster = about_to_watch().await;
    cluster[1].store.fail_with(StoreError::Unavailable("no leader".into()));
    cluster.until(secs(1), "it is ready", |cluster| cluster[1].is_ready()).await;
    cluster.assert_settled();
    let says = |cluster: &Cluster| cluster[1].reasons().contains("peers cannot be followed: no leader");
    cluster.until(secs(7), "it says so", says).await;
    cluster[1].store.come_back();
    cluster.until(secs(7), "all is well", |cluster| cluster[1].reasons().is_empty()).await;
    let guest = Peer::guest(202);
    cluster.store.put_for(&guest.key(), guest.json(), TTL);
    cluster.settle().await;
}

#[tokio::test(start_paused = true)]
async fn what_happens_between_the_list_and_the_lease_is_not_missed() {
    let mut cluster = Cluster::new(1);
    let (goes, stays) = (Peer::guest(201), Peer::guest(202));
    cluster.store.put_for(&goes.key(), goes.json(), TTL);
    cluster[1].store.set_latency(millis(10));
    cluster.start(1);
    while cluster[1].store.calls().list == 0 {
        cluster.pass(millis(1)).await;
    }
    cluster.pass(millis(11)).await;
    cluster.store.delete(&goes.key());
    cluster.store.put_for(&stays.key(), stays.json(), TTL);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!(cluster[1].store.calls().list, 1, "one list is enough");
}

#[tokio::test(start_paused = true)]
async fn before_the_first_list_nothing_is_removed() {
    let mut cluster = Cluster::joined(3).await;
    let before = cluster[1].lines();
    cluster.stop(1);
    cluster[1].kernel.take_log();
    cluster[1].store.set_latency(millis(10));
    cluster.start(1);
    while cluster[1].status().read().own.subnet.is_none() {
        cluster.pass(millis(1)).await;
    }
    cluster[1].store.fail_with(StoreError::Unavailable("no leader".into()));
    cluster.pass(mins(10)).await;
    assert_eq!((cluster[1].kernel.take_log(), cluster[1].lines()), (vec![], before));
    cluster[1].store.come_back();
    cluster.settle().await;
    assert_eq!(cluster[1].kernel.take_log(), []);
}

#[tokio::test(start_paused = true)]
async fn ready_is_told_once_and_after_everything_is_in_place() {
    let mut cluster = Cluster::new(2);
    for guest in (101..=150).map(Peer::guest) {
        cluster.store.put_for(&guest.key(), guest.json(), TTL);
    }
    cluster.start(1);
    while !cluster[1].is_ready() {
        cluster.pass(millis(1)).await;
    }
    cluster.assert_settled();
    cluster.start(2);
    cluster.pass(hours(2)).await;
    let ready = cluster[1].heard().into_iter().filter(|notice| *notice == Notice::Ready).count();
    assert_eq!(ready, 1);
    assert!(cluster[1].status().is_alive());
}

#[tokio::test(start_paused = true)]
async fn while_waiting_the_service_manager_is_asked_for_patience_without_a_gap() {
    let mut cluster = Cluster::new(1);
    cluster.store.remove_config();
    cluster.start(1);
    let asked = |cluster: &Cluster| cluster[1].heard().len();
    for _ in 0..60 {
        let before = asked(&cluster);
        cluster.pass(secs(10)).await;
        assert!(asked(&cluster) > before);
    }
    assert!(cluster[1].status().is_alive());
    let last = cluster[1].heard().pop();
    assert!(matches!(last, Some(Notice::StillStarting(time)) if time >= secs(30)), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_is_fed_while_the_loop_turns_and_only_then() {
    let cluster = Cluster::joined(2).await;
    for _ in 0..600 {
        cluster.pass(secs(1)).await;
        assert!(cluster[1].silent_for() <= secs(6), "{:?}", cluster[1].silent_for());
    }
    cluster[1].store.fail_with(StoreError::Unavailable("no leader".into()));
    cluster.pass(hours(1)).await;
    assert!(
        cluster[1].silent_for() <= secs(6) && cluster[1].status().is_alive(),
        "etcd is no matter of the watchdog's"
    );
    cluster[1].store.come_back();
    cluster[1].kernel.slow_down_reading(hours(24));
    cluster[1].kernel.lose_device(DEVICE);
    cluster.pass(mins(2)).await;
    assert!(cluster[1].silent_for() > secs(110), "{:?}", cluster[1].silent_for());
    assert!(!cluster[1].status().is_alive() && cluster[2].status().is_alive());
}

/// A look at it takes 3.5 s, and nobody touches its rules.
struct SlowFirewall;

impl Firewall for SlowFirewall {
    async fn ensure(&mut self, _: Mode, _: &[RuleSet], _: &[OnHost]) -> Result<Look, ToolError> {
        tokio::time::sleep(millis(3500)).await;
        Ok(Look::default())
    }

    fn reports_changes(&self) -> bool {
        true
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_is_ready_as_soon_as_the_rules_of_its_firewall_stand_and_not_before() {
    let mut cluster = Cluster::new(1);
    cluster[1].launch = |store, kernel, settings, runtime, status| {
        Box::pin(agent::run(Parts { store: Rc::new(store), kernel, firewall: SlowFirewall, settings, runtime, status }))
    };
    cluster.start(1);
    let took = cluster.until_ready().await;
    assert!((millis(3500)..millis(3700)).contains(&took), "{took:?}");
}

/// A kernel without what iptables needs.
struct FailingFirewall;

impl Firewall for FailingFirewall {
    async fn ensure(&mut self, _: Mode, _: &[RuleSet], _: &[OnHost]) -> Result<Look, ToolError> {
        Err(ToolError::Failed { program: "iptables-save", text: "the kernel has no tables".into() })
    }

    fn reports_changes(&self) -> bool {
        true
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_firewall_that_fails_holds_up_the_start_only_where_something_was_asked_of_it() {
    for asked in [false, true] {
        let mut cluster = Cluster::new(1);
        cluster[1].settings.firewall.masquerade = asked.then_some(Masquerade { random_fully: true });
        cluster[1].launch = |store, kernel, settings, runtime, status| {
            Box::pin(agent::run(Parts {
                store: Rc::new(store),
                kernel,
                firewall: FailingFirewall,
                settings,
                runtime,
                status,
            }))
        };
        cluster.start(1);
        cluster.pass(mins(1)).await;
        assert_eq!(cluster[1].is_ready(), !asked);
        assert!(cluster[1].reasons().contains("iptables-save failed"), "{}", cluster[1].reasons());
    }
}
