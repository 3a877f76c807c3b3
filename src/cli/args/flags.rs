//! All flags in one table. The parser, the help and the names of the environment variables are made from it.

use clap::{Arg, ArgAction, Command, ValueHint};

const ETCD: &str = "etcd";
const INTERFACE: &str = "External interface";
const LEASE: &str = "Lease";
const FILES: &str = "Files";
const FIREWALL: &str = "Firewall and routes";
const DEVICE: &str = "VXLAN device";
const HEALTH: &str = "Health";
const LOGGING: &str = "Logging";
const OTHER: &str = "Other";
/// Not in the help; accepted or refused according to the role.
const HIDDEN: &str = "";

/// Whether a flag takes a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Arity {
    /// `--flag` or `--flag=BOOL`; never takes the next argument.
    Bool,
    /// Needs a value, `--flag=VALUE` or `--flag VALUE`; the text names the value in the help.
    Value(&'static str),
}

/// How a flag is treated when it is given.
#[derive(Clone, Copy)]
pub(super) enum Role {
    /// Read into the options.
    Setting,
    /// A flag of glog or klog: accepted without effect, and named in one warning.
    Glog,
    /// A flag of a feature that does not exist yet; the text says what to do instead.
    Later(&'static str),
    /// A flag of flannel's Kubernetes mode.
    Kubernetes,
    /// A flag of the multi-network or client/server mode of flannel 0.7.
    MultiNetwork,
}

/// One flag. Its default is written as a user would write it; an empty text means no default.
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) arity: Arity,
    pub(super) default: &'static str,
    pub(super) role: Role,
    repeatable: bool,
    heading: &'static str,
    help: &'static str,
}

const fn value(name: &'static str, value_name: &'static str, default: &'static str) -> Flag {
    let arity = Arity::Value(value_name);
    Flag { name, arity, default, role: Role::Setting, repeatable: false, heading: HIDDEN, help: "" }
}

const fn switch(name: &'static str, default: &'static str) -> Flag {
    let arity = Arity::Bool;
    Flag { name, arity, default, role: Role::Setting, repeatable: false, heading: HIDDEN, help: "" }
}

impl Flag {
    const fn help(self, heading: &'static str, help: &'static str) -> Self {
        Self { heading, help, ..self }
    }

    const fn role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    const fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }

    fn to_arg(&self) -> Arg {
        let help = match self.default {
            "" => self.help.to_owned(),
            default => format!("{}\n[default: {default}]", self.help),
        };
        let arg = Arg::new(self.name).help(help).help_heading(self.heading);
        let arg = arg.hide(self.heading == HIDDEN);
        let arg = match self.name.chars().next() {
            Some(letter) if self.name.len() == 1 => arg.short(letter).alias(self.name),
            _ => arg.long(self.name),
        };
        let arg = match self.arity {
            Arity::Bool => arg.value_name("BOOL").num_args(0..=1).require_equals(true).value_hint(ValueHint::Other),
            Arity::Value(value_name) => arg.value_name(value_name).value_hint(hint(value_name)),
        };
        match self.repeatable {
            true => arg.action(ArgAction::Append),
            false => arg.action(ArgAction::Set).overrides_with(self.name),
        }
    }
}

/// The kind of value that a shell completes.
fn hint(value_name: &str) -> ValueHint {
    match value_name {
        "FILE" => ValueHint::FilePath,
        "DIR" => ValueHint::DirPath,
        _ => ValueHint::Other,
    }
}

