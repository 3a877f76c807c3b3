//! `make static`: a program that runs where there is nothing of a Linux distribution, not even a C library.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use crate::deb::succeeds;
use crate::lab::program;
use crate::lab::{CONFIG, Etcd, Host, Lab, PREFIX, eventually};
use crate::pki::{Authority, Role};
use crate::tree::REPOSITORY;

/// Turns a directory into `/` and starts a program in it, with what the kernel itself provides.
const ENTER: &str =
    r#"mkdir -p "$1/dev" "$1/proc"; mount --bind /dev "$1/dev"; mount -t proc proc "$1/proc"; exec chroot "$@""#;

/// Where the daemon in its root finds what TLS needs.
const TLS: [&str; 3] =
    ["--etcd-cafile=/etc/ca.crt", "--etcd-certfile=/etc/client.crt", "--etcd-keyfile=/etc/client.key"];

/// The build under test, made as `make static` makes it but for the optimisation, which takes minutes.
fn build() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut make = Command::new("make");
        make.args(["-C", REPOSITORY, "static", "PROFILE=dev"]);
        // What cargo tells tests is not for a build of its own.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_")) {
            if name != "CARGO_HOME" {
                make.env_remove(name);
            }
        }
        succeeds(&mut make);
        Path::new(REPOSITORY).join("target/static/debug/flanneld")
    })
}

/// A directory with the program and nothing else.
fn empty_root(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("etc")).expect("a directory");
    program::install(build(), &root.join("flanneld"));
    root
}

/// Starts the daemon of a host in its root.
fn start(host: &mut Host, root: &Path, endpoint: &str, more: &[&str]) {
    let endpoint = format!("--etcd-endpoints={endpoint}");
    let prefix = format!("--etcd-prefix={PREFIX}");
    let words = ["--mount", "sh", "-ec", ENTER, "sh", &root.display().to_string(), "/flanneld"];
    let flags = [&endpoint, &prefix, "--iface=eth0", "--iptables-forward-rules=false"];
    let words = words.iter().chain(&flags).chain(more).map(|word| (*word).to_owned());
    host.start_with("unshare", &words.collect::<Vec<_>>());
}

#[track_caller]
fn joins(host: &mut Host, root: &Path, etcd: &Etcd) {
    let subnet_env = root.join("run/flannel/subnet.env");
    eventually("it has a subnet", || fs::read_to_string(&subnet_env).is_ok_and(|text| text.contains("FLANNEL_SUBNET")));
    assert!(host.device("flannel.1").is_some());
    etcd.lease_of_host(host);
    host.stop();
    fs::remove_dir_all(root.join("run")).expect("the files of this run");
}

#[test]
fn it_needs_nothing_but_a_kernel() {
    let lab = Lab::new("static");
    let root = empty_root(lab.dir());
    let run = |words: &[&str]| succeeds(Command::new("chroot").arg(&root).arg("/flanneld").args(words));
    assert_eq!(run(&["--version"]), format!("flanneld {}\n", env!("CARGO_PKG_VERSION")));
    fs::write(root.join("subnet.env"), "FLANNEL_SUBNET=172.30.46.1/24\n").expect("a file");
    assert!(run(&["docker-opts", "-f", "/subnet.env", "-d", "/dev/stdout"]).contains("--bip=172.30.46.1/24"));
    let libraries = succeeds(Command::new("readelf").arg("--dynamic").arg(root.join("flanneld")));
    assert!(!libraries.contains("NEEDED"), "{libraries}");
}

#[test]
fn it_finds_etcd_by_address_and_by_name_with_and_without_tls() {
    let lab = Lab::new("staticnames");
    let ca = Authority::new();
    fs::write(lab.dir().join("ca.crt"), &ca.pem).expect("a file");
    let (cert, key) = ca.issue(Role::Server(&["etcd.lab", "172.31.0.254"])).write(lab.dir(), "server");
    let etcd = lab.etcd_with(&[
        "--listen-client-urls=http://172.31.0.254:2379,https://172.31.0.254:2389".to_owned(),
        format!("--cert-file={}", cert.display()),
        format!("--key-file={}", key.display()),
        format!("--trusted-ca-file={}", lab.dir().join("ca.crt").display()),
        "--client-cert-auth".to_owned(),
    ]);
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    let mut host = lab.host(1);
    let root = empty_root(lab.dir());
    fs::copy(lab.dir().join("ca.crt"), root.join("etc/ca.crt")).expect("a file");
    ca.issue(Role::Client("flannel")).write(&root.join("etc"), "client");
    start(&mut host, &root, "http://172.31.0.254:2379", &[]);
    joins(&mut host, &root, &etcd);

    fs::write(root.join("etc/hosts"), "172.31.0.254 etcd.lab\n").expect("a file");
    start(&mut host, &root, "http://etcd.lab:2379", &[]);
    joins(&mut host, &root, &etcd);
    start(&mut host, &root, "https://etcd.lab:2389", &TLS);
    joins(&mut host, &root, &etcd);

    fs::remove_file(root.join("etc/hosts")).expect("the file");
    fs::write(root.join("etc/resolv.conf"), "nameserver 172.31.0.254\n").expect("a file");
    let socket = etcd.enter(|| UdpSocket::bind("172.31.0.254:53").expect("a name server's port"));
    thread::spawn(move || serve_names(&socket));
    trap(lab.dir(), &root);
    start(&mut host, &root, "https://etcd.lab:2389", &TLS);
    joins(&mut host, &root, &etcd);
}

/// A name server, which knows 172.31.0.254 by every name.
fn serve_names(socket: &UdpSocket) {
    const TYPE_A: [u8; 2] = [0, 1];
    let mut query = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut query) {
        let question = &query[12..length];
        let name = question.iter().position(|byte| *byte == 0).expect("the end of a name") + 1;
        let question = &question[..name + 4];
        let is_a = question[name..name + 2] == TYPE_A;
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
        answer.extend(question);
        if is_a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 172, 31, 0, 254]);
        }
        let _ = socket.send_to(&answer, from);
    }
}

/// A host whose `nsswitch.conf` names a library that ends whoever loads it, as one for another C library may.
fn trap(dir: &Path, root: &Path) {
    let source = dir.join("trap.c");
    fs::write(&source, "__attribute__((constructor)) void trap(void) { __builtin_trap(); }").expect("a file");
    fs::create_dir(root.join("lib")).expect("a directory");
    let library = root.join("lib/libnss_trap.so.2");
    succeeds(Command::new("cc").args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(library).arg(source));
    fs::write(root.join("etc/nsswitch.conf"), "hosts: trap files dns\n").expect("a file");
}
