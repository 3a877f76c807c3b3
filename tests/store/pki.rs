//! Certificates, made for one test.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::{Path, PathBuf};

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its key, in PEM form.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

/// Whose certificate one is.
#[derive(Clone, Copy)]
pub enum Role<'a> {
    /// A server's, with these names or addresses.
    Server(&'a [&'a str]),
    /// A client's, with this common name, which etcd takes for a user.
    Client(&'a str),
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate of this authority with a key of its own.
    pub fn issue(&self, role: Role) -> Pair {
        self.issue_with(role, &KeyPair::generate().expect("a key"), |_| {})
    }

    /// The same for this key.
    pub fn issue_with(&self, role: Role, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let (names, common_name, purpose) = match role {
            Role::Server(names) => (names, "etcd", ExtendedKeyUsagePurpose::ServerAuth),
            Role::Client(common_name) => (&[][..], common_name, ExtendedKeyUsagePurpose::ClientAuth),
        };
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = self::name(common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        // The gateway in etcd is a client of its own with its server's certificate.
        if matches!(role, Role::Server(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        change(&mut params);
        let cert = params.signed_by(key, &self.issuer).expect("a certificate").pem();
        Pair { cert, key: key.serialize_pem() }
    }
}

impl Pair {
    /// Writes both beside each other; where they are.
    pub fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        std::fs::write(&cert, &self.cert).expect("a certificate is written");
        std::fs::write(&key, &self.key).expect("a key is written");
        (cert, key)
    }
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