/// All flags, in the order of the help.
pub(super) static FLAGS: &[Flag] = &[
    value("etcd-endpoints", "URLS", "http://127.0.0.1:4001,http://127.0.0.1:2379")
        .help(ETCD, "Endpoints of etcd: http://HOST:PORT or https://HOST:PORT, separated by commas"),
    value("etcd-prefix", "KEY", "/coreos.com/network")
        .help(ETCD, "Prefix of all keys: the config is at KEY/config, the leases are below KEY/subnets/"),
    value("etcd-cafile", "FILE", "").help(
        ETCD,
        "CA certificates in PEM form that etcd's certificate must be signed by, for https://\n\
         [default: those of the system]",
    ),
    value("etcd-certfile", "FILE", "")
        .help(ETCD, "Client certificate in PEM form, if etcd asks for one; read again when it changes"),
    value("etcd-keyfile", "FILE", "").help(ETCD, "Key of the client certificate in PEM form, unencrypted"),
    value("etcd-username", "NAME", "").help(ETCD, "User of etcd, if it has authentication enabled"),
    value("etcd-password-file", "FILE", "").help(
        ETCD,
        "File that holds the user's password and nothing else but a newline; read again when\n\
         etcd refuses it",
    ),
    value("etcd-password", "PASSWORD", "")
        .help(ETCD, "The password itself. Every user of this host can see it; prefer --etcd-password-file"),
    value("iface", "NAME|IP", "").repeatable().help(
        INTERFACE,
        "Interface to reach the other hosts through, by name or address; may be given\n\
         several times, the first match is used\n\
         [default: the interface of the default route]",
    ),
    value("iface-regex", "REGEX", "")
        .repeatable()
        .help(INTERFACE, "As --iface, but a pattern for its address or its name; tried after --iface"),
    value("iface-can-reach", "IP", "").help(INTERFACE, "Use the interface that the kernel routes IP to; tried last"),
    value("public-ip", "IPV4", "")
        .help(INTERFACE, "Address that the other hosts send to\n[default: the interface's own address]"),
    value("subnet-lease-ttl", "DURATION", "24h")
        .help(LEASE, "How long the subnet stays reserved for this host after the last renewal: 2s to 30days"),
    value("subnet-lease-renew-margin", "MINUTES|DURATION", "60").help(
        LEASE,
        "How long before its expiry the lease is renewed, in minutes or with a unit. If the flag is\n\
         not given and the TTL is at most 24h: a third of the TTL",
    ),
    switch("release-lease-on-exit", "false").help(
        LEASE,
        "Give the subnet back on SIGTERM and SIGINT: the other hosts remove their routes to it\n\
         at once, and any host may take it",
    ),
    value("peer-hold", "DURATION", "").help(
        LEASE,
        "How long to keep the routes to hosts whose leases disappeared although the hosts did not\n\
         leave, for example because etcd was wiped; 0s keeps none\n\
         [default: the TTL of the lease]",
    ),
    value("subnet-file", "FILE", "/run/flannel/subnet.env")
        .help(FILES, "Where to write FLANNEL_SUBNET, FLANNEL_MTU and the like"),
    value("docker-opts-file", "FILE", "/run/docker_opts.env")
        .help(FILES, "Where to write Docker's options, DOCKER_OPT_BIP and the like; empty for nowhere"),
    value("state-dir", "DIR", "/var/lib/flannel").help(
        FILES,
        "Where to remember the MAC address and the lease between runs. If the flag is not given,\n\
         systemd's $STATE_DIRECTORY is used before the default",
    ),
    value("healthz-ip", "IP", "0.0.0.0").help(HEALTH, "Address to serve /healthz and /readyz on"),
    value("healthz-port", "PORT", "0").help(HEALTH, "Port to serve /healthz and /readyz on; 0 serves none"),
    value("v", "LEVEL", "0")
        .help(LOGGING, "How much to log: 0 for normal operation, 1 to 4 for debugging, 5 and more for everything"),
    switch("ip-masq", "false")
        .help(FIREWALL, "Masquerade packets that leave the overlay; Docker is then configured not to"),
    switch("ip-masq-fully-random-disable", "false")
        .help(FIREWALL, "Do not choose the source ports of such packets at random"),
    switch("iptables-forward-rules", "true")
        .help(FIREWALL, "Accept packets from and to the overlay in the FORWARD chain"),
    switch("iptables-docker-user-rules", "false").help(
        FIREWALL,
        "Accept packets from other hosts to this host's containers in Docker's chain DOCKER-USER,\n\
         behind your own rules there: Docker 28 and later otherwise drop packets to ports\n\
         that are not published",
    ),
    value("iptables-resync", "SECONDS", "5")
        .help(FIREWALL, "How often to check the rules if the kernel does not report changes to them"),
    switch("ip-blackhole-route", "false").help(
        FIREWALL,
        "Drop packets to unused addresses of this host's subnet, by a blackhole route that matches\n\
         after all others",
    ),
    switch("vxlan-tx-checksum-off", "false").help(
        DEVICE,
        "Let the CPU compute the checksums of packets before they reach the VXLAN device (ethtool's\n\
         tx-checksum-ip-generic off): a workaround for NICs, drivers and hypervisors that send wrong\n\
         ones, at the price of most of the throughput",
    ),
    value("public-ipv6", "IPV6", "").role(Role::Later("run the overlay over IPv4 and drop the flag")),
    switch("kube-subnet-mgr", "false").role(Role::Kubernetes),
    value("kube-api-url", "URL", "").role(Role::Kubernetes),
    value("kube-annotation-prefix", "PREFIX", "").role(Role::Kubernetes),
    value("kubeconfig-file", "FILE", "").role(Role::Kubernetes),
    value("net-config-path", "FILE", "").role(Role::Kubernetes),
    switch("set-node-network-unavailable", "").role(Role::Kubernetes),
    value("listen", "ADDRESS", "").role(Role::MultiNetwork),
    value("remote", "ADDRESS", "").role(Role::MultiNetwork),
    value("remote-keyfile", "FILE", "").role(Role::MultiNetwork),
    value("remote-certfile", "FILE", "").role(Role::MultiNetwork),
    value("remote-cafile", "FILE", "").role(Role::MultiNetwork),
    value("networks", "NAMES", "").role(Role::MultiNetwork),
    switch("watch-networks", "false").role(Role::MultiNetwork),
    value("subnet-dir", "DIR", "").role(Role::MultiNetwork),
    switch("logtostderr", "").role(Role::Glog),
    switch("alsologtostderr", "").role(Role::Glog),
    value("stderrthreshold", "LEVEL", "").role(Role::Glog),
    value("log_dir", "DIR", "").role(Role::Glog),
    value("log_backtrace_at", "FILE:LINE", "").role(Role::Glog),
    value("vmodule", "PATTERNS", "").role(Role::Glog),
    value("log_file", "FILE", "").role(Role::Glog),
    value("log_file_max_size", "MEGABYTES", "").role(Role::Glog),
    switch("skip_headers", "").role(Role::Glog),
    switch("skip_log_headers", "").role(Role::Glog),
    switch("add_dir_header", "").role(Role::Glog),
    switch("one_output", "").role(Role::Glog),
    value("httptest.serve", "ADDRESS", "").role(Role::Glog),
];

