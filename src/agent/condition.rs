//! The conditions that keep the daemon from being ready, or that an administrator should know.

use std::time::Duration;

/// Something that keeps the daemon from being ready, or that an administrator should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The network config in the store is missing, invalid or cannot be read.
    Config,
    /// The external interface is gone or has no address.
    Interface,
    /// The host's interfaces cannot be listed.
    Host,
    /// Our own lease is missing or cannot be renewed.
    Lease,
    /// Another host claims our key.
    Rival,
    /// Another host has registered with our public IP.
    PublicIp,
    /// The leases of the peers cannot be followed.
    Peers,
    /// The kernel cannot be read, or refuses the device or an entry.
    Kernel,
    /// `subnet.env` or `docker_opts.env` cannot be written.
    Files,
    /// Our rules are not in the firewall.
    Firewall,
    /// Rules of others drop packets of our containers.
    Obstacle,
    /// Our subnet holds addresses that this host itself needs.
    Subnet,
    /// Docker does not use the subnet or the MTU that was written for it.
    Docker,
}

impl Condition {
    /// A sentence on the end of the condition, which lasted this long.
    pub(super) fn ended_after(self, duration: Duration) -> String {
        let ended = match self {
            Condition::Config => "etcd holds a valid network config",
            Condition::Interface => "the external interface is usable",
            Condition::Host => "the host's interfaces can be listed",
            Condition::Lease => "our lease is registered",
            Condition::Rival => "the conflict over our lease ended",
            Condition::PublicIp => "the conflict over our public IP ended",
            Condition::Peers => "etcd is reachable again",
            Condition::Kernel => "the kernel holds all that is wanted",
            Condition::Files => "the environment files are written",
            Condition::Firewall => "the firewall holds our rules",
            Condition::Obstacle => "the rules of others let packets of our containers pass",
            Condition::Subnet => "our subnet is free of addresses that this host needs",
            Condition::Docker => "Docker uses our subnet and MTU",
        };
        format!("{ended} after {}", rounded(duration))
    }
}

/// A duration in its largest unit that leaves at least two of it, such as `900 ms`, `23 s`, `119 min` or `5 h`.
fn rounded(duration: Duration) -> String {
    match duration.as_secs() {
        0..2 => format!("{} ms", duration.as_millis()),
        seconds @ 2..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_condition_is_a_sentence_with_its_duration() {
        for (milliseconds, expected) in
            [(900, "900 ms"), (23_400, "23 s"), (119_999, "119 s"), (120_000, "2 min"), (36_000_000, "10 h")]
        {
            let sentence = Condition::Peers.ended_after(Duration::from_millis(milliseconds));
            assert_eq!(sentence, format!("etcd is reachable again after {expected}"));
        }
    }
}
