//! TLS, users and passwords, as an operator meets them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::lab::{CONFIG, Etcd, FLANNELD, Host, Lab, Lease, PREFIX, eventually};
use crate::pki::{Authority, Role};

/// What must never be seen.
const PASSWORD: &str = "s3cret-marker";
const ENDPOINT: &str = "--etcd-endpoints=https://172.31.0.254:2389";

/// Certificates for an etcd that also listens with TLS, on port 2389, and for its clients.
struct Files {
    ca: Authority,
    dir: TempDir,
}

impl Files {
    fn new() -> Files {
        let files = Files { ca: Authority::new(), dir: TempDir::with_prefix("flanneld-tls-").expect("a directory") };
        fs::write(files.path("ca.crt"), &files.ca.pem).unwrap();
        fs::write(files.path("password"), format!("{PASSWORD}\n")).unwrap();
        fs::write(files.path("token.key"), "any bytes will do as long as they are many enough").unwrap();
        files.ca.issue(Role::Server(&["172.31.0.254"])).write(files.dir.path(), "server");
        files.ca.issue(Role::Client("a client")).write(files.dir.path(), "client");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn flag(&self, flag: &str, name: &str) -> String {
        format!("--{flag}={}", self.path(name).display())
    }

    /// An etcd that wants certificates from clients on port 2389, and whose tokens do not last long.
    fn etcd(&self, lab: &Lab) -> Etcd {
        let etcd = lab.etcd_with(&[
            "--listen-client-urls=http://172.31.0.254:2379,https://172.31.0.254:2389".to_owned(),
            self.flag("cert-file", "server.crt"),
            self.flag("key-file", "server.key"),
            self.flag("trusted-ca-file", "ca.crt"),
            "--client-cert-auth".to_owned(),
            "--bcrypt-cost=4".to_owned(),
            format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=2s", self.path("token.key").display()),
        ]);
        etcd.put(&format!("{PREFIX}/config"), CONFIG);
        etcd
    }

    /// The flags that make a daemon welcome, but for the password.
    fn flags(&self) -> Vec<String> {
        vec![
            ENDPOINT.to_owned(),
            self.flag("etcd-cafile", "ca.crt"),
            self.flag("etcd-certfile", "client.crt"),
            self.flag("etcd-keyfile", "client.key"),
        ]
    }
}

fn start(host: &mut Host, flags: &[String], more: &[&str]) {
    let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
    all.extend(more);
    host.start(&all);
}

/// Starts a daemon with these variables in its environment.
fn start_in(host: &mut Host, variables: &[String], flags: &[String]) {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let words = [variables, &[FLANNELD.to_owned()], &host.flags(&flags)].concat();
    host.start_with("env", &words);
}

fn says(host: &Host, words: &str) {
    eventually(&format!("STATUS= says {words}"), || host.status().is_some_and(|status| status.contains(words)));
}

/// Lines worth a look that speak of etcd.
fn complaints(log: &str) -> Vec<&str> {
    let about_etcd = |line: &&str| line.contains("etcd") && !line.contains("--iptables-forward-rules");
    log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).filter(about_etcd).collect()
}

#[test]
fn hosts_join_over_tls_with_a_certificate_and_a_password_and_nothing_shows_it() {
    let (lab, files) = (Lab::new("secure"), Files::new());
    let mut etcd = files.etcd(&lab);
    etcd.enable_auth(PASSWORD);
    let mut hosts = lab.hosts(2);
    let rest = ["--etcd-username=flannel", "--subnet-lease-ttl=6s", "-v=5"].map(str::to_owned);
    let flags = [&files.flags()[..], &rest].concat();
    start(&mut hosts[0], &flags, &[&files.flag("etcd-password-file", "password")]);
    start_in(&mut hosts[1], &[format!("FLANNELD_ETCD_PASSWORD={PASSWORD}")], &flags);
    hosts.iter().for_each(|host| host.wait_ready());
    // Several tokens long: renewals go on, and after a restart of etcd, too, peers are followed.
    std::thread::sleep(Duration::from_secs(7));
    etcd.put_lease(&Lease::guest(201));
    hosts.iter().for_each(|host| host.follows(&etcd));
    let before_the_restart: Vec<String> = hosts.iter().map(Host::log).collect();
    etcd.kill();
    etcd.start();
    etcd.put_lease(&Lease::guest(202));
    hosts.iter().for_each(|host| host.follows(&etcd));
    for (host, log) in hosts.iter().zip(&before_the_restart) {
        assert_eq!(complaints(log), [""; 0]);
        assert!(log.contains("authenticating again"), "tokens have expired");
        let told: Vec<String> = host.notified().into_iter().map(|notification| notification.text).collect();
        for text in [host.log(), told.join("\n")] {
            assert!(!text.contains(PASSWORD), "the password is shown");
            assert!(!text.contains("eyJ"), "a token is shown");
        }
    }
}

#[test]
fn neither_help_nor_mistakes_show_a_password() {
    for flags in [
        &["--help"][..],
        &["--nonsense"],
        &["-v=x"],
        &["--etcd-password-file=x"],
        &["--etcd-username=u", "--etcd-endpoints=https://127.0.0.1:1", "--etcd-cafile=/nonexistent", "-v=5"],
    ] {
        let flag = [&["--etcd-password", PASSWORD][..], flags].concat();
        for (words, variable) in [(&flag[..], ""), (flags, PASSWORD)] {
            let mut command = Command::new(FLANNELD);
            command.args(words).env("FLANNELD_ETCD_PASSWORD", variable).env_remove("NOTIFY_SOCKET");
            let output = command.output().expect("it runs");
            let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            assert!(!text.is_empty() && !text.contains(PASSWORD), "{words:?}: {text}");
        }
    }
}

