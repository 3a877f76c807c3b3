//! `flanneld docker-opts` as units and scripts meet it: the real program, real files, a real shell that reads them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const FLANNELD: &str = env!("CARGO_BIN_EXE_flanneld");

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.46.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
const MASQUERADING: &str =
    "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.46.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DUAL_STACK: &str = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.46.1/24\n\
    FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

const INDIVIDUAL: &str = "DOCKER_OPT_BIP=\"--bip=172.30.46.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
    DOCKER_OPT_MTU=\"--mtu=1450\"\n";
const COMBINED: &str = "DOCKER_OPTS=\" --bip=172.30.46.1/24 --ip-masq=true --mtu=1450\"\n";

/// A directory with a `subnet.env`, and where the output goes.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(subnet_env: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("subnet.env"), subnet_env).expect("subnet.env");
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `docker-opts` on the files of this directory, with nothing else in the environment.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(FLANNELD);
        command.env_clear().arg("docker-opts").arg("-f").arg(self.path("subnet.env"));
        command.arg("-d").arg(self.path("out")).args(words);
        command
    }

    fn out(&self) -> String {
        fs::read_to_string(self.path("out")).expect("the output")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("the directory");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect()
    }
}

#[track_caller]
fn succeeded(command: &mut Command) -> Output {
    let output = command.output().expect("it runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*err), (Some(0), ""), "{command:?}");
    output
}

/// The one line that it says when it fails.
#[track_caller]
fn complaint(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{command:?}: {err}");
    assert!(err.lines().count() == 1 && err.ends_with('\n'), "{command:?}: {err}");
    err
}

#[test]
fn every_option_writes_what_the_script_writes_byte_for_byte() {
    let no_masq_individual = "DOCKER_OPT_BIP=\"--bip=172.30.46.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n";
    let no_masq_combined = "DOCKER_OPTS=\" --bip=172.30.46.1/24 --mtu=1450\"\n";
    let network = "DOCKER_NETWORK_OPTIONS=\" --bip=172.30.46.1/24 --ip-masq=true --mtu=1450\"\n";
    let rows: &[(&[&str], [&str; 2])] = &[
        (&[], [INDIVIDUAL, COMBINED]),
        (&["-i"], [INDIVIDUAL, ""]),
        (&["-c"], ["", COMBINED]),
        (&["-i", "-c"], [INDIVIDUAL, COMBINED]),
        (&["-ci"], [INDIVIDUAL, COMBINED]),
        (&["-m"], [no_masq_individual, no_masq_combined]),
        (&["-im"], [no_masq_individual, ""]),
        (&["-m", "-c"], ["", no_masq_combined]),
        (&["-k", "DOCKER_NETWORK_OPTIONS"], [INDIVIDUAL, network]),
        (&["-ckDOCKER_NETWORK_OPTIONS"], ["", network]),
        (&["-i", "-k", "DOCKER_NETWORK_OPTIONS"], [INDIVIDUAL, ""]),
        (&["-k", "X", "-c", "-c", "-k", "DOCKER_NETWORK_OPTIONS"], ["", network]),
    ];
    for (words, expected) in rows {
        let place = Place::new(SUBNET_ENV);
        succeeded(&mut place.command(words));
        assert_eq!(place.out(), expected.concat(), "{words:?}");
    }
}

#[test]
fn every_subnet_env_gives_what_the_script_makes_of_it() {
    let masquerading = "DOCKER_OPT_BIP=\"--bip=172.30.46.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
        DOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=172.30.46.1/24 --ip-masq=false --mtu=1450\"\n";
    // The script leaves IPv6 out.
    let dual = "DOCKER_OPT_BIP=\"--bip=172.30.46.1/24\"\nDOCKER_OPT_FIXED_CIDR_V6=\"--fixed-cidr-v6=fc00:0:0:7::/64\"\n\
        DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_IPV6=\"--ipv6=true\"\nDOCKER_OPT_MTU=\"--mtu=1430\"\n\
        DOCKER_OPTS=\" --bip=172.30.46.1/24 --fixed-cidr-v6=fc00:0:0:7::/64 --ip-masq=false --ipv6=true --mtu=1430\"\n";
    let bare = "DOCKER_OPT_BIP=\"--bip=10.1.2.5/20\"\nDOCKER_OPTS=\" --bip=10.1.2.5/20\"\n";
    for (subnet_env, expected) in [
        (MASQUERADING, masquerading),
        (DUAL_STACK, dual),
        ("FLANNEL_SUBNET=10.1.2.5/20\n", bare),
        ("# by hand\nFLANNEL_SUBNET=10.1.1.1/24\n\nFLANNEL_SUBNET='10.1.2.5/20'", bare),
        ("FLANNEL_SUBNET=\"10.1.2.5/20\"\nFLANNEL_MTU=\nFLANNEL_IPMASQ=\n", bare),
    ] {
        let place = Place::new(subnet_env);
        succeeded(&mut place.command(&[]));
        assert_eq!(place.out(), expected, "{subnet_env}");
    }
}

#[test]
fn what_the_key_holds_in_the_environment_stays_in_front_and_other_variables_are_left_out() {
    let place = Place::new(SUBNET_ENV);
    let environment = [("DOCKER_OPTS", "--log-level=warn"), ("DOCKER_OPT_DNS", "--dns=1.1.1.1"), ("FLANNEL_MTU", "99")];
    succeeded(place.command(&[]).envs(environment));
    let combined = "DOCKER_OPTS=\"--log-level=warn  --bip=172.30.46.1/24 --ip-masq=true --mtu=1450\"\n";
    assert_eq!(place.out(), format!("{INDIVIDUAL}{combined}"));
    succeeded(place.command(&["-c", "-k", "OTHER"]).envs(environment));
    assert_eq!(place.out(), COMBINED.replace("DOCKER_OPTS", "OTHER"));
    succeeded(place.command(&["-c"]).env("DOCKER_OPTS", ""));
    assert_eq!(place.out(), COMBINED);
}

#[test]
fn a_shell_reads_any_previous_value_back_as_it_was() {
    for value in [
        "--label a=\"b c\" --dns 'x'",
        "$HOME ${HOME} $(touch pwned) `touch pwned`",
        "back\\slash\\n \\\" \\$x",
        "two\nlines\"; touch pwned #",
        "{{.Name}} ä !! * ?",
    ] {
        let place = Place::new(SUBNET_ENV);
        succeeded(place.command(&["-c"]).env("DOCKER_OPTS", value));
        let mut shell = Command::new("/bin/sh");
        shell.current_dir(place.dir.path()).env_clear().args(["-c", ". ./out; printf %s \"$DOCKER_OPTS\""]);
        let read = String::from_utf8(succeeded(&mut shell).stdout).expect("text");
        assert_eq!(read, format!("{value}  --bip=172.30.46.1/24 --ip-masq=true --mtu=1450"));
        assert_eq!(place.names(), ["out", "subnet.env"]);
    }
}

#[test]
fn under_the_scripts_name_old_units_work_unchanged() {
    let place = Place::new(SUBNET_ENV);
    let script = place.path("libexec/flannel/mk-docker-opts.sh");
    fs::create_dir_all(script.parent().expect("a parent")).expect("a directory");
    symlink(FLANNELD, &script).expect("a link");
    let mut command = Command::new(&script);
    command.env_clear().arg("-f").arg(place.path("subnet.env"));
    command.args(["-k", "DOCKER_NETWORK_OPTIONS", "-d"]).arg(place.path("run/flannel/docker"));
    succeeded(&mut command);
    let written = fs::read_to_string(place.path("run/flannel/docker")).expect("the file");
    assert_eq!(written, INDIVIDUAL.to_owned() + &COMBINED.replace("DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS"));
    let mode = fs::metadata(place.path("run/flannel/docker")).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    // It is the subcommand already: its name is no word of it.
    let error = complaint(Command::new(&script).arg("docker-opts"));
    assert!(error.contains("'docker-opts'"), "{error}");
}

#[test]
fn a_wrong_subnet_env_is_named_and_nothing_is_written() {
    for (subnet_env, says) in [
        ("FLANNEL_MTU=1450\n", "FLANNEL_SUBNET is missing, such as FLANNEL_SUBNET=10.5.72.1/24"),
        ("FLANNEL_SUBNET=ten\n", "FLANNEL_SUBNET is \"ten\", not the address of a bridge"),
        ("FLANNEL_SUBNET=10.5.72.0/24\n", "FLANNEL_SUBNET is \"10.5.72.0/24\", not"),
        ("FLANNEL_SUBNET=10.5.72.1/24 --insecure-registry=x\n", "FLANNEL_SUBNET is \"10.5.72.1/24 --insecure"),
        ("FLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=big\n", "FLANNEL_MTU is \"big\", not a number of bytes from 68"),
        ("FLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_IPMASQ=1\n", "FLANNEL_IPMASQ is \"1\", not true or false"),
    ] {
        let place = Place::new(subnet_env);
        let error = complaint(&mut place.command(&[]));
        assert!(error.contains(says) && error.contains("/subnet.env"), "{error}");
        assert_eq!(place.names(), ["subnet.env"]);
        fs::write(place.path("out"), "as it was").expect("a file");
        complaint(&mut place.command(&[]));
        assert_eq!((place.out().as_str(), place.names().len()), ("as it was", 2));
    }
}

#[test]
fn a_file_that_cannot_be_read_or_written_is_named() {
    let place = Place::new(SUBNET_ENV);
    for path in [place.path("missing"), place.dir.path().to_owned()] {
        let error = complaint(place.command(&["-f"]).arg(&path));
        assert!(error.contains(&format!("{} cannot be read", path.display())), "{error}");
    }
    for path in
        [Path::new("/proc/self/docker"), place.dir.path(), &place.path("subnet.env/out"), Path::new("/dev/null")]
    {
        let error = complaint(place.command(&["-d"]).arg(path));
        assert!(error.contains(&format!("{} cannot be written", path.display())), "{error}");
    }
    assert_eq!(place.names(), ["subnet.env"]);
}

#[test]
fn a_wrong_command_line_is_named_and_nothing_is_written() {
    let place = Place::new(SUBNET_ENV);
    for (words, says) in [
        (&["-x"][..], "'-x'"),
        (&["--ip-masq"], "'--ip-masq'"),
        (&["word"], "'word'"),
        (&["-k"], "'-k <KEY>'"),
        (&["-k", "A-B"], "'A-B' for '-k <KEY>': not the name of a variable"),
        (&["-k", "1A"], "'1A'"),
        (&["-k", ""], "-k <KEY>"),
        (&["-k", "-i"], "'-i'"),
        (&["-f", ""], "'-f <FILE>'"),
        (&["-d", ""], "'-d <FILE>'"),
    ] {
        let error = complaint(&mut place.command(words));
        assert!(error.contains(says) && error.contains("--help lists the options"), "{words:?}: {error}");
    }
    let no_text = OsStr::from_bytes(b"a\xff");
    let error = complaint(place.command(&[]).env("DOCKER_OPTS", no_text));
    assert!(error.contains("environment variable DOCKER_OPTS is \"a\\xFF\", which is not valid UTF-8"), "{error}");
    assert_eq!(place.names(), ["subnet.env"]);
    succeeded(place.command(&["-i"]).env("DOCKER_OPTS", no_text).env("FLANNELD_IFACE", no_text));
    assert_eq!(place.out(), INDIVIDUAL);
}

#[test]
fn help_is_printed_and_standard_output_shows_what_would_be_written() {
    let place = Place::new(SUBNET_ENV);
    let help = |word| String::from_utf8(succeeded(&mut place.command(&[word])).stdout).expect("text");
    assert_eq!(help("-h"), help("--help"));
    for part in ["-f <", "-d <", "-i ", "-c ", "-k <", "-m ", "/run/flannel/subnet.env", "/run/docker_opts.env"] {
        assert!(help("-h").contains(part), "{part}");
    }
    let output = succeeded(&mut place.command(&["-d", "/dev/stdout"]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{INDIVIDUAL}{COMBINED}"));
    assert_eq!(place.names(), ["subnet.env"]);
}

#[test]
fn only_the_first_word_is_a_subcommand() {
    let place = Place::new(SUBNET_ENV);
    let output = Command::new(FLANNELD).env_clear().args(["-v=1", "docker-opts"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("docker-opts") && error.contains("flanneld --help"), "{error}");
    assert_eq!(place.names(), ["subnet.env"]);
}
