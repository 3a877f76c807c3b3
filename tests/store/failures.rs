//! The store in etcd when members, networks or the whole cluster fail.

use crate::etcd::{Etcd, free_port};
use crate::lab::{Lab, PREFIX, attrs, brief, done, lost, next, store, subnet};
use crate::proxy::Proxy;
use flanneld::store::{Expiry, Leases, Precondition, Registry, StoreError, Watch};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;
use tokio::time::timeout;

const HOUR: Expiry = Expiry::Grant(Duration::from_secs(3600));

/// Nobody listens here.
fn refused() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

/// Somebody listens here and never says a word.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    (listener, url)
}

#[tokio::test]
async fn a_member_that_refuses_costs_nothing() {
    let etcd = Etcd::start();
    let store = store(&[&refused(), &refused(), &etcd.url()]);
    let began = Instant::now();
    for third in 1..=50 {
        done(store.write(subnet(third), &attrs(third), Precondition::Absent, Expiry::Forever).await.unwrap());
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_member_that_is_silent_costs_one_deadline() {
    let etcd = Etcd::start();
    let (_listener, url) = silent();
    let store = store(&[&url, &etcd.url()]);
    let began = Instant::now();
    store.config().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    let began = Instant::now();
    for _ in 0..50 {
        store.config().await.unwrap();
    }
    store.watch(0).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn when_all_are_dead_each_is_named_with_its_trouble() {
    let (_listener, silent) = silent();
    let (first, last) = (refused(), refused());
    let store = store(&[&first, &silent, &last]);
    let (began, attrs) = (Instant::now(), attrs(1));
    let (listed, written) = tokio::join!(store.list(), store.write(subnet(1), &attrs, Precondition::Absent, HOUR));
    let waited = began.elapsed();
    let text = format!("{first}: connection refused; {silent}: no answer within 4 s; {last}: connection refused");
    assert_eq!(listed, Err(StoreError::Unavailable(text)));
    assert!(matches!(written, Err(StoreError::Unavailable(_))), "{written:?}");
    assert!(waited < Duration::from_secs(6), "{waited:?}");
}

#[tokio::test]
async fn calls_recover_when_etcd_comes_back_and_watches_end() {
    let mut etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let made = done(store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await.unwrap());
    let mut watch = store.watch(made.modified).await.unwrap();
    etcd.kill();
    let error = timeout(Duration::from_secs(5), watch.next()).await.expect("it is noticed").unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(text) if text.starts_with(&etcd.url())), "{error}");
    for _ in 0..5 {
        let error = store.list().await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    }
    etcd.restart();
    assert_eq!(store.list().await.expect("the first call works").records.len(), 1);
    let id = made.lease_id.expect("it was granted");
    assert_eq!(store.keep_alive(id).await.unwrap(), Some(Duration::from_secs(3600)));
    let mut watch = store.watch(made.modified).await.unwrap();
    etcd.put("10.5.2.0-24", "x");
    assert_eq!(brief(&next(&mut watch, 1).await), ["+10.5.2.0-24"]);
}

#[tokio::test]
async fn an_etcd_that_lost_its_data_is_not_watched_from_the_future() {
    let mut etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    for _ in 0..5 {
        etcd.put("10.5.1.0-24", "x");
    }
    let seen = store.list().await.unwrap().revision;
    etcd.wipe();
    assert_eq!(store.watch(seen).await.err(), Some(StoreError::Compacted(seen)));
    let empty = store.list().await.unwrap();
    assert!(empty.revision < seen && empty.records.is_empty());
    store.watch(empty.revision).await.unwrap();
}

/// Runs with a proxy in front of etcd as the first member and etcd itself as the second.
async fn behind_a_proxy(test: impl AsyncFnOnce(&Etcd, &Proxy)) {
    let work = async {
        let etcd = Etcd::start();
        let proxy = Proxy::before(&etcd.url()).await;
        test(&etcd, &proxy).await;
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn what_was_done_although_its_answer_was_lost_is_found_done_at_the_next_member() {
    behind_a_proxy(async |etcd, proxy| {
        let two = async || {
            let store = store(&[&proxy.url(), &etcd.url()]);
            store.config().await.unwrap();
            store
        };
        let (writer, granter, remover) = tokio::join!(two(), two(), two());
        let made = done(remover.write(subnet(3), &attrs(3), Precondition::Absent, Expiry::Forever).await.unwrap());
        proxy.hold_answers(true);
        let attrs = attrs(1);
        let (written, granted, removed) = tokio::join!(
            writer.write(subnet(1), &attrs, Precondition::Absent, Expiry::Forever),
            granter.write(subnet(2), &attrs, Precondition::Absent, HOUR),
            remover.remove(subnet(3), made.modified),
        );
        assert_eq!(done(written.unwrap()).lease_id, None);
        assert!(done(granted.unwrap()).lease_id.is_some());
        assert!(removed.unwrap());
        assert_eq!(etcd.leases(), 1, "the grant was asked for twice");
        assert_eq!(writer.list().await.unwrap().records.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_call_without_answer_leaves_running_watches_alone() {
    behind_a_proxy(async |etcd, proxy| {
        let store = store(&[&proxy.url()]);
        let mut watch = store.watch(store.list().await.unwrap().revision).await.unwrap();
        proxy.hold_answers(true);
        let error = store.config().await.unwrap_err();
        assert_eq!(error.to_string(), format!("{}: no answer within 4 s", proxy.url()));
        proxy.hold_answers(false);
        store.config().await.unwrap();
        etcd.put("10.5.1.0-24", "x");
        assert_eq!(brief(&next(&mut watch, 1).await), ["+10.5.1.0-24"]);
    })
    .await;
}

#[tokio::test]
async fn a_watch_notices_that_its_member_fell_silent() {
    behind_a_proxy(async |etcd, proxy| {
        let store = store(&[&proxy.url(), &etcd.url()]);
        let mut watch = store.watch(store.list().await.unwrap().revision).await.unwrap();
        proxy.hold_answers(true);
        let began = Instant::now();
        let error = timeout(Duration::from_secs(15), watch.next()).await.expect("pings tell").unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable(text) if text.starts_with(&proxy.url())), "{error}");
        let noticed = began.elapsed();
        store.list().await.unwrap();
        assert!(began.elapsed() < noticed + Duration::from_secs(1), "the next call goes elsewhere");
    })
    .await;
}

#[tokio::test]
async fn a_lost_race_leaks_no_lease() {
    let etcd = Etcd::start();
    etcd.put("10.5.1.0-24", "taken");
    let store = store(&[&etcd.url()]);
    for _ in 0..3 {
        assert!(lost(store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await.unwrap()).is_some());
    }
    assert_eq!(etcd.leases(), 0);
}

#[tokio::test]
async fn of_three_members_one_may_die_and_without_two_there_is_no_quorum() {
    let mut members = Etcd::cluster(3);
    let urls: Vec<String> = members.iter().map(Etcd::url).collect();
    let store = store(&urls.iter().map(String::as_str).collect::<Vec<_>>());
    for dead in 0..3u8 {
        let attrs = attrs(dead);
        let write = async || store.write(subnet(dead), &attrs, Precondition::Absent, Expiry::Forever).await;
        retried(async || store.list().await).await;
        members[usize::from(dead)].kill();
        let began = Instant::now();
        done(retried(write).await);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        members[usize::from(dead)].restart();
    }
    let snapshot = retried(async || store.list().await).await;
    assert_eq!(snapshot.records.len(), 3);
    let survivor = crate::lab::store(&[&urls[0]]);
    let mut watch = retried(async || survivor.watch(snapshot.revision).await).await;
    members[1].kill();
    members[2].kill();
    let (listed, watched) = tokio::join!(store.list(), timeout(Duration::from_secs(10), watch.next()));
    let Err(StoreError::Unavailable(text)) = listed else { panic!("{listed:?}") };
    assert!(urls.iter().all(|url| text.contains(url)), "{text}");
    assert_eq!(watched, Ok(Err(StoreError::Unavailable(format!("{}: no leader", urls[0])))));
    members[1].restart();
    retried(async || store.list().await).await;
}

/// An election takes its time: what cannot be done now can be done soon.
async fn retried<T>(call: impl AsyncFn() -> Result<T, StoreError>) -> T {
    for _ in 0..50 {
        match call().await {
            Ok(value) => return value,
            Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it does not come back");
}

#[tokio::test]
async fn an_etcd_that_wants_users_refuses_readably() {
    let etcd = Etcd::start_with(&["--bcrypt-cost", "4"]);
    let store = store(&[&etcd.url()]);
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    let advice = "it has authentication enabled: give --etcd-username and --etcd-password-file";
    let text = format!("etcd refuses: user name is empty for {PREFIX}; {advice}");
    assert_eq!(store.config().await, Err(StoreError::Refused(text.clone())));
    let write = store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await;
    assert_eq!(write, Err(StoreError::Refused(text.clone())));
    let began = match store.watch(0).await {
        Ok(mut watch) => watch.next().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(matches!(&began, Err(StoreError::Refused(text)) if text.starts_with("etcd refuses: ")), "{began:?}");
}
