//! Users, passwords and tokens of a real etcd.

use crate::etcd::Etcd;
use crate::lab::{Lab, PREFIX, attrs, brief, done, next, subnet};
use crate::pki::Role;
use crate::proxy::Proxy;
use crate::tls::{Files, store};
use flanneld::store::etcd::{Access, EtcdStore, Password, Secret, User};
use flanneld::store::{Expiry, Leases, Precondition, Registry, StoreError};
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::LocalSet;
use tokio::time::sleep;

const HOUR: Expiry = Expiry::Grant(Duration::from_secs(3600));

/// Makes the users root, flannel, whom the tests' prefix belongs to, and guest, who may do nothing. Turns
/// authentication on.
pub fn enable(etcd: &mut Etcd) {
    let grant = format!("role grant-permission flannel readwrite --prefix=true {PREFIX}/");
    for words in [
        "user add root:rootpw",
        "user grant-role root root",
        "user add flannel:flpw",
        "user add guest:guestpw",
        "role add flannel",
        &grant,
        "user grant-role flannel flannel",
        "auth enable",
    ] {
        etcd.ctl(&words.split(' ').collect::<Vec<_>>());
    }
    etcd.as_user("root:rootpw");
}

fn etcd_with_users(options: &[&str]) -> Etcd {
    let mut etcd = Etcd::start_with(&[&["--bcrypt-cost=4"], options].concat());
    enable(&mut etcd);
    etcd
}

fn user(name: &str, password: Password) -> Access {
    Access { user: Some(User { name: name.into(), password }), ..Access::default() }
}

fn given(name: &str, password: &str) -> Access {
    user(name, Password::Given(Secret::new(password)))
}

/// Uses everything that asks for permission.
async fn can_do_all(store: &EtcdStore, third: u8) {
    let made = done(store.write(subnet(third), &attrs(third), Precondition::Absent, HOUR).await.unwrap());
    assert_eq!(store.keep_alive(made.lease_id.expect("a lease")).await.unwrap(), Some(Duration::from_secs(3600)));
    assert!(!store.list().await.unwrap().records.is_empty());
    let mut watch = store.watch(made.modified).await.unwrap();
    assert!(store.remove(subnet(third), made.modified).await.unwrap());
    assert_eq!(brief(&next(&mut watch, 1).await), [format!("-10.5.{third}.0-24")]);
}

/// Options for each kind of token, which etcd forgets after a second or two; and where a key for them is.
fn tokens(directory: &TempDir) -> [Vec<String>; 2] {
    let key = directory.path().join("key");
    fs::write(&key, "any bytes will do as long as they are many enough").unwrap();
    let jwt = format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=2s", key.display());
    [vec!["--auth-token-ttl=1".to_owned()], vec![jwt]]
}

#[tokio::test]
async fn tokens_that_expire_are_renewed_before_anybody_hears_of_it() {
    let directory = TempDir::new().unwrap();
    for options in tokens(&directory) {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let etcd = etcd_with_users(&options);
        let store = store(&etcd.url(), &given("flannel", "flpw"));
        can_do_all(&store, 1).await;
        let mut watch = store.watch(store.list().await.unwrap().revision).await.unwrap();
        sleep(Duration::from_secs(4)).await;
        can_do_all(&store, 2).await;
        sleep(Duration::from_secs(4)).await;
        // The first to notice is a watch this time.
        drop(store.watch(1).await.unwrap());
        etcd.put("10.5.3.0-24", "x");
        let seen = brief(&next(&mut watch, 3).await);
        assert_eq!(seen, ["+10.5.2.0-24", "-10.5.2.0-24", "+10.5.3.0-24"], "a watch outlives its token");
    }
}

#[tokio::test]
async fn an_etcd_that_restarts_and_forgets_its_tokens_gives_new_ones() {
    let mut etcd = etcd_with_users(&[]);
    let store = store(&etcd.url(), &given("flannel", "flpw"));
    can_do_all(&store, 1).await;
    for third in 2..4 {
        etcd.kill();
        etcd.restart();
        can_do_all(&store, third).await;
    }
    etcd.kill();
    etcd.restart();
    store.watch(1).await.unwrap();
}

#[tokio::test]
async fn a_password_that_changes_in_etcd_and_in_its_file_is_followed() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, "flpw\n").unwrap();
    let etcd = etcd_with_users(&[]);
    let store = store(&etcd.url(), &user("flannel", Password::File(file.clone())));
    can_do_all(&store, 1).await;
    let change = |password: &str| drop(etcd.ctl_with(&["user", "passwd", "flannel", "--interactive=false"], password));
    // The file first.
    fs::write(&file, "second\r\n").unwrap();
    can_do_all(&store, 2).await;
    change("second");
    can_do_all(&store, 3).await;
    // etcd first: refused until the file follows. A file that is not there changes nothing.
    change("third");
    let error = StoreError::Refused(format!(
        "etcd refuses: authentication failed, invalid user ID or password for {PREFIX}; set --etcd-username and \
         --etcd-password-file right"
    ));
    assert_eq!(store.config().await, Err(error.clone()));
    fs::remove_file(&file).unwrap();
    assert_eq!(store.config().await, Err(error));
    fs::write(&file, "third").unwrap();
    can_do_all(&store, 4).await;
    fs::remove_file(&file).unwrap();
    store.redial();
    can_do_all(&store, 5).await;
}

