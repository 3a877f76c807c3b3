//! Flags of flannel that are accepted without effect, or refused with a reason.

use super::flags::{Arity, FLAGS, Flag, Role};
use super::given::{Given, Value};
use super::values;

const NO_KUBERNETES: &str = "this flanneld keeps its leases in etcd; it has no Kubernetes mode: drop the flag";

const ONE_NETWORK: &str = "\
flannel 0.7's multi-network and client/server modes are gone; run one daemon a \
network, each with --etcd-prefix and --subnet-file of its own";

/// Reports the flags that are refused and returns warnings about those without effect.
pub(super) fn check(given: &mut Given) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut ignored = Vec::new();
    for flag in FLAGS {
        if matches!(flag.role, Role::Setting) {
            continue;
        }
        let value = given.value(flag.name);
        if !differs_from_default(flag, &value, given) {
            continue;
        }
        let name = value.name();
        match flag.role {
            Role::Setting => {}
            Role::Glog => ignored.push(name),
            Role::Later(advice) => given.report(format!("{name} is not implemented by this version: {advice}")),
            Role::Kubernetes => given.report(format!("{name} is refused: {NO_KUBERNETES}")),
            Role::MultiNetwork => given.report(format!("{name} is refused: {ONE_NETWORK}")),
        }
    }
    if !ignored.is_empty() {
        warnings.push(format!("no effect: {}; logs go to standard error, -v says how much", ignored.join(", ")));
    }
    warnings
}

/// Whether a value turns the flag on. A value that is no boolean is reported.
fn differs_from_default(flag: &Flag, value: &Value, given: &mut Given) -> bool {
    if value.text == flag.default {
        return false;
    }
    match flag.arity {
        Arity::Value(_) => true,
        Arity::Bool => match given.read(flag.name, values::boolean) {
            Some(asked) => values::boolean(flag.default) != Ok(asked),
            None => false,
        },
    }
}
