//! What runs under each kernel, and on this machine's own for comparison.

use std::env;
use std::path::Path;

use crate::apt::{ALL, Series};
use crate::guest::Boot;
use crate::programs::Programs;

/// Tests of `tests/it` that depend on the kernel: how hosts join, move and leave, what survives a restart and a kill,
/// direct routes, and the rules of both firewalls.
const CLUSTER: [&str; 9] = [
    "join::containers_reach_each_other_with_packets_of_full_size",
    "peers::a_deleted_lease_removes_that_peer_and_no_other",
    "peers::a_peer_that_changes_its_mac_or_its_address_is_followed",
    "restart::a_restart_keeps_subnet_mac_and_device_and_loses_no_packet",
    "direct::hosts_on_one_link_route_directly_and_those_behind_a_router_use_the_tunnel",
    "firewall::containers_reach_each_other_through_a_forward_chain_that_drops",
    "firewall::the_forward_rules_stand_when_it_says_that_it_is_ready_and_after_it_has_gone",
    "firewall::with_nftables_the_rules_are_in_flannels_tables_and_nowhere_else",
    "firewall_repair::with_nftables_whatever_is_flushed_is_back_at_once",
];

/// By how much the tests of a guest wait longer: it is emulated, and the machine may be busy with other work as well.
const PATIENCE: &str = "FLANNELD_TEST_PATIENCE=20";

/// How many seconds a cluster is watched at rest.
const REST: &str = "FLANNELD_TEST_REST";

/// What [`Job::Own`] runs of `tests/guest`.
pub const MEASUREMENTS: [&str; 2] = ["--show-output", "scale::"];

/// Something to run.
#[derive(Clone, Copy)]
pub enum Job {
    /// All tests under a kernel.
    Kernel(Series),
    /// The package on a machine that boots.
    Package(Series),
    /// The measurements on the kernel of this machine, to compare with.
    Own,
}

impl Job {
    pub fn name(&self) -> String {
        match self {
            Job::Kernel(series) => series.name.to_owned(),
            Job::Package(_) => "package".to_owned(),
            Job::Own => "own".to_owned(),
        }
    }

    /// Those with these names, or all. An unknown name is returned as an error.
    pub fn named(names: &[String]) -> Result<Vec<Job>, String> {
        let mut all: Vec<Job> = vec![Job::Own];
        all.extend(ALL.map(Job::Kernel));
        all.extend(ALL.into_iter().filter(|series| series.name == "6.1").map(Job::Package));
        let known: Vec<String> = all.iter().map(Job::name).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
            return Err(format!("{unknown} is none of {}", known.join(", ")));
        }
        all.retain(|job| names.is_empty() || names.contains(&job.name()));
        Ok(all)
    }

    pub fn boot(&self) -> Boot {
        if matches!(self, Job::Package(_)) { Boot::Systemd } else { Boot::Job }
    }

    /// The steps of a guest, for `main.sh`. `package` is the Debian package under test, where it is.
    pub fn steps(&self, programs: &Programs, package: Option<&Path>) -> String {
        let path = env::var("PATH").unwrap_or_default();
        let rest = env::var(REST).map_or(String::new(), |seconds| format!(" {REST}={seconds}"));
        let step = |name: &str, program: &Path, words: &str| {
            format!("step {name} env {PATIENCE}{rest} '{}' {words}\n", program.display())
        };
        let head = format!("PATH='{path}':$PATH\ncd '{}'\n", env!("CARGO_MANIFEST_DIR"));
        let steps = match self {
            Job::Kernel(_) => [
                step("scenarios", &programs.guest, "--show-output --test-threads 2 --skip package::"),
                step("cluster", &programs.it, &format!("--test-threads 2 --exact {}", CLUSTER.join(" "))),
                step("kernel", &programs.kernel, "--test-threads 2"),
            ]
            .concat(),
            Job::Package(_) => {
                format!("export FLANNELD_TEST_PACKAGE='{}'\n", package.unwrap_or(Path::new("")).display())
                    + &step("package", &programs.guest, "--show-output package::")
            }
            Job::Own => String::new(),
        };
        head + &steps
    }
}
