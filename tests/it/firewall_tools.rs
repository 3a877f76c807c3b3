//! Hosts that lack a program of the firewall, or have another one.

use std::fs;

use crate::firewall::with_nftables;
use crate::lab::{FLANNELD, Host, Lab, PREFIX, Tools, eventually};

/// Starts the daemon on a host whose directories for administrators' programs hold what the test puts into `sbin`.
fn start_without_tools(host: &mut Host, flags: &[&str]) {
    let sbin = host.path("sbin");
    fs::create_dir_all(&sbin).expect("a directory for programs");
    let hide = format!(
        "mount --bind {sbin} /usr/sbin; [ -L /sbin ] || mount --bind {sbin} /sbin; PATH=/usr/bin:/bin exec \"$@\"",
        sbin = sbin.display()
    );
    let words = ["-m", "sh", "-ec", &hide, "sh", FLANNELD].map(str::to_owned);
    host.start_with("unshare", &words.into_iter().chain(host.flags(flags)).collect::<Vec<_>>());
}

fn says(host: &Host, words: &str) {
    eventually(&format!("STATUS= and /readyz say {words:?}"), || {
        host.status().is_some_and(|status| status.contains(words))
            && host.http_get(8123, "/readyz").is_ok_and(|(code, body)| code == 503 && body.contains(words))
    });
}

fn install(host: &Host, names: &[&str]) {
    names.iter().for_each(|name| Tools::install(&host.path("sbin"), name));
}

#[test]
fn without_the_program_a_default_is_a_warning_and_a_wish_an_error_until_it_is_installed() {
    let lab = Lab::new("no-iptables");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    start_without_tools(&mut host, &[]);
    host.wait_ready();
    eventually("it is said", || {
        host.log().contains("no forward rules: iptables is not installed: install the package iptables")
    });
    host.stop();

    let mark = host.log().len();
    start_without_tools(&mut host, &["--iptables-forward-rules=false"]);
    host.wait_ready();
    host.stop();
    let log = host.log_since(mark);
    assert!(!log.contains("iptables is not installed"), "nothing was wanted of it: {log}");

    let mark = host.log().len();
    start_without_tools(&mut host, &["--ip-masq", "--healthz-port=8123"]);
    says(&host, "iptables is not installed: install the package iptables");
    assert!(!host.ready_within(std::time::Duration::ZERO));
    install(&host, &["iptables-restore", "iptables-save", "iptables"]);
    host.wait_ready();
    assert!(host.sh("iptables-save -t nat").contains("-j FLANNEL-POSTRTG"));
    assert!(!host.log_since(mark).contains("repaired: "), "nobody had damaged anything: {}", host.log_since(mark));
}

#[test]
fn with_nftables_it_is_nft_that_is_needed_and_nothing_else() {
    let lab = Lab::new("no-nft");
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), &with_nftables());
    let mut host = lab.host(1);
    start_without_tools(&mut host, &["--ip-masq", "--healthz-port=8123"]);
    says(&host, "nft is not installed: install the package nftables");
    install(&host, &["nft"]);
    host.wait_ready();
    assert!(host.sh("nft list tables").contains("table ip flannel-ipv4"));
}

#[test]
fn where_iptables_is_the_legacy_one_it_is_used_and_looked_at_every_few_seconds() {
    let legacy_rules = |host: &Host| host.sh("iptables-legacy-save");
    let lab = Lab::new("legacy");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let tools = Tools::legacy(&host);
    host.start_with_tools(&tools, &["--ip-masq", "--iptables-resync=1"]);
    host.wait_ready();
    let stands = |host: &Host| {
        let rules = legacy_rules(host);
        rules.contains("-j FLANNEL-FWD") && rules.contains("-A FLANNEL-FWD -s") && rules.contains("-j FLANNEL-POSTRTG")
    };
    assert!(stands(&host));
    assert_ne!(host.sh("cat /proc/thread-self/net/ip_tables_names"), "");
    assert_eq!(host.sh("iptables-nft-save 2>/dev/null | grep FLANNEL || true"), "");
    host.sh("iptables-legacy -F FLANNEL-FWD; iptables-legacy -t nat -F POSTROUTING");
    assert!(!stands(&host));
    eventually("both are back", || stands(&host));
}
