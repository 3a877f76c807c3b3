//! Errors of TLS in plain words. rustls prints what it has no text for as it is written in its code.

use rustls::{CertificateError, Error, OtherError};

/// An error of TLS.
pub(super) fn tls(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(problem) => certificate(problem),
        Error::AlertReceived(alert) => {
            format!("the other side ended it with the alert {}", words(&format!("{alert:?}")))
        }
        Error::Other(other) => deepest(other),
        Error::PeerIncompatible(what) => format!("no common way of speaking TLS: {}", words(&format!("{what:?}"))),
        Error::PeerMisbehaved(what) => {
            format!("the other side breaks the rules of TLS: {}", words(&format!("{what:?}")))
        }
        error => error.to_string(),
    }
}

/// The problem of a certificate.
pub(super) fn certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Other(other) => deepest(other),
        CertificateError::BadEncoding => "it is broken".to_owned(),
        CertificateError::Revoked => "it was revoked".to_owned(),
        problem => words(name(&format!("{problem:?}"))),
    }
}

fn deepest(error: &OtherError) -> String {
    words(name(&format!("{:?}", error.0)))
}

/// The name of a variant, without what it holds.
fn name(debug: &str) -> &str {
    debug.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()
}

/// `UnsupportedCertVersion` as people write it.
fn words(name: &str) -> String {
    let name = self::name(name);
    let mut text = String::new();
    let mut after_small = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && after_small {
            text.push(' ');
        }
        after_small = !c.is_ascii_uppercase();
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{AlertDescription, PeerIncompatible, PeerMisbehaved};
    use std::sync::Arc;

    #[derive(Debug)]
    #[allow(dead_code, reason = "it is only printed")]
    struct UnsupportedCertVersion {
        depth: u8,
    }

    impl std::fmt::Display for UnsupportedCertVersion {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{self:?}")
        }
    }

    impl std::error::Error for UnsupportedCertVersion {}

    #[test]
    fn no_error_of_tls_reads_like_code() {
        let other = || OtherError(Arc::new(UnsupportedCertVersion { depth: 1 }));
        let errors = [
            Error::InvalidCertificate(CertificateError::Other(other())),
            Error::InvalidCertificate(CertificateError::UnhandledCriticalExtension),
            Error::InvalidCertificate(CertificateError::BadEncoding),
            Error::AlertReceived(AlertDescription::HandshakeFailure),
            Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
            Error::PeerMisbehaved(PeerMisbehaved::TooManyEmptyFragments),
            Error::Other(other()),
        ];
        let texts = errors.each_ref().map(tls);
        assert_eq!(texts[0], "unsupported cert version");
        assert_eq!(texts[1], "unhandled critical extension");
        for text in texts {
            let is_code =
                |word: &str| word.chars().skip(1).any(|c| c.is_ascii_uppercase()) && word != "TLS:" && word != "TLS";
            assert!(!text.contains(['(', '{', '"']) && !text.split(' ').any(is_code), "{text}");
        }
    }
}
