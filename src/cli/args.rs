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
use std::net::SocketAddr;
use std::time::Duration;

use crate::agent::Settings;
use crate::agent::firewall::FirewallSettings;
use crate::agent::settings::{DeviceSettings, FileSettings, LeaseSettings, LeaseTimes};
use crate::firewall::Masquerade;
use crate::model::foreign::line;
use crate::model::iface::IfaceRules;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::store::etcd::Access;
use given::{Given, Origin};

/// The renewal margin when none is given and the TTL leaves room for it.
const DEFAULT_RENEW_MARGIN: Duration = Duration::from_secs(60 * 60);

/// The options of the daemon. Every value is checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where etcd answers, as `http://host:port` or `https://host:port` without a path; never empty.
    pub etcd_endpoints: Vec<String>,
    /// How etcd proves itself, and how flanneld proves itself to etcd. Nothing checks yet whether the files exist.
    pub etcd_access: Access,
    /// The settings of the agent. The prefix is cleaned as Go's `path.Join` does: the config is at `{prefix}/config`. The
    /// prefix never ends in a slash, so the root is the empty string, and a missing leading slash stays missing. The TTL
    /// is whole seconds, 2 s to 30 days; the renewal margin is more than zero and less than the TTL; peers are held
    /// 0 s to 30 days.
    pub settings: Settings,
    /// Where health is served; `None` serves none.
    pub healthz: Option<SocketAddr>,
    /// 0 logs at level info, 1 to 4 debug, 5 and above trace.
    pub verbosity: u8,
}

/// The request that a command line makes.
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

/// Reads every option, so that all mistakes are found; `None` if there was one.
fn options(given: &mut Given) -> Option<Options> {
    let etcd_endpoints = given.read("etcd-endpoints", endpoints::parse);
    let etcd_access = access::read(given);
    let settings = settings(given);
    let healthz = healthz(given);
    let verbosity = given.read("v", values::verbosity);
    Some(Options {
        etcd_endpoints: etcd_endpoints?,
        etcd_access: etcd_access?,
        settings: settings?,
        healthz: healthz?,
        verbosity: verbosity?,
    })
}

fn settings(given: &mut Given) -> Option<Settings> {
    let prefix = given.read("etcd-prefix", values::key_prefix);
    let iface = iface(given);
    let files = files(given);
    let leases = leases(given);
    let firewall = firewall(given);
    let device = device(given);
    Some(Settings {
        prefix: prefix?,
        iface: iface?,
        leases: leases?,
        files: files?,
        firewall: firewall?,
        device: device?,
    })
}

fn iface(given: &mut Given) -> Option<IfaceRules> {
    let names = given.read_each("iface", values::interface);
    let regexes = given.read_each("iface-regex", values::regex);
    let can_reach = given.read("iface-can-reach", values::optional(values::ip));
    let public_ip = given.read("public-ip", values::optional(values::unicast_v4));
    Some(IfaceRules { names: names?, regexes: regexes?, can_reach: can_reach?, public_ip: public_ip? })
}

fn files(given: &mut Given) -> Option<FileSettings> {
    let subnet_env = given.read("subnet-file", values::path);
    let docker_opts = given.read("docker-opts-file", values::optional(values::path));
    let state_dir = given.read("state-dir", values::path);
    Some(FileSettings { subnet_env: subnet_env?, docker_opts: docker_opts?, state_dir: state_dir? })
}

fn leases(given: &mut Given) -> Option<LeaseSettings> {
    let times = lease_times(given);
    let release_on_exit = given.read("release-lease-on-exit", values::boolean);
    let peer_hold = given.read("peer-hold", values::optional(values::peer_hold));
    let times = times?;
    Some(LeaseSettings { times, peer_hold: peer_hold?.unwrap_or(times.ttl), release_on_exit: release_on_exit? })
}

fn device(given: &mut Given) -> Option<DeviceSettings> {
    let blackhole_route = given.read("ip-blackhole-route", values::boolean);
    let tx_checksum_off = given.read("vxlan-tx-checksum-off", values::boolean);
    Some(DeviceSettings { blackhole_route: blackhole_route?, tx_checksum_off: tx_checksum_off? })
}

/// The lease's TTL and renewal margin, which bound each other.
fn lease_times(given: &mut Given) -> Option<LeaseTimes> {
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
        return Some(LeaseTimes { ttl, renew_margin: ttl / 3 });
    }
    Some(LeaseTimes { ttl, renew_margin: margin? })
}

/// The rules that the firewall should hold.
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
