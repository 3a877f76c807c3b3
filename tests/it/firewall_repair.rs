//! What others do to the daemon's rules is made good when it happens, told, and costs nothing while nothing happens.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::firewall::{everything, saved, with_nftables};
use crate::lab::{Host, Lab, Lease, PREFIX, Tools, eventually, wait_until};

/// What the log has told of repairs of rules.
fn repairs(host: &Host) -> Vec<String> {
    host.log().lines().filter(|line| line.contains("repaired: firewall: ")).map(str::to_owned).collect()
}

/// Each damage is made good by itself, and told in one line that has these words.
fn all_is_repaired(host: &Host, damages: &[(&str, &str)]) {
    for (damage, words) in damages {
        let (right, told) = (everything(host), repairs(host).len());
        let began = Instant::now();
        host.sh(damage);
        eventually(&format!("{damage}: it is told"), || repairs(host).len() > told);
        println!("{:.0?} after: {damage}", began.elapsed());
        eventually(&format!("{damage}: all is as before"), || everything(host) == right);
        let lines = repairs(host).split_off(told);
        assert!(lines.len() == 1 && lines[0].contains(words), "{damage}: {lines:?}");
    }
}

#[test]
fn rules_that_are_flushed_deleted_or_moved_are_back_at_once() {
    let lab = Lab::new("mend");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.sh("iptables -t nat -A POSTROUTING -o eth9 -j MASQUERADE");
    host.start(&["--ip-masq"]);
    host.wait_ready();
    all_is_repaired(
        &host,
        &[
            ("iptables -F FLANNEL-FWD", "chain FLANNEL-FWD was empty"),
            ("iptables -t nat -D FLANNEL-POSTRTG 3", "chain FLANNEL-POSTRTG was not as it should be"),
            (
                "iptables -t nat -S FLANNEL-POSTRTG | sed -n 2p | sed 's/^-A/iptables -t nat -D/' | sh
                iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment 'flanneld masq' -j RETURN",
                "chain FLANNEL-POSTRTG was not as it should be",
            ),
            ("iptables -F FORWARD", "the jump from FORWARD to FLANNEL-FWD was missing"),
        ],
    );
    // As firewalld does it.
    let told = repairs(&host).len();
    host.sh("iptables -I FORWARD -j REJECT --reject-with icmp-host-prohibited");
    eventually("the jump goes before the end", || {
        let forward: Vec<String> =
            saved(&host, "-t filter").into_iter().filter(|l| l.starts_with("-A FORWARD")).collect();
        forward.len() == 2 && forward[0].contains("FLANNEL-FWD")
    });
    eventually("it is told", || repairs(&host).len() == told + 1);
    assert!(repairs(&host)[told].contains("stood behind the end of FORWARD, -j REJECT"), "{:?}", repairs(&host));
}

#[test]
fn with_nftables_whatever_is_flushed_is_back_at_once() {
    let lab = Lab::new("mend-nft");
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), &with_nftables());
    let mut host = lab.host(1);
    host.start(&["--ip-masq"]);
    host.wait_ready();
    let (missing, wrong) = ("table ip flannel-ipv4 was missing", "table ip flannel-ipv4 was not as it should be");
    all_is_repaired(
        &host,
        &[
            ("nft flush ruleset", missing),
            ("nft flush chain ip flannel-ipv4 forward", wrong),
            ("nft insert rule ip flannel-ipv4 postrtg accept", wrong),
        ],
    );
}

