use super::*;
use flanneld::model::lease::Record;
use flanneld::store::{Change, Changes, Watch};
use std::net::Ipv4Addr;
use tokio::time::{sleep, timeout};

const HOUR: Duration = Duration::from_secs(3600);

fn subnet(third: u8) -> SubnetKey {
    SubnetKey::v4(ipnet::Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap())
}

fn attrs(host: u8) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: Ipv4Addr::new(192, 168, 0, host),
        public_ipv6: None,
        backend_type: "vxlan".into(),
        backend_data: None,
        backend_v6_data: None,
    }
}

fn deleted(changes: &Changes) -> Vec<&str> {
    let mut names = Vec::new();
    for change in &changes.changes {
        if let Change::Delete { name, .. } = change {
            names.push(&**name);
        }
    }
    names
}

#[tokio::test(start_paused = true)]
async fn a_lease_expires_at_its_time_and_watches_hear_it_without_any_call() {
    let store = MemoryStore::new();
    let mut watch = store.watch(1).await.unwrap();
    let ttl = Duration::from_secs(10);
    store.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Grant(ttl)).await.unwrap();
    watch.next().await.unwrap();
    let began = Instant::now();
    let changes = watch.next().await.unwrap();
    assert_eq!((deleted(&changes), began.elapsed()), (vec!["10.5.1.0-24"], ttl));
    assert_eq!((store.leases(), store.list().await.unwrap().records.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn renewals_keep_a_lease_and_later_ones_find_none() {
    let store = MemoryStore::new();
    let id = store.put_for("10.5.1.0-24", "x", Duration::from_secs(10));
    for _ in 0..5 {
        sleep(Duration::from_secs(9)).await;
        assert_eq!(store.keep_alive(id).await.unwrap(), Some(Duration::from_secs(10)));
    }
    sleep(Duration::from_secs(10)).await;
    assert_eq!(store.keep_alive(id).await.unwrap(), None);
    assert_eq!(store.get("10.5.1.0-24"), None);
}

#[tokio::test(start_paused = true)]
async fn keys_deleted_together_share_a_revision_and_are_never_parted() {
    let store = MemoryStore::new();
    for n in 0..1500 {
        store.put(&format!("old-{n}"), "");
    }
    let mut watch = store.watch(store.snapshot().revision).await.unwrap();
    assert_eq!(store.delete_prefix("old-"), 1500);
    store.put("new", "");
    let changes = watch.next().await.unwrap();
    assert_eq!(deleted(&changes).len(), 1500);
    assert_eq!(watch.next().await.unwrap().changes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_replays_history_unless_it_is_compacted() {
    let store = MemoryStore::new();
    let first = store.put("a", "");
    store.put("b", "");
    assert_eq!(store.watch(first - 1).await.unwrap().next().await.unwrap().changes.len(), 2);
    let mut running = store.watch(first).await.unwrap();
    store.compact(first + 1);
    assert_eq!(store.watch(first - 1).await.err(), Some(StoreError::Compacted(first + 1)));
    assert_eq!(running.next().await.unwrap().changes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wiped_or_restored_store_ends_watches_and_goes_back() {
    let store = MemoryStore::new();
    store.set_config("{}");
    let backup = store.backup();
    let seen = store.put("a", "");
    let mut watch = store.watch(seen).await.unwrap();
    store.restore(backup);
    assert!(matches!(watch.next().await, Err(StoreError::Unavailable(_))));
    assert!(store.list().await.unwrap().revision < seen && store.get("a").is_none());
    assert_eq!(store.watch(seen).await.err(), Some(StoreError::Compacted(seen)));
    store.wipe();
    assert_eq!((store.list().await.unwrap().revision, store.config().await.unwrap()), (1, None));
}

#[tokio::test(start_paused = true)]
async fn one_client_is_cut_off_and_the_other_is_not() {
    let store = MemoryStore::new();
    let other = store.another_client();
    let (mut cut, mut whole) = (store.watch(1).await.unwrap(), other.watch(1).await.unwrap());
    store.go_down();
    assert!(store.list().await.is_err() && cut.next().await.is_err());
    assert!(other.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Forever).await.is_ok());
    assert_eq!(whole.next().await.unwrap().changes.len(), 1);
    store.come_back();
    assert_eq!(store.list().await.unwrap().records.len(), 1);
    assert_eq!((store.calls().list, other.calls().list, other.calls().write), (2, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_is_done() {
    let store = MemoryStore::new();
    store.lose_next_answer();
    assert!(store.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Grant(HOUR)).await.is_err());
    let records = store.list().await.unwrap().records;
    let Record { content: Ok(lease), .. } = &records[0] else { panic!("{records:?}") };
    assert_eq!(lease.attrs, attrs(1));
    assert!(store.remove(subnet(1), lease.modified).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn progress_is_reported_on_demand_and_nothing_else_is_news() {
    let store = MemoryStore::new();
    let mut watch = store.watch(1).await.unwrap();
    store.set_config("{}");
    assert!(timeout(HOUR, watch.next()).await.is_err());
    store.report_progress();
    assert_eq!(watch.next().await.unwrap(), Changes { revision: 2, changes: Vec::new() });
    assert!(timeout(HOUR, watch.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn latency_delays_both_ways() {
    let store = MemoryStore::new();
    store.set_latency(Duration::from_secs(1));
    let began = Instant::now();
    let attrs = attrs(1);
    let write = store.write(subnet(1), &attrs, Precondition::Absent, Expiry::Forever);
    let seen = async {
        sleep(Duration::from_millis(1500)).await;
        store.get("10.5.1.0-24")
    };
    let (written, seen) = tokio::join!(write, seen);
    assert!(written.is_ok() && seen.is_some());
    assert_eq!(began.elapsed(), Duration::from_secs(2));
}