/// The flag of this name, without dashes.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The flag of this name as a user types it.
pub(super) fn dashed(name: &str) -> String {
    let dashes = if name.len() == 1 { "-" } else { "--" };
    format!("{dashes}{name}")
}

const ABOUT: &str = "\
Gives this host a subnet of the network that etcd describes, and connects it with the subnets
of all other hosts.";

const NOTES: &str = "\
Flags may be written as in flannel, with one dash: -etcd-prefix=/x, -etcd-prefix /x.

Environment:
  FLANNELD_ETCD_PREFIX and so on, one for each flag
          Used if the flag is not given and the variable is not empty; FLANNELD_IFACE and
          FLANNELD_IFACE_REGEX hold one value each
  FLANNEL_ETCD_ENDPOINTS, FLANNEL_ETCD
          As --etcd-endpoints, if neither the flag nor FLANNELD_ETCD_ENDPOINTS is given
  FLANNEL_ETCD_PREFIX, FLANNEL_ETCD_KEY
          As --etcd-prefix, likewise

Of flannel's flags, --public-ipv6 and those of the Kubernetes mode are not implemented: they
are refused with a message that says what to do instead. glog's flags are accepted without
effect.";

/// The parser of a command line that [`super::go_flags`] has rewritten into the long form.
pub(super) fn command() -> Command {
    definition(FLAGS.iter())
}

/// The parser with only those flags that the help shows.
pub(super) fn visible() -> Command {
    definition(FLAGS.iter().filter(|flag| flag.heading != HIDDEN))
}

fn definition(flags: impl Iterator<Item = &'static Flag>) -> Command {
    Command::new("flanneld")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .override_usage("flanneld [FLAG]...\n       flanneld docker-opts [OPTION]...    (help: -h)")
        .after_help(NOTES)
        .no_binary_name(true)
        .next_line_help(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(flags.map(Flag::to_arg))
        .arg(builtin("help", 'h', ArgAction::Help).help("Print this text"))
        .arg(builtin("version", 'V', ArgAction::Version).help("Print the version"))
}

fn builtin(name: &'static str, short: char, action: ArgAction) -> Arg {
    Arg::new(name).long(name).short(short).action(action).help_heading(OTHER)
}
