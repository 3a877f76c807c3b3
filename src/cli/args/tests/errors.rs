//! What is refused, and in which words.

use proptest::prelude::*;

use super::super::flags::FLAGS;
use super::*;

#[test]
fn wrong_values_are_named_where_they_were_given() {
    let table: &[(Args, Env, &str)] = &[
        (&["-v", "x"], &[], "-v=\"x\": must be a number from 0 to 255"),
        (&[], &[("FLANNELD_V", "x")], "environment variable FLANNELD_V=\"x\": must be a number from 0 to 255"),
        (&[], &[("FLANNEL_ETCD", "a")], "environment variable FLANNEL_ETCD=\"a\": a needs a port: http://a:2379"),
        (
            &["-etcd-endpoints="],
            &[("FLANNEL_ETCD", "a:1")],
            "--etcd-endpoints=\"\": give at least one endpoint, like http://127.0.0.1:2379",
        ),
        (&["-etcd-prefix="], &[], "--etcd-prefix=\"\": must name a key, like /coreos.com/network"),
        (&["--subnet-file="], &[], "--subnet-file=\"\": must not be empty"),
        (&["--ip-masq=yes"], &[], "--ip-masq=\"yes\": must be true or false"),
        (&["--ip-masq="], &[], "--ip-masq=\"\": must be true or false"),
        (&["--iptables-forward-rules=no"], &[], "--iptables-forward-rules=\"no\": must be true or false"),
        (&["--iptables-resync=5s"], &[], "--iptables-resync=\"5s\": must be a whole number of seconds, 1 or more"),
        (&["--iptables-resync=0"], &[], "--iptables-resync=\"0\": must be a whole number of seconds, 1 or more"),
        (&["--logtostderr=x"], &[], "--logtostderr=\"x\": must be true or false"),
        (&["--healthz-port=65536"], &[], "--healthz-port=\"65536\": must be a port from 0 to 65535, where 0 means off"),
        (
            &["--iface-regex=a", "--iface-regex=("],
            &[],
            "--iface-regex=\"(\": must be a regular expression, but unclosed group",
        ),
    ];
    for (args, env, expected) in table {
        assert_eq!(error(args, env), *expected, "{args:?} {env:?}");
    }
}

#[test]
fn all_wrong_values_are_reported_together() {
    let error = parse_strs(&["-v=x", "--kube-subnet-mgr", "--public-ip=0.0.0.0"], &[("FLANNELD_HEALTHZ_IP", "h")]);
    let error = error.expect_err("four problems");
    assert_eq!(error.problems().len(), 4, "{error}");
    assert_eq!(error.to_string().lines().count(), 4);
}

#[test]
fn what_is_not_implemented_is_refused() {
    let table: &[(Args, Env, &str)] = &[
        (&["--public-ipv6=fd00::1"], &[], "--public-ipv6 is not implemented by this version: "),
        (&["--kube-subnet-mgr"], &[], "--kube-subnet-mgr is refused: this flanneld keeps its leases in etcd; "),
        (&["--set-node-network-unavailable=false"], &[], "--set-node-network-unavailable is refused: "),
        (&["--net-config-path=/x"], &[], "--net-config-path is refused: this flanneld keeps its leases in etcd; "),
        (
            &["-watch-networks"],
            &[],
            "--watch-networks is refused: flannel 0.7's multi-network and client/server modes are gone; run \
             one daemon a network, ",
        ),
        (&["-remote", "10.0.0.1:8888"], &[], "--remote is refused: flannel 0.7's"),
    ];
    for (args, env, expected) in table {
        let error = error(args, env);
        assert!(error.starts_with(expected), "{args:?} {env:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    run(&["--kube-subnet-mgr=false", "--watch-networks=F", "--kube-api-url="], &[]);
}

#[test]
fn unknown_flags_are_named_without_their_value() {
    let table: &[(&[&str], &str)] = &[
        (&["-etcd-prefx=/x"], "unknown flag --etcd-prefx: did you mean --etcd-prefix?"),
        (&["--etcd-pasword=s3cret"], "unknown flag --etcd-pasword: did you mean --etcd-password?"),
        (&["--etcd-pasword", "s3cret"], "unknown flag --etcd-pasword: did you mean --etcd-password?"),
        (&["-xyzzy"], "unknown flag --xyzzy: --help lists the flags"),
        (&["-v2"], "unknown flag --v2: did you mean -v?"),
        (&["-x"], "unknown flag --x: --help lists the flags"),
    ];
    for (args, expected) in table {
        assert_eq!(error(args, &[]), *expected, "{args:?}");
    }
}

#[test]
fn passwords_are_never_shown() {
    let secret = "s3cret";
    let with = |text: &str| text.replace("SECRET", secret);
    let table: &[(Args, Env)] = &[
        (&["--etcd-password=SECRET"], &[]),
        (&["-etcd-password", "SECRET", "-v", "x"], &[]),
        (&["-etcd-password", "a", "SECRET"], &[]),
        (&[], &[("FLANNELD_ETCD_PASSWORD", "SECRET")]),
        (&["--etcd-endpoints=http://root:SECRET@a:1"], &[]),
        (&["--etcd-endpoints", "root:SECRET@a:1,https://b"], &[]),
        (&[], &[("FLANNEL_ETCD", "\"https://root:SECRET@a:1\"")]),
        (&["--etcd-endpoint=http://root:SECRET@a:1"], &[]),
    ];
    for (args, env) in table {
        let args: Vec<String> = args.iter().map(|text| with(text)).collect();
        let env: Vec<(&str, String)> = env.iter().map(|&(name, text)| (name, with(text))).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let env: Vec<(&str, &str)> = env.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let error = parse_strs(&args, &env).expect_err("a password");
        assert!(!format!("{error} {error:?}").contains(secret), "{error}");
    }
}

/// One word or two, made of a flag's name and any value, sometimes a good one.
fn any_flag() -> impl Strategy<Value = Vec<String>> {
    let names: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    let value = prop_oneof![".{0,8}", "[0-9]{1,6}[smh]?", "[a-z/.]{1,8}", "(true|false)"];
    (prop::sample::select(names), any::<bool>(), value).prop_map(|(name, joined, value)| match joined {
        true => vec![format!("-{name}={value}")],
        false => vec![format!("--{name}"), value],
    })
}

proptest! {
    #[test]
    fn any_input_gives_checked_options_or_an_error(
        args in prop::collection::vec(any_flag(), 0..4),
        env in prop::collection::btree_map("FLANNELD?_[A-Z_]{0,12}", ".{0,8}", 0..4),
    ) {
        match parse(args.concat().into_iter().map(OsString::from), &env) {
            Ok(Invocation::Run(options, _)) => {
                prop_assert!(!options.etcd_endpoints.is_empty());
                prop_assert!(!options.settings.prefix.ends_with('/'));
                prop_assert!(!options.settings.leases.times.renew_margin.is_zero());
                prop_assert!(options.settings.leases.times.renew_margin < options.settings.leases.times.ttl);
            }
            Ok(other) => prop_assert!(false, "{other:?}"),
            Err(error) => prop_assert!(!error.problems().is_empty()),
        }
    }
}
