//! Whole command lines and environments; what single parts do is tested next to them.

mod access;
mod errors;

use super::*;
use regex::Regex;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A row's command line and environment.
type Args<'a> = &'a [&'a str];
type Env<'a> = &'a [(&'a str, &'a str)];

fn parse_strs(args: Args, env: Env) -> Result<Invocation, ArgsError> {
    let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    parse(args.iter().map(OsString::from), &env)
}

/// The options and warnings of a start that must succeed.
fn run(args: Args, env: Env) -> (Options, Vec<String>) {
    match parse_strs(args, env) {
        Ok(Invocation::Run(options, warnings)) => (*options, warnings),
        other => panic!("{args:?} {env:?}: {other:?}"),
    }
}

/// The error of a start that must fail.
fn error(args: Args, env: Env) -> String {
    match parse_strs(args, env) {
        Err(error) => error.to_string(),
        other => panic!("{args:?} {env:?}: {other:?}"),
    }
}

const SILENT: &str = "--iptables-forward-rules=false";

#[test]
fn the_flag_set_is_sound() {
    flags::command().debug_assert();
}

#[test]
fn defaults() {
    let (options, warnings) = run(&[], &[]);
    assert_eq!(options.etcd_endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(options.settings.prefix, "/coreos.com/network");
    assert!(options.settings.iface.names.is_empty() && options.settings.iface.regexes.is_empty());
    assert_eq!((options.settings.iface.can_reach, options.settings.iface.public_ip), (None, None));
    assert_eq!(options.settings.files.subnet_env, PathBuf::from("/run/flannel/subnet.env"));
    assert_eq!(options.settings.files.docker_opts, Some(PathBuf::from("/run/docker_opts.env")));
    assert_eq!(options.settings.files.state_dir, PathBuf::from("/var/lib/flannel"));
    assert_eq!(options.settings.leases.times.ttl, Duration::from_secs(86_400));
    assert_eq!(options.settings.leases.times.renew_margin, Duration::from_secs(3_600));
    assert_eq!((options.healthz, options.verbosity), (None, 0));
    let firewall = FirewallSettings { forward: true, ..FirewallSettings::default() };
    assert_eq!(
        (options.settings.firewall, options.settings.device.blackhole_route, options.settings.device.tx_checksum_off),
        (firewall, false, false)
    );
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn every_setting_can_be_given() {
    let (options, warnings) = run(
        &[
            "-etcd-endpoints=http://a:1,b:2",
            "-etcd-prefix",
            "/atomic.io//network/",
            "-iface=eth0",
            "-iface",
            "10.0.0.1",
            "-iface=",
            "--iface-regex=^eth.*,x$",
            "--iface-can-reach=fd00::1",
            "--public-ip=192.0.2.7",
            "--subnet-file=s.env",
            "--docker-opts-file=",
            "--state-dir=/s",
            "--subnet-lease-ttl=2h",
            "--subnet-lease-renew-margin=90s",
            "--release-lease-on-exit",
            "--peer-hold=10m",
            "--healthz-ip=::1",
            "--healthz-port=8471",
            "-v=5",
            "--iptables-resync=10",
            "--ip-masq-fully-random-disable",
            "--ip-masq",
            "--iptables-docker-user-rules",
            "--ip-blackhole-route=1",
            "--vxlan-tx-checksum-off",
            "--etcd-cafile=",
            SILENT,
        ],
        &[],
    );
    assert_eq!(options.etcd_endpoints, ["http://a:1", "http://b:2"]);
    assert_eq!(options.settings.prefix, "/atomic.io/network");
    assert_eq!(options.settings.iface.names, ["eth0", "10.0.0.1"]);
    let patterns: Vec<&str> = options.settings.iface.regexes.iter().map(Regex::as_str).collect();
    assert_eq!(patterns, ["^eth.*,x$"]);
    assert_eq!(options.settings.iface.can_reach, "fd00::1".parse().ok());
    assert_eq!(options.settings.iface.public_ip, Some(Ipv4Addr::new(192, 0, 2, 7)));
    assert_eq!(options.settings.files.subnet_env, PathBuf::from("s.env"));
    assert_eq!(options.settings.files.docker_opts, None);
    assert_eq!(options.settings.files.state_dir, PathBuf::from("/s"));
    assert_eq!(options.settings.leases.times.ttl, Duration::from_secs(7_200));
    assert_eq!(options.settings.leases.times.renew_margin, Duration::from_secs(90));
    assert_eq!(
        (options.settings.leases.release_on_exit, options.settings.leases.peer_hold),
        (true, Duration::from_secs(600))
    );
    assert_eq!(options.healthz, "[::1]:8471".parse().ok());
    assert_eq!(options.verbosity, 5);
    let firewall = FirewallSettings {
        masquerade: Some(Masquerade { random_fully: false }),
        forward: false,
        docker_user: true,
        resync: Duration::from_secs(10),
    };
    assert_eq!(
        (options.settings.firewall, options.settings.device.blackhole_route, options.settings.device.tx_checksum_off),
        (firewall, true, true)
    );
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn the_later_value_wins() {
    let (options, _) = run(&["-v=1", SILENT, "--iptables-forward-rules", "-v", "2", SILENT], &[]);
    assert_eq!((options.verbosity, options.settings.firewall.forward), (2, false));
    let (options, _) = run(&["--ip-masq", "--ip-masq=false"], &[("FLANNELD_IP_MASQ", "true")]);
    assert_eq!(options.settings.firewall.masquerade, None);
}

#[test]
fn the_environment_fills_gaps() {
    let table: &[(Args, Env, &str)] = &[
        (&[], &[("FLANNELD_ETCD_PREFIX", "/own"), ("FLANNEL_ETCD_PREFIX", "/rpm")], "/own"),
        (&["-etcd-prefix=/flag"], &[("FLANNELD_ETCD_PREFIX", "/own")], "/flag"),
        (&[], &[("FLANNELD_ETCD_PREFIX", ""), ("FLANNEL_ETCD_PREFIX", "/rpm")], "/rpm"),
        (&[], &[("FLANNEL_ETCD_PREFIX", "\"/rpm\""), ("FLANNEL_ETCD_KEY", "/old")], "/rpm"),
        (&[], &[("FLANNEL_ETCD_PREFIX", "\"\""), ("FLANNEL_ETCD_KEY", "/old")], "/old"),
        (&[], &[("FLANNELD_ETCD_PREFIX", "\"/own\"")], "\"/own\""),
        (&[], &[("FLANNELD_VERSION", "true"), ("FLANNELD_HELP", "true")], "/coreos.com/network"),
    ];
    for (args, env, expected) in table {
        assert_eq!(run(args, env).0.settings.prefix, *expected, "{args:?} {env:?}");
    }
    let (options, warnings) = run(
        &[],
        &[
            ("FLANNEL_ETCD", "\"http://a:1,b:2\""),
            ("FLANNELD_IFACE", "eth0,eth1"),
            ("FLANNELD_V", "3"),
            ("FLANNELD_IPTABLES_FORWARD_RULES", "false"),
        ],
    );
    assert_eq!(options.etcd_endpoints, ["http://a:1", "http://b:2"]);
    assert_eq!(options.settings.iface.names, ["eth0,eth1"]);
    assert_eq!((options.verbosity, warnings.len()), (3, 0));
}

#[test]
fn the_state_directory_may_be_systemds() {
    let table: &[(&[&str], &str, &str)] = &[
        (&[], "/var/lib/flannel-a", "/var/lib/flannel-a"),
        (&[], "/var/lib/a:/var/lib/b", "/var/lib/a"),
        (&[], "", "/var/lib/flannel"),
        (&["--state-dir=/flag"], "/var/lib/a", "/flag"),
    ];
    for (args, directory, expected) in table {
        let (options, _) = run(args, &[("STATE_DIRECTORY", directory)]);
        assert_eq!(options.settings.files.state_dir, PathBuf::from(expected), "{args:?} {directory}");
    }
}

#[test]
fn peers_are_held_for_a_ttl_and_the_lease_is_kept_unless_told_otherwise() {
    let (options, _) = run(&["--subnet-lease-ttl=2h"], &[]);
    assert_eq!(
        (options.settings.leases.release_on_exit, options.settings.leases.peer_hold),
        (false, Duration::from_secs(7_200))
    );
    assert_eq!(run(&["--peer-hold=0s"], &[]).0.settings.leases.peer_hold, Duration::ZERO);
}

#[test]
fn the_margin_fits_the_ttl() {
    let table: &[(&[&str], u64)] = &[
        (&["--subnet-lease-ttl=61m"], 3_600),
        (&["--subnet-lease-ttl=1h"], 1_200),
        (&["--subnet-lease-ttl=30s"], 10),
        (&["--subnet-lease-renew-margin=1439"], 86_340),
        (&["--subnet-lease-ttl=30s", "--subnet-lease-renew-margin=29s"], 29),
    ];
    for (args, seconds) in table {
        assert_eq!(run(args, &[]).0.settings.leases.times.renew_margin, Duration::from_secs(*seconds), "{args:?}");
    }
    let table: &[(&[&str], &str)] = &[
        (
            &["--subnet-lease-renew-margin=1440"],
            "--subnet-lease-renew-margin=\"1440\": must be shorter than the lease, whose \
              --subnet-lease-ttl is 1day",
        ),
        (
            &["--subnet-lease-ttl=30s", "--subnet-lease-renew-margin=60"],
            "--subnet-lease-renew-margin=\"60\": must be shorter than the lease, whose \
              --subnet-lease-ttl is 30s",
        ),
        (&["--subnet-lease-ttl=24"], "--subnet-lease-ttl=\"24\": needs a unit: 24h, 24m or 24s"),
    ];
    for (args, expected) in table {
        assert_eq!(error(args, &[]), *expected, "{args:?}");
    }
}

#[test]
fn glog_flags_are_accepted_with_one_warning() {
    let (_, warnings) = run(
        &["--logtostderr=false", "--log_dir=/var/log/k8s/flannel/", "-alsologtostderr", "-vmodule", "a=1", SILENT],
        &[("FLANNELD_STDERRTHRESHOLD", "2")],
    );
    assert_eq!(
        warnings,
        ["no effect: --logtostderr, --alsologtostderr, --stderrthreshold (environment variable \
             FLANNELD_STDERRTHRESHOLD), --log_dir, --vmodule; logs go to standard error, -v says \
             how much"]
    );
}

#[test]
fn help_and_version_go_before_mistakes() {
    for args in [&["-h"][..], &["--help"], &["-help"], &["-v", "x", "--help", "-nonsense"]] {
        let Ok(Invocation::ShowHelp(text)) = parse_strs(args, &[("FLANNELD_V", "x")]) else {
            panic!("{args:?}");
        };
        let headings = ["etcd:", "External interface:", "Lease:", "Files:", "Health:", "Logging:"];
        for heading in headings.iter().chain(&["Firewall and routes:", "Other:"]) {
            assert!(text.contains(heading), "{heading} in {text}");
        }
        for shown in ["--etcd-prefix <KEY>", "[default: /coreos.com/network]", "-v <LEVEL>"] {
            assert!(text.contains(shown), "{shown} in {text}");
        }
        assert!(text.ends_with(".\n"), "{text}");
        for hidden in ["--kubeconfig-file", "--log_dir"] {
            assert!(!text.contains(hidden), "{hidden} in {text}");
        }
    }
    for args in [["-version"], ["--version"], ["-V"]] {
        let Ok(Invocation::ShowVersion(text)) = parse_strs(&args, &[]) else {
            panic!("{args:?}");
        };
        assert_eq!(text, "flanneld 0.1.0\n");
    }
}