#[test]
fn files_that_cannot_be_used_end_it_with_a_message() {
    let files = Files::new();
    let table = [
        (
            vec![files.flag("etcd-cafile", "none")],
            "--etcd-cafile=DIR/none: it cannot be read: No such file or directory",
        ),
        (
            vec![files.flag("etcd-cafile", "password")],
            "--etcd-cafile=DIR/password: there is no certificate in PEM form in it (BEGIN CERTIFICATE)",
        ),
        (
            vec![files.flag("etcd-certfile", "client.crt"), files.flag("etcd-keyfile", "server.key")],
            "--etcd-keyfile=DIR/server.key: it is not the key of the certificate in --etcd-certfile=DIR/client.crt",
        ),
        (
            vec!["--etcd-username=u".to_owned(), files.flag("etcd-password-file", "none")],
            "--etcd-password-file=DIR/none: it cannot be read: No such file or directory",
        ),
    ];
    for (flags, expected) in table {
        let output = Command::new(FLANNELD).arg(ENDPOINT).args(&flags).env_remove("NOTIFY_SOCKET").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let expected = expected.replace("DIR", &files.dir.path().display().to_string());
        assert!(text.contains(&expected), "{text}\ninstead of\n{expected}");
    }
}

#[test]
fn a_wrong_set_up_is_waited_out_with_its_reason_in_the_status() {
    let (lab, files) = (Lab::new("wrong-tls"), Files::new());
    let mut etcd = files.etcd(&lab);
    etcd.enable_auth(PASSWORD);
    fs::write(files.path("wrong"), "wrong").unwrap();
    fs::write(files.path("no-roots"), "").unwrap();
    let flags = files.flags();
    let roots = |name: &str| vec![format!("SSL_CERT_FILE={}", files.path(name).display())];
    let user = |password: &str| {
        [&flags[..], &["--etcd-username=flannel".to_owned(), files.flag("etcd-password-file", password)]].concat()
    };
    Authority::new().issue(Role::Client("x")).write(files.dir.path(), "foreign");
    fs::copy(files.path("foreign.crt"), files.path("foreign-ca.crt")).unwrap();
    let table = [
        (vec![], vec!["--etcd-endpoints=http://172.31.0.254:2389".to_owned()], "wants TLS: then give it as https://"),
        (vec![], vec!["--etcd-endpoints=https://172.31.0.254:2379".to_owned()], "if it has none, give it as http://"),
        (
            roots("foreign-ca.crt"),
            vec![ENDPOINT.to_owned()],
            "signed by no CA that this system trusts: give its CA with --etcd-cafile",
        ),
        (
            roots("no-roots"),
            vec![ENDPOINT.to_owned()],
            "this host has no CA certificates of its own: give etcd's with --etcd-cafile",
        ),
        (
            vec![],
            vec![ENDPOINT.to_owned(), files.flag("etcd-cafile", "foreign.crt")],
            "--etcd-cafile must name the CA of etcd's certificate",
        ),
        (vec![], flags[..2].to_vec(), "wants a client certificate: give --etcd-certfile and --etcd-keyfile"),
        (vec![], flags.clone(), "permission denied"),
        (vec![], user("wrong"), "set --etcd-username and --etcd-password-file right"),
        (vec![], user("password"), "2389"),
    ];
    let mut host = lab.host(1);
    let last = table.len() - 1;
    for (index, (variables, flags, words)) in table.into_iter().enumerate() {
        start_in(&mut host, &variables, &flags);
        if index == last {
            host.wait_ready();
        } else {
            says(&host, words);
            assert!(host.running(), "{words}");
        }
        assert_eq!(host.stop().code, Some(0));
    }
}

#[test]
fn a_host_joins_with_the_cas_of_its_system_and_hears_of_renewals_once() {
    let (lab, files) = (Lab::new("renewal"), Files::new());
    let etcd = files.etcd(&lab);
    let mut host = lab.host(1);
    let flags = [&files.flags()[..1], &files.flags()[2..], &["--subnet-lease-ttl=6s".to_owned()]].concat();
    start_in(&mut host, &[format!("SSL_CERT_FILE={}", files.path("ca.crt").display())], &flags);
    host.wait_ready();

    let (renewed, warned) = ("were renewed", "what was read before stays in use");
    let count = |words: &str| host.log().matches(words).count();
    let good = fs::read(files.path("client.key")).unwrap();
    fs::write(files.path("client.key"), &good[..good.len() / 2]).unwrap();
    eventually("half a key is spoken of", || count(warned) > 0);
    // Long enough for more renewals of the lease.
    std::thread::sleep(Duration::from_secs(5));
    files.ca.issue(Role::Client("another name")).write(files.dir.path(), "client");
    eventually("the new one is taken up", || count(renewed) > 0);
    etcd.put_lease(&Lease::guest(201));
    host.follows(&etcd);
    assert_eq!(complaints(&host.log()).len(), 1, "{}", host.log());
    assert_eq!((count(warned), count(renewed)), (1, 1), "{}", host.log());
    assert!(host.running());
}
