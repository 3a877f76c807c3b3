//! etcd at its edges: values, names, counts and answers of any size, slow links, two clusters in one list of endpoints.
//! Nothing of it ends the following of peers, and nothing ends in a state that only a restart leaves. The table of all
//! cases is in docs/etcd.md.

use crate::breaker::{Breaker, WatchResponse};
use crate::etcd::Etcd;
use crate::follower::{Follower, audits, no_audits};
use crate::lab::{Lab, PREFIX, attrs, done, lease, store, subnet};
use crate::proxy::Proxy;
use etcd_client::{Client, Txn, TxnOp};
use flanneld::agent::peers::Cadence;
use flanneld::store::etcd::{Access, EtcdStore, IdentityFiles, Password, Secret, User};
use flanneld::store::{Expiry, Leases, Precondition, Registry, StoreError};
use std::time::{Duration, Instant};
use tokio::task::LocalSet;
use tokio::time::sleep;

const HOUR: Expiry = Expiry::Grant(Duration::from_secs(3600));
const MEGABYTE: usize = 1 << 20;

fn key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
}

async fn client(etcd: &Etcd) -> Client {
    Client::connect([etcd.url()], None).await.expect("etcd answers")
}

async fn put(client: &mut Client, name: &str, size: usize) {
    client.put(key(name), vec![b'x'; size], None).await.expect("etcd takes it");
}

/// Puts so many leases, 250 bytes each or so.
async fn put_leases(client: &mut Client, count: u32) {
    let leases: Vec<TxnOp> = (0..count)
        .map(|n| {
            let name = format!("10.{}.{}.0-24", 5 + (n >> 8), n & 255);
            TxnOp::put(key(&name), attrs((n % 200) as u8 + 1).to_json(), None)
        })
        .collect();
    for part in leases.chunks(100) {
        client.txn(Txn::new().and_then(part)).await.expect("etcd takes it");
    }
}

/// A follower is cut off while 70 MB are put, and a new peer comes.
async fn after_a_gap_of_70_megabytes(breaker: &Breaker, etcd: &Etcd, cadence: Cadence) -> Follower {
    let mut client = client(etcd).await;
    let direct = store(&[&etcd.url()]);
    done(direct.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Forever).await.unwrap());
    let follower = Follower::start(store(&[&breaker.url()]), cadence, &[subnet(1).to_string()]);
    follower.agrees_with(&direct).await;
    follower.until("it watches", |_| breaker.watches() > 0).await;
    breaker.cut(true);
    for _ in 0..70 {
        put(&mut client, "junk", MEGABYTE).await;
    }
    client.delete(key("junk"), None).await.expect("etcd takes it");
    done(direct.write(subnet(2), &attrs(2), Precondition::Absent, Expiry::Forever).await.unwrap());
    breaker.cut(false);
    follower.agrees_with(&direct).await;
    done(direct.write(subnet(3), &attrs(3), Precondition::Absent, Expiry::Forever).await.unwrap());
    follower.agrees_with(&direct).await;
    follower.assert_nobody_was_cut_off();
    follower
}

