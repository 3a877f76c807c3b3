//! Texts that others wrote, in etcd and on the host, that try to speak for the daemon: none forges a notification, a line of
//! the log or of `/readyz`, or commands a terminal.

use flanneld::model::foreign::is_plain;

use crate::lab::{Etcd, Host, Lab, Lease, PREFIX, eventually};

const HEALTHZ: &str = "--healthz-port=8123";

fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

fn says(host: &Host, words: &str) {
    eventually(&format!("STATUS= says {words:?}"), || host.status().is_some_and(|status| status.contains(words)));
}

/// Everything that has left the daemon so far is as it should be: `forged` is nowhere an assignment or a line.
#[track_caller]
fn nothing_is_forged(host: &Host, forged: &[&str]) {
    const OURS: [&str; 6] = ["READY=1", "STATUS=", "STOPPING=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=", "RELOADING=1"];
    for notification in host.notified() {
        let text = notification.text;
        assert!(text.chars().all(is_plain), "{text:?}");
        assert!(OURS.iter().any(|ours| text.starts_with(ours)), "{text:?}");
        assert!(!forged.contains(&text.as_str()), "{text:?}");
    }
    for line in host.log().split('\n') {
        assert!(line.chars().all(is_plain) && !forged.contains(&line), "{line:?}");
        assert!(line.is_empty() || line.starts_with("20"), "a line without its time: {line:?}");
        assert!(line.len() < 20_000, "{} bytes", line.len());
    }
    let (_, body) = host.http_get(8123, "/readyz").expect("an answer");
    assert!(body.ends_with('\n'), "{body:?}");
    for line in body.trim_end_matches('\n').split('\n') {
        assert!(line.chars().all(is_plain) && !forged.contains(&line), "{line:?}");
    }
}

#[test]
fn a_config_speaks_for_nobody() {
    let lab = Lab::new("forge");
    let etcd = lab.etcd();
    let mut host = lab.host(1);
    host.start(&[HEALTHZ]);
    let forged = ["READY=1", "MAINPID=1", "flanneld is ready", "WATCHDOG=trigger"];
    for (config, words) in [
        ("READY=1\nREADY=1\nMAINPID=1", "READY=1\\nREADY=1\\nMAINPID=1"),
        ("\nflanneld is ready\r\n\u{1b}[2J\u{9b}31m", "\\nflanneld is ready\\r\\n\\u{1b}[2J"),
        ("{\"Network\":\"\\nREADY=1\\nMAINPID=1\"}", "Network is \"\\nREADY=1\\nMAINPID=1\", not a network"),
        (
            "{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"x\\nWATCHDOG=trigger\"}}",
            "Type \"x\\nwatchdog=trigger\"",
        ),
        // Honest mistakes.
        (
            "{\n  \"Network\": \"10.5.0.0/16\",\n  \"SubnetLen\": 24,\n}",
            "\"Network\": \"10.5.0.0/16\",\\n  \"SubnetLen\"",
        ),
        ("\u{feff}{\"Network\":\"10.5.0.0/16\"}", "a byte order mark (U+FEFF) at line 1, column 1"),
        ("{\n  \"Network\":\u{a0}\"10.5.0.0/16\"\n}", "a no-break space (U+00A0) at line 2, column 13"),
    ] {
        etcd.put(&key("config"), config);
        says(&host, words);
        nothing_is_forged(&host, &forged);
    }
    assert!(!host.ready_within(std::time::Duration::ZERO));
}

/// A lease with this type of backend.
fn of_type(public_ip: &str, kind: &str) -> String {
    let kind = serde_json::Value::from(kind);
    format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":{kind},"BackendData":{{"VNI":1}}}}"#)
}

fn put_hostile_keys(etcd: &Etcd) {
    let long = "x".repeat(60_000);
    for (name, value) in [
        ("hello\nREADY=1\nMAINPID=1".to_owned(), "{}".to_owned()),
        ("\u{1b}]0;title\u{7}\u{1b}[2J".to_owned(), "{}".to_owned()),
        ("\u{202e}txet\u{2066}\u{200b}".to_owned(), "{}".to_owned()),
        (format!("{long}\nREADY=1"), "{}".to_owned()),
        ("172.30.211.0-24".to_owned(), "\nMAINPID=1\n\u{1b}[31m".to_owned()),
        ("172.30.212.0-24".to_owned(), format!("{{\"PublicIP\":\"\u{1b}[31m{long}\"}}")),
        ("172.30.213.0-24".to_owned(), of_type("172.31.0.213", "vxlan\nWATCHDOG=trigger\nMAINPID=1")),
        (
            "172.30.214.0-24".to_owned(),
            r#"{"PublicIP":"172.31.0.214","BackendType":"vxlan","BackendData":{"VtepMAC":"\nMAINPID=1"}}"#.to_owned(),
        ),
    ] {
        etcd.put(&key(&format!("subnets/{name}")), &value);
    }
}

#[test]
fn keys_values_and_names_of_interfaces_speak_for_nobody() {
    let lab = Lab::new("forge-keys");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.sh("ip link add \"$(printf 'x\\033[2J')\" type bridge; ip link set \"$(printf 'x\\033[2J')\" up
        ip addr add 172.30.250.1/24 dev \"$(printf 'x\\033[2J')\"");
    std::fs::create_dir(host.path("state")).expect("the state directory");
    std::fs::write(host.path("subnet.env"), "FLANNEL_SUBNET=\"\u{1b}[2J\"\n").expect("a file");
    host.start(&[HEALTHZ]);
    host.wait_ready();
    let own = etcd.lease_of_host(&host);
    put_hostile_keys(&etcd);
    etcd.put_lease(&Lease::guest(250));
    eventually("all are refused", || host.status().is_some_and(|status| status.contains("8 refused")));
    let forged = ["MAINPID=1", "WATCHDOG=trigger"];
    nothing_is_forged(&host, &forged);
    assert!(host.log().contains("on this host's x\\x1b[2J"), "the name of the interface");
    assert!(host.log().contains("FLANNEL_SUBNET is \"\\u{1b}[2J\""), "the file");
    let ready = host.notified().iter().filter(|notification| notification.text == "READY=1").count();
    assert_eq!(ready, 1);

    // Somebody else has our own key now.
    etcd.put(&own.key(), &of_type("172.31.0.99", "vxlan\nWATCHDOG=trigger\nMAINPID=1"));
    says(&host, "vxlan\\nWATCHDOG=trigger\\nMAINPID=1");
    nothing_is_forged(&host, &forged);
}
