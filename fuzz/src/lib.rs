//! What is fuzzed: everything that others write and flanneld reads. Each function takes any bytes and panics when a
//! promise is broken: nothing panics, and what is written is read back as it was.
//!
//! The fuzz targets call these, and so does `tests/corpus.rs` with the inputs in `corpus/`.

mod netlink;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;

use flanneld::backend::vxlan::Vxlan;
use flanneld::backend::{self, Backend};
use flanneld::cli::args::{self, Invocation};
use flanneld::model::backend_data::{BackendData, VxlanData};
use flanneld::model::config::{NetworkConfig, Overlay};
use flanneld::model::env_files::{DockerLines, DockerOpts, SubnetEnv, previous_subnet};
use flanneld::model::lease::{LeaseAttrs, LeaseId, Record};
use flanneld::model::state_file::Remembered;
use flanneld::model::subnet::SubnetKey;
use ipnet::IpNet;

pub use netlink::netlink;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by the names that they have for the fuzzer.
pub const TARGETS: [(&str, Target); 7] = [
    ("command_line", command_line),
    ("config", config),
    ("lease", lease),
    ("netlink", netlink),
    ("state_file", state_file),
    ("subnet_env", subnet_env),
    ("subnet_key", subnet_key),
];

/// The network config, and the backend that it asks for.
pub fn config(input: &[u8]) {
    match NetworkConfig::parse(input) {
        Err(errors) => assert!(!errors.0.is_empty()),
        Ok(config) => {
            assert!(config.ipv4.is_some() || config.ipv6.is_some());
            config.ipv4.iter().chain(&config.ipv6).for_each(subnets_lie_inside);
            if let Err(problems) = backend::read_config(input) {
                assert!(!problems.0.is_empty());
            }
        }
    }
}

fn subnets_lie_inside(overlay: &Overlay) {
    let Overlay { network, subnets } = overlay;
    for start in [subnets.min(), subnets.max()] {
        let net = IpNet::new(start, subnets.subnet_len()).expect("a length that fits");
        assert!(network.contains(&net) && net == net.trunc() && subnets.contains(net), "{net} in {network}");
    }
    let chosen = subnets.choose_free([], u128::MAX).expect("an empty network has room");
    assert!(network.contains(&chosen) && subnets.contains(chosen), "{chosen} in {network}");
}

/// The last segment of a lease's key.
pub fn subnet_key(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(key) = SubnetKey::parse(&text) {
        assert_eq!(key.to_string(), text);
        assert_eq!((key.v4.trunc(), key.v6.map(|v6| v6.trunc())), (key.v4, key.v6));
    }
}

/// A lease: the last segment of its key, a newline, its value.
pub fn lease(input: &[u8]) {
    let split = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (name, value) = (String::from_utf8_lossy(&input[..split]), input.get(split + 1..).unwrap_or_default());
    for id in [None, LeaseId::new(1)] {
        let record = Record::decode(&name, value, id, 1, 2);
        let occupied = record.occupies();
        let Ok(lease) = record.content else { continue };
        assert_eq!(occupied, Some(lease.subnet.v4));
        assert_eq!(LeaseAttrs::from_json(lease.attrs.to_json().as_bytes()).as_ref(), Ok(&lease.attrs));
        let _ = Vxlan::default().read(&lease);
        if let Some(Ok(data)) = lease.attrs.backend_data.as_ref().map(BackendData::vxlan) {
            assert_eq!(VxlanData::from_json(&data.to_json()), Ok(data));
        }
    }
}

/// The `subnet.env` of an earlier run.
pub fn subnet_env(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let docker = DockerOpts::parse(&text).map(|opts| opts.render(&DockerLines::default()));
    let Ok(Some(subnet)) = previous_subnet(&text) else {
        assert!(docker.is_err());
        return;
    };
    if let Ok(docker) = docker {
        assert!(docker.starts_with("DOCKER_OPT_BIP=\"--bip="));
    }
    assert_eq!(subnet, subnet.trunc());
    // A longer one has no address for a gateway.
    if subnet.prefix_len() <= 31 {
        let env = SubnetEnv { ipv4: Some((subnet, subnet)), ipv6: None, mtu: 1450, ip_masq: false };
        assert_eq!(previous_subnet(&env.render()), Ok(Some(subnet)));
    }
}

/// The state file.
pub fn state_file(input: &[u8]) {
    if let Ok(state) = Remembered::parse(&String::from_utf8_lossy(input)) {
        assert_eq!(Remembered::parse(&state.render()), Ok(state));
    }
}

/// A command line, one word a line; a line that begins with `FLANNELD_` and has a `=` is of the environment.
pub fn command_line(input: &[u8]) {
    let (mut words, mut env) = (Vec::new(), BTreeMap::new());
    for line in input.split(|byte| *byte == b'\n') {
        match std::str::from_utf8(line).ok().and_then(|text| text.split_once('=')) {
            Some((name, value)) if name.starts_with("FLANNELD_") => {
                env.insert(name.to_owned(), value.to_owned());
            }
            _ => words.push(OsString::from_vec(line.to_vec())),
        }
    }
    match args::parse(words, &env) {
        Err(error) => assert!(!error.problems().is_empty()),
        Ok(Invocation::Run(options, _)) => {
            assert!(!options.etcd_endpoints.is_empty());
            assert!(
                !options.settings.leases.times.renew_margin.is_zero()
                    && options.settings.leases.times.renew_margin < options.settings.leases.times.ttl
            );
            assert!(!options.settings.prefix.ends_with('/'));
            assert!(options.settings.iface.public_ip.is_none_or(|ip| IpAddr::V4(ip) != IpAddr::from([0; 4])));
        }
        Ok(Invocation::ShowHelp(text) | Invocation::ShowVersion(text)) => assert!(!text.is_empty()),
    }
}