#[tokio::test]
async fn a_gap_of_more_than_fits_into_one_answer_is_made_up_for_in_parts() {
    let work = async {
        let etcd = Etcd::start();
        let breaker = Breaker::before(&etcd.url()).await;
        let follower = after_a_gap_of_70_megabytes(&breaker, &etcd, no_audits()).await;
        assert_eq!((follower.whole_lists(), follower.missed()), (1, 0));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_watch_that_fails_again_and_again_is_answered_by_a_list() {
    let work = async {
        let etcd = Etcd::start();
        let breaker = Breaker::before(&etcd.url()).await;
        breaker.never_in_parts();
        let cadence = Cadence { quick_break: Duration::from_secs(10), ..no_audits() };
        let follower = after_a_gap_of_70_megabytes(&breaker, &etcd, cadence).await;
        assert!(follower.whole_lists() > 1);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn an_audit_counts_although_the_watch_broke_meanwhile() {
    let work = async {
        let etcd = Etcd::start();
        let breaker = Breaker::before(&etcd.url()).await;
        breaker.never_in_parts();
        let cadence = Cadence { quick_break: Duration::ZERO, ..audits() };
        let follower = after_a_gap_of_70_megabytes(&breaker, &etcd, cadence).await;
        assert_eq!(follower.whole_lists(), 1);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_watch_that_breaks_without_end_is_not_the_only_source_of_peers() {
    let work = async {
        let etcd = Etcd::start();
        let (breaker, direct) = (Breaker::before(&etcd.url()).await, store(&[&etcd.url()]));
        breaker.rule(|response| match response.created {
            true => vec![response],
            false => vec![WatchResponse { canceled: true, cancel_reason: "not today".into(), ..response }],
        });
        let cadence = Cadence { quick_break: Duration::from_secs(10), ..no_audits() };
        let follower = Follower::start(store(&[&breaker.url()]), cadence, &[]);
        for third in 1..=3 {
            done(direct.write(subnet(third), &attrs(third), Precondition::Absent, Expiry::Forever).await.unwrap());
            follower.agrees_with(&direct).await;
        }
        breaker.mend();
        follower.until("it is over", |follower| follower.troubles() == ["starting"]).await;
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn compaction_again_and_again_is_no_hot_loop() {
    let work = async {
        let etcd = Etcd::start();
        let (breaker, direct) = (Breaker::before(&etcd.url()).await, store(&[&etcd.url()]));
        done(direct.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Forever).await.unwrap());
        breaker.rule(|response| {
            let sign = WatchResponse { created: false, ..response.clone() };
            let end = WatchResponse { canceled: true, compact_revision: 1, ..sign.clone() };
            if response.created { vec![response, sign, end] } else { vec![response] }
        });
        let follower = Follower::start(store(&[&breaker.url()]), no_audits(), &[]);
        follower.until("it has listed twice", |follower| follower.whole_lists() >= 2).await;
        let lists = follower.whole_lists();
        sleep(Duration::from_secs(3)).await;
        assert!(follower.whole_lists() <= lists + 3, "{} lists in 3 s", follower.whole_lists() - lists);
        breaker.mend();
        done(direct.write(subnet(2), &attrs(2), Precondition::Absent, Expiry::Forever).await.unwrap());
        follower.agrees_with(&direct).await;
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_list_over_a_slow_link_takes_its_time() {
    let work = async {
        let etcd = Etcd::start();
        let proxy = Proxy::before(&etcd.url()).await;
        put_leases(&mut client(&etcd).await, 5000).await;
        let store = store(&[&proxy.url()]);
        // 1.6 Mbit/s.
        proxy.throttle(200_000);
        let began = Instant::now();
        assert_eq!(store.list().await.unwrap().records.len(), 5000);
        assert!(began.elapsed() > Duration::from_secs(4), "the link is not slow");
        assert!(proxy.passed() < 2_000_000, "{} bytes", proxy.passed());
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn over_a_link_that_is_slower_still_a_list_asks_for_less_at_once_and_remembers_what_worked() {
    let work = async {
        let etcd = Etcd::start();
        let proxy = Proxy::before(&etcd.url()).await;
        put_leases(&mut client(&etcd).await, 70).await;
        let store = store(&[&proxy.url()]);
        proxy.throttle(2_000);
        let Err(StoreError::Unavailable(text)) = store.list().await else { panic!("the first page was short") };
        assert!(text.contains("no answer within 4 s"), "{text}");
        assert_eq!(store.list().await.unwrap().records.len(), 70);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn values_of_a_megabyte_cost_little() {
    let work = async {
        let etcd = Etcd::start();
        let proxy = Proxy::before(&etcd.url()).await;
        let mut client = client(&etcd).await;
        for n in 0..100 {
            put(&mut client, &format!("junk-{n}"), MEGABYTE).await;
        }
        for third in 200..203 {
            put(&mut client, &format!("10.5.{third}.0-24"), MEGABYTE).await;
        }
        put_leases(&mut client, 50).await;
        let (store, direct) = (store(&[&proxy.url()]), store(&[&etcd.url()]));
        let first = store.list().await.unwrap();
        assert_eq!(first.records.len(), 153);
        let cost = proxy.passed();
        assert!(cost < 20 * MEGABYTE as u64, "{cost} bytes for 103 long values");
        assert_eq!(store.list().await.unwrap(), first);
        let again = proxy.passed() - cost;
        assert!(again < MEGABYTE as u64, "{again} bytes for long values that are known");
        // Whoever puts something better in the place of a long value is seen.
        client.put(key("10.5.200.0-24"), attrs(7).to_json(), None).await.unwrap();
        assert_eq!(store.list().await.unwrap(), direct.list().await.unwrap());
        let records = store.list().await.unwrap().records;
        let mended = records.iter().find(|record| *record.name == *"10.5.200.0-24").expect("it is there");
        assert_eq!(lease(mended).attrs, attrs(7));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_member_of_another_cluster_is_named_and_not_used() {
    let (mut ours, other) = (Etcd::start(), Etcd::start());
    let store = store(&[&ours.url(), &other.url()]);
    done(store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await.unwrap());
    ours.kill();
    let write = store.write(subnet(2), &attrs(2), Precondition::Absent, HOUR).await;
    let Err(StoreError::Unavailable(text)) = write else { panic!("{write:?}") };
    let blamed = format!("{}: it belongs to another etcd cluster (ID ", other.url());
    assert!(text.contains(&blamed) && text.contains("--etcd-endpoints must name members of one cluster"), "{text}");
    assert_eq!(other.leases(), 0);
    assert_eq!(crate::lab::store(&[&other.url()]).list().await.unwrap().records, []);
    ours.restart();
    assert_eq!(store.list().await.unwrap().records.len(), 1, "nothing has to be started again");
}

#[tokio::test]
async fn a_write_that_is_refused_again_and_again_leaves_one_lease() {
    let mut etcd = Etcd::start_with(&["--bcrypt-cost", "4"]);
    for words in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "guest:secret"],
        &["role", "add", "guest"],
        &["user", "grant-role", "guest", "guest"],
        &["auth", "enable"],
    ] {
        etcd.ctl(words);
    }
    etcd.as_user("root:secret");
    let user = User { name: "guest".into(), password: Password::Given(Secret::new("secret")) };
    let access = Access { user: Some(user), ..Access::default() };
    let store = EtcdStore::with_access(vec![etcd.url()], PREFIX, access).unwrap();
    for _ in 0..3 {
        let write = store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await;
        assert!(matches!(write, Err(StoreError::Refused(_))), "{write:?}");
    }
    assert_eq!(etcd.leases(), 1);
    etcd.ctl(&["role", "grant-permission", "guest", "readwrite", "--prefix=true", &format!("{PREFIX}/")]);
    let made = done(store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await.unwrap());
    assert_eq!(etcd.leases(), 1);
    done(store.write(subnet(2), &attrs(2), Precondition::Absent, HOUR).await.unwrap());
    assert_eq!(etcd.leases(), 2, "a lease that is in use is nobody else's");
    assert!(made.lease_id.is_some());
}

#[tokio::test]
async fn configs_under_other_prefixes_are_found() {
    let etcd = Etcd::start();
    for other in ["/kube-centos/network/config", "/coreos.com/net/config", "coreos.com/network/config"] {
        etcd.ctl(&["put", other, "{}"]);
    }
    for n in 0..50 {
        etcd.ctl(&["put", &format!("/coreos.com/net/subnets/10.5.{n}.0-24"), "{}"]);
    }
    assert_eq!(
        store(&[&etcd.url()]).other_configs().await,
        ["/coreos.com/net/config", "/kube-centos/network/config", "coreos.com/network/config"]
    );
}

#[test]
fn files_for_tls_that_have_no_effect_may_be_missing() {
    let missing = || Some("/missing/file".into());
    let identity = IdentityFiles { cert_file: missing().unwrap(), key_file: missing().unwrap() };
    let access = Access { ca_file: missing(), identity: Some(identity), user: None };
    let open = |url: &str| EtcdStore::with_access(vec![url.to_owned()], PREFIX, access.clone());
    assert!(open("http://127.0.0.1:2379").is_ok());
    let Err(StoreError::Refused(text)) = open("https://127.0.0.1:2379") else { panic!("there is no such file") };
    assert!(text.starts_with("--etcd-cafile=/missing/file: "), "{text}");
}

#[tokio::test]
async fn one_value_that_is_too_long_for_any_answer_hides_no_other() {
    let etcd = Etcd::start_with(&["--max-request-bytes", "20000000"]);
    let mut client = client(&etcd).await;
    put_leases(&mut client, 3).await;
    for name in ["0-junk", "10.4.0.0-24"] {
        put(&mut client, name, 9 * MEGABYTE).await;
    }
    let records = store(&[&etcd.url()]).list().await.unwrap().records;
    let names: Vec<&str> = records.iter().map(|record| &*record.name).collect();
    assert_eq!(names, ["0-junk", "10.4.0.0-24", "10.5.0.0-24", "10.5.1.0-24", "10.5.2.0-24"]);
    assert_eq!(records.iter().filter(|record| record.content.is_ok()).count(), 3);
}
