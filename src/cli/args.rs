//! The command line and the environment of the daemon, checked before anything is touched.
//!
//! Flags are flannel's, in Go's forms (`-x v`, `-x=v`, `--x`) as well as in the usual long form. A
//! flag on the command line wins over its environment variable (`FLANNELD_` and the name in
//! capitals), which wins over the default. Everything here is pure: arguments and environment come
//! in, a value or the list of all mistakes comes out.

mod access;
mod endpoints;
mod flags;
mod given;
mod go_flags;
mod refused;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::agent::firewall::FirewallSettings;
use crate::firewall::Masquerade;
use crate::model::foreign::line;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use regex::Regex;

use crate::store::etcd::Access;
use given::{Given, Origin};

/// The renewal margin when none is given and the TTL leaves room for it.
const DEFAULT_RENEW_MARGIN: Duration = Duration::from_secs(60 * 60);

/// What the daemon was asked to do; every value is checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where etcd answers, as `http://host:port` or `https://host:port` without a path; never empty.
    pub etcd_endpoints: Vec<String>,
    /// Whom to take for etcd, and as whom to speak to it. That the files exist is not checked yet.
    pub etcd_access: Access,
    /// Prefix of all keys, cleaned as Go's `path.Join` does: the config is at
    /// `{etcd_prefix}/config`. It never ends in a slash, so the root is the empty string; a missing
    /// leading slash stays missing.
    pub etcd_prefix: String,
    /// Names or addresses of the external interface, in order of preference; may be empty.
    pub iface: Vec<String>,
    /// Patterns for the address or the name of the external interface, tried after `iface`; may be
    /// empty.
    pub iface_regex: Vec<Regex>,
    /// Use the interface that the kernel routes this address to; tried last.
    pub iface_can_reach: Option<IpAddr>,
    /// Address that the other hosts send to, if not that of the interface; unicast.
    pub public_ip: Option<Ipv4Addr>,
    /// The file that tells Docker and others about the subnet.
    pub subnet_file: PathBuf,
    /// The file with Docker's options; `None` writes none.
    pub docker_opts_file: Option<PathBuf>,
    /// Directory for what is remembered between runs.
    pub state_dir: PathBuf,
    /// Time to live of the own lease: whole seconds, 2 s to 30 days.
    pub subnet_lease_ttl: Duration,
    /// How long before its expiry the lease is renewed; more than zero, less than
    /// `subnet_lease_ttl`.
    pub renew_margin: Duration,
    /// Whether the lease is given back on SIGTERM and SIGINT.
    pub release_lease_on_exit: bool,
    /// How long the entries of peers stay that vanish in a way that does not look like their own doing: 0 s to 30
    /// days.
    pub peer_hold: Duration,
    /// What the firewall is to hold.
    pub firewall: FirewallSettings,
    /// Whether packets to addresses of our subnet that nobody has are dropped by a blackhole route.
    pub blackhole_route: bool,
    /// Whether packets get their checksums before they reach our device.
    pub tx_checksum_off: bool,
    /// Where health is served; `None` serves none.
    pub healthz: Option<SocketAddr>,
    /// 0 logs at level info, 1 to 4 debug, 5 and above trace.
    pub verbosity: u8,
}

/// What a command line asks for.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// Run the daemon; the strings are warnings, to be logged once logging works.
    Run(Box<Options>, Vec<String>),
    /// Print this text and succeed.
    ShowHelp(String),
    /// Print this text and succeed.
    ShowVersion(String),
}

/// Everything that is wrong with a command line and its environment.
///
/// Displays as one line a problem. A line names the flag, the environment variable if the value
/// came from there, the value and what would be right. Values that may hold a password are never
/// shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgsError {
    problems: Vec<String>,
}

impl ArgsError {
    fn one(problem: impl Into<String>) -> Self {
        Self { problems: vec![problem.into()] }
    }

    /// The problems, one line each; at least one.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.problems.iter().map(|problem| line(problem)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ArgsError {}

/// Reads a command line (without the program's name) and the environment.
///
/// # Errors
///
/// An unknown flag, a flag without its value, or an argument that is no flag is reported alone;
/// otherwise all values that are wrong and all flags that are refused are reported together.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: &BTreeMap<String, String>,
) -> Result<Invocation, ArgsError> {
    let words = go_flags::to_long_form(args)?;
    let matches = match flags::command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => return not_matched(&error),
    };
    let mut given = Given::new(&matches, env);
    let mut warnings = refused::check(&mut given);
    let options = options(&mut given);
    let problems = given.into_problems();
    match options {
        Some(options) if problems.is_empty() => {
            warnings.extend(access::warnings(&options.etcd_endpoints, &options.etcd_access));
            Ok(Invocation::Run(Box::new(options), warnings))
        }
        _ => Err(ArgsError { problems }),
    }
}

/// The definition of the command line, as far as `--help` shows it: for manuals and completions.
pub fn command() -> clap::Command {
    flags::visible()
}