#[test]
fn at_rest_hardly_a_program_is_started() {
    const REST: Duration = Duration::from_secs(12);
    let lab = Lab::new("rest");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let tools = Tools::watched(&host);
    host.start_with_tools(&tools, &["--ip-masq", "--iptables-resync=1"]);
    host.wait_ready();
    let at_start = tools.starts();
    sleep(Duration::from_secs(2));
    let settled = tools.starts().len();
    sleep(REST);
    let at_rest = tools.starts().len() - settled;
    println!("{} programs to start: {at_start:?}; {settled} until all is quiet", at_start.len());
    println!("{at_rest} in {REST:?} of rest, {} a minute", at_rest as u64 * 60 / REST.as_secs());
    assert!(at_rest <= 2, "{:?}", tools.starts());

    host.sh("iptables -F FLANNEL-FWD");
    eventually("it is repaired", || repairs(&host).len() == 1);
    sleep(Duration::from_secs(2));
    let by_repair = tools.starts().split_off(settled + at_rest);
    println!("one repair: {by_repair:?}");
    assert!(by_repair.iter().any(|name| name == "iptables-restore") && by_repair.len() <= 9, "{by_repair:?}");
    assert_eq!(
        host.sh("cat /proc/thread-self/net/ip_tables_names 2>/dev/null || true"),
        "",
        "iptables-legacy was started"
    );
}

/// Somebody does `damage` again and again. The daemon answers now and then, and has its rules in the end.
fn fight(host: &Host, tools: &Tools, damage: &[&str]) {
    const FIGHT: Duration = Duration::from_secs(6);
    let (right, before) = (everything(host), tools.starts().len());
    let end = Instant::now() + FIGHT;
    let mut done = 0;
    while Instant::now() < end {
        done += usize::from(host.run(damage).is_ok());
        sleep(Duration::from_millis(5));
    }
    let (repairs, starts) = (repairs(host).len(), tools.starts().len() - before);
    println!("{damage:?} done {done} times in {FIGHT:?}: {repairs} repairs, {starts} programs started");
    assert!((2..=10).contains(&repairs) && starts <= 60, "{repairs} repairs, {starts} programs");
    eventually("all is as before in the end", || everything(host) == right);
}

#[test]
fn somebody_who_always_removes_a_rule_does_not_keep_it_busy() {
    let lab = Lab::new("fight");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let tools = Tools::watched(&host);
    host.start_with_tools(&tools, &[]);
    host.wait_ready();
    fight(&host, &tools, &["iptables", "-D", "FLANNEL-FWD", "1"]);
}

#[test]
fn somebody_who_always_empties_a_chain_of_nftables_does_not_win() {
    let lab = Lab::new("fight-nft");
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), &with_nftables());
    let mut host = lab.host(1);
    let tools = Tools::watched(&host);
    host.start_with_tools(&tools, &["--ip-masq"]);
    host.wait_ready();
    fight(&host, &tools, &["nft", "flush chain ip flannel-ipv4 forward"]);
}

fn unready(host: &Host, words: &str) -> bool {
    host.http_get(8123, "/readyz").is_ok_and(|(code, body)| code == 503 && body.contains(words))
        && host.status().is_some_and(|status| status.contains(words))
}

#[test]
fn a_program_that_hangs_holds_up_nothing_but_the_rules() {
    let lab = Lab::new("hang");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let tools = Tools::watched(&host);
    host.start_with_tools(&tools, &["--healthz-port=8123"]);
    host.wait_ready();
    tools.hang(true);
    host.sh("iptables -F FLANNEL-FWD");
    eventually("a program hangs", || tools.hung().len() == 1);
    etcd.put_leases(&[Lease::guest(200)]);
    host.follows(&etcd);
    assert_eq!(
        host.http_get(8123, "/readyz").unwrap().0,
        200,
        "it waited for the program before it followed its peers"
    );
    let told = || unready(&host, "did not end within 20 s");
    assert!(wait_until(Duration::from_secs(60), told), "nothing is said of a program that hangs: {:?}", host.status());
    tools.hang(false);
    eventually("all is well again", || host.http_get(8123, "/readyz").is_ok_and(|(code, _)| code == 200));
    assert!(saved(&host, "-t filter").iter().any(|line| line.starts_with("-A FLANNEL-FWD")));

    let hung = tools.hung().len();
    tools.hang(true);
    host.sh("iptables -F FLANNEL-FWD");
    eventually("a program hangs again", || tools.hung().len() > hung);
    let exit = host.stop();
    assert!(exit.code == Some(0) && exit.took < Duration::from_secs(1), "{exit:?}");
    let lives = |pid: &String| Path::new("/proc").join(pid).exists();
    eventually("nothing is left running", || !tools.hung().iter().any(lives));
}
