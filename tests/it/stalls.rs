//! Things that the daemon works with stand still, one after the other. Routes that somebody deletes come back, peers come,
//! `/healthz` answers, and SIGTERM ends the daemon, all as if nothing had happened.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::firewall::with_nftables;
use crate::lab::{DEVICE, Disk, Etcd, FLANNELD, Host, Lab, Lease, PREFIX, Tables, Tools, eventually, eventually_eq};

const PORT: u16 = 8123;
const HEALTHZ: &str = "--healthz-port=8123";

/// SIGTERM takes about a second at most; a busy machine may add to that.
const SOON: Duration = Duration::from_secs(4);

fn is_healthy(host: &Host) -> bool {
    host.http_get(PORT, "/healthz").is_ok_and(|(code, _)| code == 200)
}

/// Heals, wires and answers.
#[track_caller]
fn works(host: &Host, etcd: &Etcd, guests: &mut Vec<Lease>) {
    let first = 200 + u8::try_from(guests.len()).expect("few guests");
    for n in first..first + 5 {
        guests.push(Lease::guest(n));
        etcd.put_lease(guests.last().expect("a guest"));
    }
    eventually_eq("the new peers are wired", &Tables::to(&*guests), || host.tables());
    for _ in 0..3 {
        host.sh(&format!(
            "ip route flush dev {DEVICE} proto 100 2>/dev/null || true; ip route del 172.30.200.0/24 || true"
        ));
        eventually_eq("the routes are back", &Tables::to(&*guests), || host.tables());
    }
    eventually("/healthz answers", || is_healthy(host));
}

#[track_caller]
fn ends(host: &mut Host) {
    let exit = host.stop();
    assert!(exit.code == Some(0) && exit.took < SOON, "{exit:?}");
}

/// A pipe of 4 KiB.
fn small_pipe(path: &Path) -> File {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let pipe = options.expect("the FIFO");
    nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).expect("its size");
    pipe
}

#[test]
fn standard_error_that_nobody_reads() {
    let lab = Lab::new("stderr");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let mut pipe = small_pipe(&host.path("stderr"));
    let into_pipe = format!("exec \"$@\" 2>{}", host.path("stderr").display());
    let words = ["-c", &into_pipe, "sh", FLANNELD].map(str::to_owned);
    let words: Vec<String> = words.into_iter().chain(host.flags(&["-v=10", HEALTHZ])).collect();
    host.start_with("sh", &words);
    host.wait_ready();
    let mut guests = Vec::new();
    works(&host, &etcd, &mut guests);
    works(&host, &etcd, &mut guests);

    // The reader is back.
    let mut text = Vec::new();
    eventually("the log goes on", || {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut part) {
            text.extend(&part[..length]);
        }
        String::from_utf8_lossy(&text).contains("172.30.209.0")
    });
    works(&host, &etcd, &mut guests);
    ends(&mut host);
}

#[test]
fn a_disk_that_is_frozen_under_a_daemon_that_runs() {
    let lab = Lab::new("frozen");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let disk = Disk::mount(&host.path("state"));
    host.start(&[HEALTHZ]);
    host.wait_ready();
    disk.freeze();
    let mut guests = Vec::new();
    // Our own lease goes, so the state has to be written.
    let own = etcd.lease_of_host(&host);
    etcd.del(&own.key());
    works(&host, &etcd, &mut guests);
    eventually("the host has its lease again", || etcd.leases().iter().any(|lease| lease.public_ip == own.public_ip));
    eventually("it is logged", || host.log().contains("its disk does not answer"));
    works(&host, &etcd, &mut guests);
    ends(&mut host);

    disk.thaw();
    eventually("the writer that was held up ends", || !is_written(&host.path("state")));
    host.start(&[HEALTHZ]);
    host.wait_ready();
    assert_eq!(etcd.lease_of_host(&host).subnet, own.subnet);
    let names = crate::lab::names_in(&host.path("state"));
    assert!(!names.iter().any(|name| name.starts_with(".flanneld-")), "{names:?}");
}

