//! TLS and users of etcd.

use super::*;
use crate::store::etcd::{IdentityFiles, Password, Secret, User};

const FILES: Args = &["--etcd-cafile=ca", "--etcd-certfile=c", "-etcd-keyfile", "k", SILENT];

fn user(password: Password) -> Option<User> {
    Some(User { name: "flannel".into(), password })
}

#[test]
fn tls_and_users_can_be_given_on_the_command_line_and_in_the_environment() {
    let identity = Some(IdentityFiles { cert_file: "c".into(), key_file: "k".into() });
    let (given, warnings) = run(&[FILES, &["--etcd-endpoints=https://a:1"]].concat(), &[]);
    let expected = Access { ca_file: Some("ca".into()), identity, user: None };
    assert_eq!((given.etcd_access, warnings), (expected.clone(), Vec::new()));
    let env = [
        ("FLANNELD_ETCD_CAFILE", "ca"),
        ("FLANNELD_ETCD_CERTFILE", "c"),
        ("FLANNELD_ETCD_KEYFILE", "k"),
        ("FLANNELD_ETCD_USERNAME", "flannel"),
        ("FLANNELD_ETCD_PASSWORD_FILE", "p"),
        ("FLANNELD_ETCD_PASSWORD", ""),
    ];
    let expected = Access { user: user(Password::File("p".into())), ..expected };
    assert_eq!(run(&[], &env).0.etcd_access, expected);
    let (given, _) = run(&["--etcd-username=flannel", "-etcd-password", "-s3=cret,@ "], &[]);
    assert_eq!(given.etcd_access.user, user(Password::Given(Secret::new("-s3=cret,@ "))));
    assert_eq!(run(&["--etcd-cafile=", "--etcd-username=", "--etcd-password="], &[]).0.etcd_access, Access::default());
}

#[test]
fn what_does_not_go_alone_says_what_it_needs() {
    let table: &[(Args, Env, &str)] = &[
        (&["--etcd-certfile=c"], &[], "--etcd-certfile needs --etcd-keyfile, the key of that certificate"),
        (&["--etcd-keyfile=k"], &[], "--etcd-keyfile needs --etcd-certfile, the certificate of that key"),
        (
            &[],
            &[("FLANNELD_ETCD_KEYFILE", "k")],
            "--etcd-keyfile (environment variable FLANNELD_ETCD_KEYFILE) needs --etcd-certfile, the certificate of that key",
        ),
        (&["--etcd-username=u"], &[], "--etcd-username needs --etcd-password-file"),
        (&["--etcd-password=s3cret"], &[], "--etcd-password needs --etcd-username"),
        (&["--etcd-password-file=p"], &[], "--etcd-password-file needs --etcd-username"),
        (
            &["--etcd-username=u", "--etcd-password-file=p"],
            &[("FLANNELD_ETCD_PASSWORD", "s3cret")],
            "--etcd-password (environment variable FLANNELD_ETCD_PASSWORD) and --etcd-password-file are both given: give \
             one of them",
        ),
    ];
    for (args, env, expected) in table {
        assert_eq!(error(args, env), *expected, "{args:?} {env:?}");
    }
}

#[test]
fn what_goes_over_the_network_in_the_clear_is_warned_about() {
    let user = ["--etcd-username=u", "--etcd-password-file=p"];
    let table: &[(&[&str], Args, &[&str])] = &[
        (&["--etcd-endpoints=https://a:1"], &user, &[]),
        (
            &["--etcd-endpoints=http://a:1,b:2"],
            &[],
            &[
                "no effect: --etcd-cafile, --etcd-certfile, --etcd-keyfile; TLS is used with https:// endpoints only, not with \
               http://a:1, http://b:2",
            ],
        ),
        (
            &["--etcd-endpoints=https://a:1,http://b:2"],
            &user,
            &[
                "connections to http://b:2 are not encrypted, those to other members of etcd are",
                "the password of the user of etcd goes to http://b:2 unencrypted",
            ],
        ),
    ];
    for (endpoints, more, expected) in table {
        assert_eq!(run(&[FILES, endpoints, more].concat(), &[]).1, *expected, "{endpoints:?}");
    }
}

#[test]
fn options_do_not_show_the_password() {
    let (options, _) = run(&["--etcd-username=u", "--etcd-password=s3cret"], &[]);
    let shown = format!("{options:?}");
    assert!(shown.contains("(hidden)") && !shown.contains("s3cret"), "{shown}");
}