/// Turns what clap reports instead of matches into a text to print or an error.
fn not_matched(error: &clap::Error) -> Result<Invocation, ArgsError> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::DisplayHelp => Ok(Invocation::ShowHelp(printed(error))),
        ErrorKind::DisplayVersion => Ok(Invocation::ShowVersion(printed(error))),
        ErrorKind::UnknownArgument => {
            let flag = text(ContextKind::InvalidArg).unwrap_or("on the command line");
            let hint = match text(ContextKind::SuggestedArg) {
                Some(similar) => {
                    format!("did you mean {}?", flags::dashed(similar.trim_start_matches('-')))
                }
                None => "--help lists the flags".to_owned(),
            };
            Err(ArgsError::one(format!("unknown flag {flag}: {hint}")))
        }
        _ => {
            let rendered = error.render().to_string();
            let line = rendered.lines().next().unwrap_or_default();
            Err(ArgsError::one(line.trim_start_matches("error: ")))
        }
    }
}

/// The text to print, ending in one newline.
fn printed(error: &clap::Error) -> String {
    format!("{}\n", error.render().to_string().trim_end())
}

/// Reads every setting, so that all mistakes are found; `None` if there was one.
fn options(given: &mut Given) -> Option<Options> {
    let etcd_endpoints = given.read("etcd-endpoints", endpoints::parse);
    let etcd_access = access::read(given);
    let etcd_prefix = given.read("etcd-prefix", values::key_prefix);
    let iface = given.read_each("iface", values::interface);
    let iface_regex = given.read_each("iface-regex", values::regex);
    let iface_can_reach = given.read("iface-can-reach", values::optional(values::ip));
    let public_ip = given.read("public-ip", values::optional(values::unicast_v4));
    let subnet_file = given.read("subnet-file", values::path);
    let docker_opts_file = given.read("docker-opts-file", values::optional(values::path));
    let state_dir = given.read("state-dir", values::path);
    let lease_times = lease_times(given);
    let release_lease_on_exit = given.read("release-lease-on-exit", values::boolean);
    let peer_hold = given.read("peer-hold", values::optional(values::peer_hold));
    let firewall = firewall(given);
    let blackhole_route = given.read("ip-blackhole-route", values::boolean);
    let tx_checksum_off = given.read("vxlan-tx-checksum-off", values::boolean);
    let healthz = healthz(given);
    let verbosity = given.read("v", values::verbosity);
    let (subnet_lease_ttl, renew_margin) = lease_times?;
    Some(Options {
        etcd_endpoints: etcd_endpoints?,
        etcd_access: etcd_access?,
        etcd_prefix: etcd_prefix?,
        iface: iface?,
        iface_regex: iface_regex?,
        iface_can_reach: iface_can_reach?,
        public_ip: public_ip?,
        subnet_file: subnet_file?,
        docker_opts_file: docker_opts_file?,
        state_dir: state_dir?,
        subnet_lease_ttl,
        renew_margin,
        release_lease_on_exit: release_lease_on_exit?,
        peer_hold: peer_hold?.unwrap_or(subnet_lease_ttl),
        firewall: firewall?,
        blackhole_route: blackhole_route?,
        tx_checksum_off: tx_checksum_off?,
        healthz: healthz?,
        verbosity: verbosity?,
    })
}

/// The lease's TTL and renewal margin, which bound each other.
fn lease_times(given: &mut Given) -> Option<(Duration, Duration)> {
    const MARGIN: &str = "subnet-lease-renew-margin";
    let ttl = given.read("subnet-lease-ttl", values::lease_ttl);
    let from_default = matches!(given.value(MARGIN).origin, Origin::Default);
    let margin = given.read(MARGIN, |text| {
        let margin = values::renew_margin(text)?;
        match ttl {
            Some(ttl) if !from_default && margin >= ttl => {
                let ttl = humantime::format_duration(ttl);
                Err(format!("must be shorter than the lease, whose --subnet-lease-ttl is {ttl}"))
            }
            _ => Ok(margin),
        }
    });
    let ttl = ttl?;
    if from_default && ttl <= DEFAULT_RENEW_MARGIN {
        return Some((ttl, ttl / 3));
    }
    Some((ttl, margin?))
}

/// What the firewall is to hold.
fn firewall(given: &mut Given) -> Option<FirewallSettings> {
    let masquerade = given.read("ip-masq", values::boolean);
    let plain_ports = given.read("ip-masq-fully-random-disable", values::boolean);
    let forward = given.read("iptables-forward-rules", values::boolean);
    let docker_user = given.read("iptables-docker-user-rules", values::boolean);
    let resync = given.read("iptables-resync", values::seconds);
    let how = Masquerade { random_fully: !plain_ports? };
    Some(FirewallSettings {
        masquerade: masquerade?.then_some(how),
        forward: forward?,
        docker_user: docker_user?,
        resync: resync?,
    })
}

/// Where health is served, if anywhere.
fn healthz(given: &mut Given) -> Option<Option<SocketAddr>> {
    let ip = given.read("healthz-ip", values::ip);
    let port = given.read("healthz-port", values::port);
    let (ip, port) = (ip?, port?);
    Some((port != 0).then(|| SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests;
