//! The reasons why a member cannot be reached over a new connection, with remedies.

use super::credentials::Access;
use super::{error, plain};
use etcd_client::Error;
use rustls::AlertDescription::*;
use rustls::CertificateError;
use std::error::Error as StdError;
use std::io;

/// The member that was dialled, and as what.
pub(super) struct Dialled<'a> {
    /// `http://host:port` or `https://host:port`.
    pub(super) url: &'a str,
    /// The name or address that its certificate must hold.
    pub(super) host: &'a str,
    /// Whom we trust and who we are.
    pub(super) access: &'a Access,
}

impl Dialled<'_> {
    /// The problem in a few words, with a remedy.
    pub(super) fn explain(&self, error: &Error) -> String {
        let chain = || causes(error);
        let while_dialling = chain().any(|cause| cause.is::<tonic::ConnectError>());
        let cut_off = chain().any(is_cut_off);
        match chain().find_map(tls_error) {
            Some(error) => self.explain_tls(error),
            None if self.is_encrypted() && while_dialling && cut_off => no_tls(),
            None if self.is_encrypted() && !while_dialling && error::is_broken_connection(error) => self.unwelcome(),
            None if !while_dialling && cut_off => {
                "it ended the connection before it answered, as etcd does when it wants TLS: then give it as https://"
                    .to_owned()
            }
            None => match error::explain(error) {
                text if text.contains("no native certs") => {
                    "this host has no CA certificates of its own: give etcd's with --etcd-cafile".to_owned()
                }
                text => text,
            },
        }
    }

    fn explain_tls(&self, error: &rustls::Error) -> String {
        match error {
            rustls::Error::InvalidCertificate(problem) => self.explain_certificate(problem),
            rustls::Error::AlertReceived(
                BadCertificate
                | UnsupportedCertificate
                | CertificateRevoked
                | CertificateExpired
                | CertificateUnknown
                | UnknownCA
                | AccessDenied
                | CertificateRequired,
            ) => self.unwelcome(),
            rustls::Error::InvalidMessage(_) => no_tls(),
            error => format!("TLS fails: {}", plain::tls(error)),
        }
    }

    /// The server's certificate is not accepted.
    fn explain_certificate(&self, problem: &CertificateError) -> String {
        use CertificateError::*;
        let host = self.host;
        match problem {
            UnknownIssuer | BadSignature => match &self.access.ca_file {
                Some(path) => format!(
                    "its certificate is signed by no CA in {}: --etcd-cafile must name the CA of etcd's certificate",
                    path.display()
                ),
                None => "its certificate is signed by no CA that this system trusts: give its CA with --etcd-cafile"
                    .to_owned(),
            },
            NotValidForNameContext { presented, .. } if presented.is_empty() => format!(
                "its certificate has no subject alternative name (the common name does not count): make one that has {host}"
            ),
            NotValidForNameContext { presented, .. } => format!(
                "its certificate is for {}, not for {host}: dial it by a name in the certificate, or make one that has \
                 {host} as subject alternative name",
                presented.iter().map(|name| bare_name(name)).collect::<Vec<_>>().join(", ")
            ),
            Expired | ExpiredContext { .. } => {
                "its certificate has expired (or this host's clock is wrong): etcd needs a new one".to_owned()
            }
            NotValidYet | NotValidYetContext { .. } => {
                "its certificate is not valid yet: is this host's clock wrong?".to_owned()
            }
            InvalidPurpose | InvalidPurposeContext { .. } => {
                "its certificate is not one for servers: make one with the extended key usage serverAuth".to_owned()
            }
            problem => match plain::certificate(problem) {
                text if text.contains("unsupported cert version") => format!(
                    "its certificate is of X.509 version 1, which has no subject alternative names: make one of version 3 \
                     that has {host} as subject alternative name"
                ),
                text if text.contains("ca used as end entity") => {
                    "its certificate is one of a CA (basicConstraints CA:TRUE): make one for the server, without that"
                        .to_owned()
                }
                text => format!("its certificate is not accepted: {text}"),
            },
        }
    }

    /// The server does not accept us. It says so only after the handshake, if its last words arrive at all.
    fn unwelcome(&self) -> String {
        match &self.access.identity {
            None => {
                "it ended the connection before it answered, as etcd does when it wants a client certificate: give \
                     --etcd-certfile and --etcd-keyfile"
                    .to_owned()
            }
            Some(files) => format!(
                "it ended the connection before it answered, as etcd does when it does not accept a client certificate: \
                 the one in {} (--etcd-certfile) must be signed by etcd's --trusted-ca-file, not be expired, and be one for \
                 clients (extended key usage clientAuth)",
                files.cert_file.display()
            ),
        }
    }

    fn is_encrypted(&self) -> bool {
        self.url.starts_with("https://")
    }
}

fn no_tls() -> String {
    "it does not answer to TLS: if it has none, give it as http://".to_owned()
}

/// An error and what is below it.
fn causes(error: &Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: Option<&(dyn StdError + 'static)> = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(error) => Some(error),
        _ => None,
    };
    std::iter::successors(first, |&error| error.source())
}

/// rustls' errors travel inside I/O errors, which do not name them as their sources.
fn tls_error<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e rustls::Error> {
    let inside = || error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
    error.downcast_ref().or_else(inside)
}

/// Whether the other side hung up.
fn is_cut_off(error: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::*;
    let is_end =
        |error: &io::Error| matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe | ConnectionAborted);
    error.downcast_ref().is_some_and(is_end) || error.to_string().contains("connection closed")
}

/// `DnsName("etcd.example")` and `IpAddress(10.0.0.1)` as people write them.
fn bare_name(name: &str) -> &str {
    name.trim_start_matches("DnsName(").trim_start_matches("IpAddress(").trim_matches([')', '"'])
}