/// Whether a process of the daemon's works on a file below this directory.
fn is_written(dir: &Path) -> bool {
    let dir = dir.display().to_string();
    crate::lab::names_in(Path::new("/proc")).iter().any(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.contains("write-file") && words.contains(&dir)
    })
}

#[test]
fn a_disk_that_is_frozen_at_the_start() {
    let lab = Lab::new("frozen-start");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let disk = Disk::mount(&host.path("run"));
    let flags: Vec<String> =
        host.flags(&[HEALTHZ]).into_iter().map(|flag| flag.replace("/subnet.env", "/run/subnet.env")).collect();
    disk.freeze();
    host.start_with(FLANNELD, &flags);
    let says = |host: &Host| {
        eventually("STATUS= names the disk", || {
            host.status().is_some_and(|status| status.contains("subnet.env is not written yet: the disk of"))
        });
        eventually("/readyz does, too", || {
            host.http_get(PORT, "/readyz").is_ok_and(|(code, body)| code == 503 && body.contains("the disk of"))
        });
    };
    says(&host);
    assert!(is_healthy(&host));
    ends(&mut host);
    host.start_with(FLANNELD, &flags);
    says(&host);
    disk.thaw();
    host.wait_ready();
    assert!(host.path("run/subnet.env").exists());
    ends(&mut host);
}

/// A program of the firewall that starts others and never ends, and one that never stops writing.
const HANGS: &str = "sleep 1000 & echo $! >>$(dirname $0)/children; wait";
const FLOODS: &str = "sleep 1000 >/dev/null 2>&1 & echo $! >>$(dirname $0)/children; exec yes";

#[test]
fn programs_of_the_firewall_that_hang_or_flood() {
    for (name, program, script, config) in [
        ("save-hangs", "iptables-save", HANGS, None),
        ("save-floods", "iptables-save", FLOODS, None),
        ("nft-hangs", "nft", HANGS, Some(with_nftables())),
        ("nft-floods", "nft", FLOODS, Some(with_nftables())),
    ] {
        let lab = Lab::new(name);
        let etcd = lab.etcd_with_config();
        if let Some(config) = config {
            etcd.put(&format!("{PREFIX}/config"), &config);
        }
        let mut host = lab.host(1);
        let tools = Tools::replace(&host, program, script);
        host.start_with_tools(&tools, &["--ip-masq", HEALTHZ]);
        let children = host.path("tools/children");
        eventually("it was started", || children.exists());
        if script == FLOODS {
            eventually("STATUS= says so", || host.status().is_some_and(|status| status.contains("writes more than")));
        }
        eventually("the lease is held", || host.device(DEVICE).is_some());
        works(&host, &etcd, &mut Vec::new());
        ends(&mut host);
        eventually("nothing that it started is left", || {
            let pids = fs::read_to_string(&children).unwrap_or_default();
            !pids.lines().any(runs)
        });
    }
}

/// Whether a process runs, a zombie does not.
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_loop_that_is_stuck_is_reported() {
    let lab = Lab::new("stuck");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.start(&[HEALTHZ]);
    host.wait_ready();
    eventually("it is healthy", || is_healthy(&host));
    // Only the thread of the loop: the others run on.
    let thread = Pid::from_raw(host.pid());
    ptrace::seize(thread, ptrace::Options::empty()).expect("the thread");
    ptrace::interrupt(thread).expect("a stop");
    waitpid(thread, None).expect("it stands");
    let since = Instant::now();
    let mut answer = String::new();
    while answer.is_empty() && since.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(200));
        if let Ok((503, body)) = host.http_get(PORT, "/healthz") {
            answer = body;
        }
    }
    assert!(answer.starts_with("flanneld is stuck: its main loop has not run for"), "{answer:?}");
    let (code, body) = host.http_get(PORT, "/readyz").expect("an answer");
    assert!(code == 503 && body.contains("flanneld is stuck"), "{body}");
    ptrace::detach(thread, None).expect("it goes on");
    eventually("it is healthy again", || is_healthy(&host));
}
