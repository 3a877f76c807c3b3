//! The flags for access to etcd: its CA, and the certificate or user that is shown to it.

use super::given::Given;
use super::values::{optional, path};
use crate::store::etcd::{Access, IdentityFiles, Password, Secret, User};

/// Reads all of them. Reports problems and returns `None` if there was one.
pub(super) fn read(given: &mut Given) -> Option<Access> {
    let ca_file = given.read("etcd-cafile", optional(path));
    let identity = identity(given);
    let user = user(given);
    Some(Access { ca_file: ca_file?, identity: identity?, user: user? })
}

fn identity(given: &mut Given) -> Option<Option<IdentityFiles>> {
    let cert_file = given.read("etcd-certfile", optional(path))?;
    let key_file = given.read("etcd-keyfile", optional(path))?;
    match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => Some(Some(IdentityFiles { cert_file, key_file })),
        (None, None) => Some(None),
        (Some(_), None) => lacks(given, "etcd-certfile", "--etcd-keyfile, the key of that certificate"),
        (None, Some(_)) => lacks(given, "etcd-keyfile", "--etcd-certfile, the certificate of that key"),
    }
}

fn user(given: &mut Given) -> Option<Option<User>> {
    let name = given.read("etcd-username", text)?;
    let password = given.read("etcd-password", text)?.map(|text| Password::Given(Secret::new(text)));
    let file = given.read("etcd-password-file", optional(path))?.map(Password::File);
    if password.is_some() && file.is_some() {
        let (one, other) = (given.value("etcd-password").name(), given.value("etcd-password-file").name());
        given.report(format!("{one} and {other} are both given: give one of them"));
        return None;
    }
    let flag = if password.is_some() { "etcd-password" } else { "etcd-password-file" };
    match (name, password.or(file)) {
        (Some(name), Some(password)) => Some(Some(User { name, password })),
        (None, None) => Some(None),
        (Some(_), None) => lacks(given, "etcd-username", "--etcd-password-file"),
        (None, Some(_)) => lacks(given, flag, "--etcd-username"),
    }
}

fn text(text: &str) -> Result<Option<String>, String> {
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn lacks<T>(given: &mut Given, flag: &'static str, wanted: &str) -> Option<T> {
    let name = given.value(flag).name();
    given.report(format!("{name} needs {wanted}"));
    None
}

/// Warns of combinations that are legal but hardly intended.
pub(super) fn warnings(endpoints: &[String], access: &Access) -> Vec<String> {
    let (encrypted, plain): (Vec<&str>, Vec<&str>) =
        endpoints.iter().map(String::as_str).partition(|endpoint| endpoint.starts_with("https://"));
    let plain = plain.join(", ");
    let mut warnings = Vec::new();
    let files = files(access).join(", ");
    if encrypted.is_empty() && !files.is_empty() {
        warnings.push(format!("no effect: {files}; TLS is used with https:// endpoints only, not with {plain}"));
    }
    if !encrypted.is_empty() && !plain.is_empty() {
        warnings.push(format!("connections to {plain} are not encrypted, those to other members of etcd are"));
    }
    if access.user.is_some() && !plain.is_empty() {
        warnings.push(format!("the password of the user of etcd goes to {plain} unencrypted"));
    }
    warnings
}

fn files(access: &Access) -> Vec<&'static str> {
    let mut flags = Vec::new();
    if access.ca_file.is_some() {
        flags.push("--etcd-cafile");
    }
    if access.identity.is_some() {
        flags.extend(["--etcd-certfile", "--etcd-keyfile"]);
    }
    flags
}
