//! TLS between the store and a real etcd: what works, what is said when it does not, and renewals on disk.

use crate::etcd::{Etcd, free_port};
use crate::lab::{Lab, PREFIX, attrs, brief, done, next, subnet};
use crate::pki::{Authority, Pair, Role};
use flanneld::store::etcd::{Access, EtcdStore, IdentityFiles, Password, Secret, User};
use flanneld::store::{Expiry, Leases, Precondition, Registry, StoreError};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const HERE: Role = Role::Server(&["localhost", "127.0.0.1"]);
const FLANNEL: Role = Role::Client("flannel");

/// A directory with certificates, most of them of one authority.
pub struct Files {
    pub ca: Authority,
    dir: TempDir,
}

impl Files {
    pub fn new() -> Self {
        let files = Files { ca: Authority::new(), dir: TempDir::with_prefix("flanneld-tls-").expect("a directory") };
        fs::write(files.path("ca.crt"), &files.ca.pem).expect("the CA's certificate");
        files.ca.issue(HERE).write(files.dir.path(), "server");
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Trusting the CA, and nothing else.
    pub fn trusting(&self) -> Access {
        Access { ca_file: Some(self.path("ca.crt")), ..Access::default() }
    }

    /// Trusting the CA, and with the certificate of this name.
    pub fn as_client(&self, name: &str) -> Access {
        let (cert_file, key_file) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        Access { identity: Some(IdentityFiles { cert_file, key_file }), ..self.trusting() }
    }

    /// An etcd with the certificate of this name; it wants clients to have one, too, if `wanting`.
    pub fn etcd(&self, name: &str, wanting: bool) -> Etcd {
        let path = |file: String| self.path(&file).display().to_string();
        let (cert, key, ca) = (path(format!("{name}.crt")), path(format!("{name}.key")), path("ca.crt".into()));
        self.ca.issue(Role::Client("root")).write(self.dir.path(), "root");
        let mut options =
            vec![format!("--cert-file={cert}"), format!("--key-file={key}"), "--bcrypt-cost=4".to_owned()];
        if wanting {
            options.extend(["--client-cert-auth".to_owned(), format!("--trusted-ca-file={ca}")]);
        }
        let ctl = [
            format!("--cacert={ca}"),
            format!("--cert={}", path("root.crt".into())),
            format!("--key={}", path("root.key".into())),
        ];
        Etcd::start_secure(&words(&options), &words(&ctl))
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn words(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

pub fn store(url: &str, access: &Access) -> EtcdStore {
    EtcdStore::with_access(vec![url.to_owned()], PREFIX, access.clone()).expect("files that can be used")
}

/// What the store says instead of the config.
async fn trouble(url: &str, access: &Access) -> String {
    match store(url, access).config().await {
        Err(StoreError::Unavailable(text) | StoreError::Refused(text)) => text,
        other => panic!("{url} {access:?}: {other:?}"),
    }
}

#[tokio::test]
async fn a_ca_alone_is_enough() {
    let files = Files::new();
    let etcd = files.etcd("server", false);
    let named = etcd.url().replace("127.0.0.1", "localhost");
    for url in [etcd.url(), named] {
        let store = store(&url, &files.trusting());
        let made = done(store.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Forever).await.unwrap());
        let mut watch = store.watch(made.modified).await.unwrap();
        assert!(store.remove(subnet(1), made.modified).await.unwrap());
        assert_eq!(brief(&next(&mut watch, 1).await), ["-10.5.1.0-24"]);
    }
}

#[tokio::test]
async fn a_self_signed_certificate_may_be_its_own_ca() {
    let files = Files::new();
    self_signed(rcgen::IsCa::NoCa).write(files.dir(), "self-signed");
    let etcd = files.etcd("self-signed", false);
    let access = Access { ca_file: Some(files.path("self-signed.crt")), ..Access::default() };
    assert_eq!(store(&etcd.url(), &access).config().await, Ok(None));
}

#[tokio::test]
async fn client_certificates_may_have_keys_of_any_kind() {
    let files = Files::new();
    let etcd = files.etcd("server", true);
    let ecdsa = files.ca.issue(FLANNEL);
    let rsa = files.ca.issue_with(FLANNEL, &rsa_key(), |_| {});
    for (name, pair) in [("ecdsa", &ecdsa), ("sec1", &sec1(&ecdsa)), ("rsa", &rsa), ("pkcs1", &pkcs1(&rsa))] {
        pair.write(files.dir(), name);
        let store = store(&etcd.url(), &files.as_client(name));
        assert_eq!(store.config().await, Ok(None), "{name}");
    }
    let headers = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    let kinds = [&ecdsa, &sec1(&ecdsa), &pkcs1(&rsa)].map(|pair| headers(&pair.key));
    assert_eq!(kinds, ["PRIVATE", "EC PRIVATE", "RSA PRIVATE"].map(|kind| format!("-----BEGIN {kind} KEY-----")));
}

#[tokio::test]
async fn a_server_that_is_not_to_be_trusted_is_named_with_what_helps() {
    let files = Files::new();
    let other = Authority::new();
    fs::write(files.path("other.crt"), &other.pem).unwrap();
    let elsewhere = Role::Server(&["etcd.example", "10.0.0.1"]);
    files.ca.issue(elsewhere).write(files.dir(), "elsewhere");
    files.ca.issue(Role::Server(&[])).write(files.dir(), "nameless");
    expired(&files.ca, HERE).write(files.dir(), "expired");
    for name in ["version1.crt", "version1.key"] {
        fs::write(files.path(name), include_str!("keys/version1.pem")).unwrap();
    }
    let wrong_ca_text = format!(
        "its certificate is signed by no CA in {}: --etcd-cafile must name the CA of etcd's certificate",
        files.path("other.crt").display()
    );
    let trusting = |name| Access { ca_file: Some(files.path(name)), ..Access::default() };
    let version1 = trusting("version1.crt");
    self_signed(rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)).write(files.dir(), "self-signed");
    let table = [
        ("server", trusting("other.crt"), wrong_ca_text.as_str()),
        (
            "elsewhere",
            files.trusting(),
            "its certificate is for etcd.example, 10.0.0.1, not for 127.0.0.1: dial it by a name in the certificate, or \
             make one that has 127.0.0.1 as subject alternative name",
        ),
        (
            "nameless",
            files.trusting(),
            "its certificate has no subject alternative name (the common name does not count): make one that has 127.0.0.1",
        ),
        (
            "version1",
            version1,
            "its certificate is of X.509 version 1, which has no subject alternative names: make one of version 3 that has \
             127.0.0.1 as subject alternative name",
        ),
        (
            "self-signed",
            trusting("self-signed.crt"),
            "its certificate is one of a CA (basicConstraints CA:TRUE): make one for the server, without that",
        ),
        (
            "expired",
            files.trusting(),
            "its certificate has expired (or this host's clock is wrong): etcd needs a new one",
        ),
    ];
    for (certificate, access, expected) in table {
        let etcd = files.etcd(certificate, false);
        assert_eq!(trouble(&etcd.url(), &access).await, format!("{}: {expected}", etcd.url()), "{certificate}");
    }
}

#[tokio::test]
async fn a_member_that_is_not_to_be_trusted_is_left_for_another() {
    let files = Files::new();
    expired(&files.ca, HERE).write(files.dir(), "expired");
    let (bad, good) = (files.etcd("expired", false), files.etcd("server", false));
    let plain = good.url().replace("https", "http");
    let store = EtcdStore::with_access(vec![bad.url(), plain, good.url()], PREFIX, files.trusting()).unwrap();
    assert_eq!(store.config().await, Ok(None));
}

#[tokio::test]
async fn a_wrong_scheme_is_named_with_the_right_one() {
    let files = Files::new();
    for wanting in [false, true] {
        let etcd = files.etcd("server", wanting);
        let plain = etcd.url().replace("https", "http");
        let expected = format!(
            "{plain}: it ended the connection before it answered, as etcd does when it wants TLS: then give it as https://"
        );
        assert_eq!(trouble(&plain, &files.trusting()).await, expected);
    }
    let etcd = Etcd::start();
    let encrypted = etcd.url().replace("http", "https");
    let expected = format!("{encrypted}: it does not answer to TLS: if it has none, give it as http://");
    assert_eq!(trouble(&encrypted, &files.trusting()).await, expected);
    let nobody = format!("https://127.0.0.1:{}", free_port());
    assert_eq!(trouble(&nobody, &files.trusting()).await, format!("{nobody}: connection refused"));
}

#[tokio::test]
async fn a_client_that_is_not_accepted_is_told_what_etcd_wants() {
    let files = Files::new();
    Authority::new().issue(FLANNEL).write(files.dir(), "foreign");
    expired(&files.ca, FLANNEL).write(files.dir(), "expired");
    files.ca.issue_with(FLANNEL, &rsa_key(), |params| params.extended_key_usages.clear()).write(files.dir(), "any");
    files.ca.issue_with(FLANNEL, &rsa_key(), only_for_servers).write(files.dir(), "server-only");
    let etcd = files.etcd("server", true);
    let none = format!(
        "{}: it ended the connection before it answered, as etcd does when it wants a client certificate: give \
         --etcd-certfile and --etcd-keyfile",
        etcd.url()
    );
    let user = Some(User { name: "flannel".into(), password: Password::Given(Secret::new("flpw")) });
    // It says so in a few ways, depending on who is faster.
    for _ in 0..10 {
        assert_eq!(trouble(&etcd.url(), &files.trusting()).await, none);
    }
    assert_eq!(trouble(&etcd.url(), &Access { user, ..files.trusting() }).await, none);
    for name in ["foreign", "expired", "server-only"] {
        let expected = format!(
            "{}: it ended the connection before it answered, as etcd does when it does not accept a client certificate: \
             the one in {} (--etcd-certfile) must be signed by etcd's --trusted-ca-file, not be expired, and be one for \
             clients (extended key usage clientAuth)",
            etcd.url(),
            files.path(&format!("{name}.crt")).display()
        );
        for _ in 0..5 {
            assert_eq!(trouble(&etcd.url(), &files.as_client(name)).await, expected);
        }
    }
    assert_eq!(store(&etcd.url(), &files.as_client("any")).config().await, Ok(None));
}

fn only_for_servers(params: &mut rcgen::CertificateParams) {
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
}

#[test]
fn files_that_cannot_be_used_are_named_at_once() {
    let files = Files::new();
    let pair = files.ca.issue(FLANNEL);
    pair.write(files.dir(), "good");
    fs::write(files.path("empty"), "").unwrap();
    fs::write(files.path("text"), "no certificate").unwrap();
    fs::write(files.path("half"), &pair.cert[..pair.cert.len() / 2]).unwrap();
    fs::write(files.path("binary"), [0xff, 0xfe, b'\n']).unwrap();
    let (good, path) = (files.as_client("good"), |name: &str| files.path(name));
    let ca = |name| Access { ca_file: Some(path(name)), ..good.clone() };
    let identity = |cert_file, key_file| Access {
        identity: Some(IdentityFiles { cert_file: path(cert_file), key_file: path(key_file) }),
        ..good.clone()
    };
    let user =
        |name| Access { user: Some(User { name: "u".into(), password: Password::File(path(name)) }), ..good.clone() };
    let table = [
        (ca("none"), "--etcd-cafile=DIR/none: it cannot be read: No such file or directory (os error 2)"),
        (ca("."), "--etcd-cafile=DIR/.: it cannot be read: Is a directory (os error 21)"),
        (ca("text"), "--etcd-cafile=DIR/text: there is no certificate in PEM form in it (BEGIN CERTIFICATE)"),
        (ca("half"), "--etcd-cafile=DIR/half: its PEM form is broken, or it is cut off"),
        (identity("none", "good.key"), "--etcd-certfile=DIR/none: it cannot be read: "),
        (identity("good.crt", "none"), "--etcd-keyfile=DIR/none: it cannot be read: "),
        (identity("good.key", "good.crt"), "--etcd-certfile=DIR/good.key: there is no certificate in PEM form in it "),
        (identity("empty", "good.key"), "--etcd-certfile=DIR/empty: there is no certificate in PEM form in it "),
        (
            identity("good.crt", "text"),
            "--etcd-keyfile=DIR/text: there is no private key in PEM form in it, unencrypted, in PKCS#8, PKCS#1 or SEC1",
        ),
        (
            identity("good.crt", "server.key"),
            "--etcd-keyfile=DIR/server.key: it is not the key of the certificate in --etcd-certfile=DIR/good.crt",
        ),
        (user("none"), "--etcd-password-file=DIR/none: it cannot be read: No such file or directory (os error 2)"),
        (user("empty"), "--etcd-password-file=DIR/empty: it is empty; it must hold the password"),
        (user("binary"), "--etcd-password-file=DIR/binary: what it holds is not UTF-8"),
    ];
    for (access, expected) in table {
        let expected = expected.replace("DIR", &files.dir().display().to_string());
        let error = EtcdStore::with_access(vec!["https://127.0.0.1:1".into()], PREFIX, access.clone()).err();
        let error = error.unwrap_or_else(|| panic!("{access:?} is accepted")).to_string();
        assert!(error.starts_with(&expected), "{error}\ninstead of\n{expected}");
    }
}

#[tokio::test]
async fn certificates_that_are_renewed_are_used_from_then_on_and_watches_go_on() {
    let files = Files::new();
    let etcd = files.etcd("server", true);
    let pair = files.ca.issue(FLANNEL);
    pair.write(files.dir(), "client");
    let (renewing, watching) = (store(&etcd.url(), &files.as_client("client")), async |store: &EtcdStore| {
        store.watch(store.list().await.unwrap().revision).await.unwrap()
    });
    let mut watch = watching(&renewing).await;

    // What is not usable, or only half there, is not used.
    for (name, text) in
        [("client.crt", ""), ("client.key", ""), ("client.key", "x"), ("ca.crt", "-----BEGIN CERTIFICATE-----")]
    {
        let before = fs::read(files.path(name)).unwrap();
        fs::write(files.path(name), text).unwrap();
        assert_eq!(renewing.config().await, Ok(None), "{name}");
        fs::write(files.path(name), before).unwrap();
    }
    fs::remove_file(files.path("client.key")).unwrap();
    assert_eq!(renewing.config().await, Ok(None));
    // Each new certificate is used at once: one that is not accepted, then one that is.
    Authority::new().issue(FLANNEL).write(files.dir(), "client");
    let error = renewing.config().await.unwrap_err().to_string();
    assert!(error.contains("does not accept a client certificate"), "{error}");
    files.ca.issue(FLANNEL).write(files.dir(), "client");
    assert_eq!(renewing.config().await, Ok(None));

    etcd.put("10.5.1.0-24", "x");
    assert_eq!(brief(&next(&mut watch, 1).await), ["+10.5.1.0-24"]);
}

#[tokio::test]
async fn a_new_authority_is_taken_up() {
    let files = Files::new();
    let etcd = files.etcd("server", false);
    let store = store(&etcd.url(), &files.trusting());
    store.config().await.unwrap();
    // etcd takes up its own new certificate for new connections.
    let new = Authority::new();
    new.issue(HERE).write(files.dir(), "server");
    store.redial();
    let error = store.config().await.unwrap_err().to_string();
    assert!(error.contains("signed by no CA in"), "{error}");
    fs::write(files.path("ca.crt"), &new.pem).unwrap();
    assert_eq!(store.config().await, Ok(None));
}

fn self_signed(is_ca: rcgen::IsCa) -> Pair {
    let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
    params.is_ca = is_ca;
    let key = rcgen::KeyPair::generate().expect("a key");
    Pair { cert: params.self_signed(&key).expect("a certificate").pem(), key: key.serialize_pem() }
}

/// A certificate whose time is long over.
fn expired(ca: &Authority, role: Role) -> Pair {
    ca.issue_with(role, &rcgen::KeyPair::generate().expect("a key"), |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    })
}

/// A key of 2048 bits, since making one takes long.
fn rsa_key() -> rcgen::KeyPair {
    rcgen::KeyPair::from_pem(include_str!("keys/rsa.pem")).expect("an RSA key")
}

/// The same certificate with its RSA key in PKCS#1's form, which is what PKCS#8 holds after a header of 26 bytes.
fn pkcs1(pair: &Pair) -> Pair {
    rewrapped(pair, "RSA PRIVATE KEY", |der| &der[26..])
}

/// The same certificate with its key on P-256 in SEC1's form, the last 109 bytes of PKCS#8.
fn sec1(pair: &Pair) -> Pair {
    rewrapped(pair, "EC PRIVATE KEY", |der| &der[der.len() - 109..])
}

fn rewrapped(pair: &Pair, tag: &str, part: impl Fn(&[u8]) -> &[u8]) -> Pair {
    let der = pem::parse(&pair.key).expect("a key in PEM form").into_contents();
    Pair { key: pem::encode(&pem::Pem::new(tag, part(&der))), ..pair.clone() }
}