#[tokio::test]
async fn authentication_may_be_turned_on_and_off_at_any_time() {
    let mut etcd = Etcd::start_with(&["--bcrypt-cost=4"]);
    let store = store(&etcd.url(), &given("flannel", "flpw"));
    can_do_all(&store, 1).await;
    enable(&mut etcd);
    can_do_all(&store, 2).await;
    etcd.ctl(&["auth", "disable"]);
    can_do_all(&store, 3).await;
    store.redial();
    can_do_all(&store, 4).await;
}

#[tokio::test]
async fn who_may_not_is_told_why() {
    let etcd = etcd_with_users(&[]);
    let denied = format!(
        "permission denied for {PREFIX}; give a role of the user (--etcd-username, else the common name of the client \
         certificate) readwrite on prefix {PREFIX}/: etcdctl role grant-permission ROLE readwrite --prefix=true {PREFIX}/"
    );
    let wrong = format!(
        "authentication failed, invalid user ID or password for {PREFIX}; set --etcd-username and --etcd-password-file right"
    );
    let nobody = format!(
        "user name is empty for {PREFIX}; it has authentication enabled: give --etcd-username and --etcd-password-file"
    );
    let table = [
        (Access::default(), &nobody),
        (given("flannel", "wrong"), &wrong),
        (given("stranger", "flpw"), &wrong),
        (given("guest", "guestpw"), &denied),
    ];
    for (access, expected) in table {
        let store = store(&etcd.url(), &access);
        let expected = StoreError::Refused(format!("etcd refuses: {expected}"));
        assert_eq!(store.config().await, Err(expected.clone()), "{access:?}");
        assert_eq!(store.list().await, Err(expected.clone()), "{access:?}");
        let written = store.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Forever).await;
        assert_eq!(written, Err(expected.clone()), "{access:?}");
        assert_eq!(store.watch(1).await.err(), Some(expected), "{access:?}");
    }
}

#[tokio::test]
async fn a_client_certificate_names_its_user_and_a_password_goes_before_it() {
    let files = Files::new();
    let mut etcd = files.etcd("server", true);
    enable(&mut etcd);
    for (common_name, may) in [("flannel", true), ("guest", false), ("stranger", false), ("", false)] {
        files.ca.issue(Role::Client(common_name)).write(files.dir(), "client");
        let access = files.as_client("client");
        let config = store(&etcd.url(), &access).config().await;
        match may {
            true => assert_eq!(config, Ok(None)),
            false => assert!(
                matches!(&config, Err(StoreError::Refused(text)) if text.contains("permission denied")),
                "{config:?}"
            ),
        }
        let both = Access { user: given("flannel", "flpw").user, ..access };
        can_do_all(&store(&etcd.url(), &both), 1).await;
    }
}

#[tokio::test]
async fn a_renewed_certificate_of_another_name_is_another_user() {
    let files = Files::new();
    let mut etcd = files.etcd("server", true);
    enable(&mut etcd);
    files.ca.issue(Role::Client("guest")).write(files.dir(), "client");
    let store = store(&etcd.url(), &files.as_client("client"));
    assert!(store.config().await.is_err());
    files.ca.issue(Role::Client("flannel")).write(files.dir(), "client");
    can_do_all(&store, 1).await;
}

#[tokio::test]
async fn a_password_may_take_longer_to_check_than_a_call_and_is_checked_once_for_all() {
    let work = async {
        let etcd = etcd_with_users(&[]);
        // Pings give up after 8 s: on a machine that is busy it may take a few tries to wait for less.
        for _ in 0..5 {
            let proxy = Proxy::before(&etcd.url()).await;
            let store = store(&proxy.url(), &given("flannel", "flpw"));
            proxy.hold_answers(true);
            let slow = async {
                sleep(Duration::from_millis(4500)).await;
                proxy.hold_answers(false);
            };
            let (config, list, ()) = tokio::join!(store.config(), store.list(), slow);
            if config.is_ok() && list.is_ok() {
                return assert_eq!(proxy.connections(), 1);
            }
        }
        panic!("it is never waited for");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_member_that_is_silent_is_not_taken_for_one_that_checks_a_password() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its address");
    let etcd = etcd_with_users(&[]);
    for scheme in ["http", "https"] {
        let urls = vec![format!("{scheme}://{address}"), etcd.url()];
        let store = EtcdStore::with_access(urls, PREFIX, given("flannel", "flpw")).unwrap();
        let began = Instant::now();
        assert_eq!(store.config().await, Ok(None), "{scheme}");
        assert!(began.elapsed() < Duration::from_secs(20), "{scheme}: {:?}", began.elapsed());
    }
}
