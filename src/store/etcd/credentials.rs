//! Whom we take for etcd, and who we are to it: the files and the user that flags name.
//!
//! Certificates are read anew for every call, the password whenever one authenticates, so that what is renewed on disk
//! is in use from the next connection on. What cannot be used then changes nothing: the last good one stays, also where
//! the disk does not answer.

use super::plain;
use crate::files::{self, FileIo, Task};
use etcd_client::{Certificate, ConnectOptions, Error, Identity, TlsOptions};
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::transport::Endpoint;

/// How long the first call waits for a disk.
const SLOW: Duration = Duration::from_secs(1);

/// The flags about access to etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// The CA certificates of etcd's certificate, in PEM form; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and its key, in PEM form.
    pub identity: Option<IdentityFiles>,
    /// As whom to authenticate.
    pub user: Option<User>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate, and after it those between it and its CA, if any.
    pub cert_file: PathBuf,
    /// Its key: PKCS#8, PKCS#1 or SEC1.
    pub key_file: PathBuf,
}

/// A user of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name, as etcd knows it.
    pub name: String,
    /// The proof.
    pub password: Password,
}

/// Where a password is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// Given in a flag.
    Given(Secret),
    /// In this file, which may change.
    File(PathBuf),
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The content of the files when they were last usable.
pub(super) struct Credentials {
    access: Access,
    pem: RefCell<Pem>,
    generation: Cell<u64>,
    password: RefCell<Option<Secret>>,
    pem_reading: Reading<Pem>,
    password_reading: Reading<Secret>,
    /// The problem of the files now, so that it is logged once.
    pem_trouble: Trouble,
    password_trouble: Trouble,
}

/// The contents of the files for TLS.
#[derive(Default, PartialEq, Eq)]
struct Pem {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Credentials {
    /// Reads what the flags name.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what it should: names the flag, the file, and what would be right.
    pub(super) fn load(access: Access) -> Result<Self, String> {
        let pem = Pem::read(&access)?;
        pem.check(&access)?;
        let password = access.user.as_ref().map(|user| user.password.read()).transpose()?;
        Ok(Credentials {
            access,
            pem: RefCell::new(pem),
            generation: Cell::new(0),
            password: RefCell::new(password),
            pem_reading: Reading::default(),
            password_reading: Reading::default(),
            pem_trouble: Trouble::default(),
            password_trouble: Trouble::default(),
        })
    }

    /// The flags.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// Whether there is a user to authenticate as.
    pub(super) fn has_user(&self) -> bool {
        self.access.user.is_some()
    }

    /// Takes up certificates that were renewed. The number that comes back is another one whenever they were.
    pub(super) async fn refresh(&self) -> u64 {
        if self.access.ca_file.is_none() && self.access.identity.is_none() {
            return self.generation.get();
        }
        let access = self.access.clone();
        match self.pem_reading.result(move || Pem::read(&access)).await {
            Ok(pem) if pem == *self.pem.borrow() => self.pem_trouble.over(),
            read => match read.and_then(|pem| pem.check(&self.access).map(|()| pem)) {
                Ok(pem) => {
                    tracing::info!("the certificates for etcd were renewed: new connections use the new ones");
                    self.pem.replace(pem);
                    self.generation.set(self.generation.get() + 1);
                    self.pem_trouble.over();
                }
                Err(problem) => self.pem_trouble.is(problem),
            },
        }
        self.generation.get()
    }

    /// Adds what a connection that is to be encrypted needs; setting up TLS may take as long as `limit`.
    ///
    /// # Errors
    /// When this host has no CA certificates of its own and none are given.
    pub(super) fn encrypt(&self, endpoint: Endpoint, limit: Duration) -> Result<Endpoint, Error> {
        let pem = self.pem.borrow();
        let tls = TlsOptions::new().timeout(limit);
        let tls = match &pem.ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
            None => tls.with_native_roots(),
        };
        Ok(endpoint.tls_config(match &pem.identity {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        })?)
    }

    /// Adds user and password, if there are any.
    pub(super) async fn authenticate(&self, options: ConnectOptions) -> ConnectOptions {
        let Some(user) = &self.access.user else { return options };
        let password = user.password.clone();
        match self.password_reading.result(move || password.read()).await {
            Ok(password) => {
                self.password.replace(Some(password));
                self.password_trouble.over();
            }
            Err(problem) => self.password_trouble.is(problem),
        }
        match &*self.password.borrow() {
            Some(Secret(password)) => options.with_user(&user.name, password),
            None => options,
        }
    }
}

/// A reading of files that nobody waits for if their disk does not answer.
struct Reading<T>(Mutex<Option<Task<Result<T, String>>>>);

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Reading(Mutex::default())
    }
}

impl<T: Send + 'static> Reading<T> {
    /// What `read` gives; an error where it takes too long. Then it goes on, and its result is that of a later call.
    async fn result(&self, read: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
        let mut reading = self.0.lock().await;
        let task = reading.get_or_insert_with(|| FileIo::Aside.start(read));
        let _ = timeout(SLOW.saturating_sub(task.age()), task.finished()).await;
        match task.take() {
            Some(result) => {
                *reading = None;
                result
            }
            None => Err("files for access to etcd cannot be read: their disk does not answer".to_owned()),
        }
    }
}

impl Pem {
    fn read(access: &Access) -> Result<Self, String> {
        let ca = access.ca_file.as_ref().map(|path| read("--etcd-cafile", path)).transpose()?;
        let identity = match &access.identity {
            Some(files) => Some((read("--etcd-certfile", &files.cert_file)?, read("--etcd-keyfile", &files.key_file)?)),
            None => None,
        };
        Ok(Pem { ca, identity })
    }

    /// Whether all this can be used.
    fn check(&self, access: &Access) -> Result<(), String> {
        if let (Some(pem), Some(path)) = (&self.ca, &access.ca_file) {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("--etcd-cafile", path, pem)? {
                roots.add(certificate).map_err(|error| {
                    let why = plain::tls(&error);
                    format!("{}: a certificate in it cannot be used: {why}", named("--etcd-cafile", path))
                })?;
            }
        }
        if let (Some((certificate, key)), Some(files)) = (&self.identity, &access.identity) {
            let (cert_name, key_name) =
                (named("--etcd-certfile", &files.cert_file), named("--etcd-keyfile", &files.key_file));
            let chain = certificates("--etcd-certfile", &files.cert_file, certificate)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
                format!("{key_name}: there is no private key in PEM form in it, unencrypted, in PKCS#8, PKCS#1 or SEC1")
            })?;
            CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!("{key_name}: it is not the key of the certificate in {cert_name}")
                }
                error => format!("{key_name}, {cert_name}: they cannot be used: {}", plain::tls(&error)),
            })?;
        }
        Ok(())
    }
}

impl Password {
    fn read(&self) -> Result<Secret, String> {
        let path = match self {
            Password::Given(secret) => return Ok(secret.clone()),
            Password::File(path) => path,
        };
        let bytes = read("--etcd-password-file", path)?;
        let name = || named("--etcd-password-file", path);
        let text = str::from_utf8(&bytes).map_err(|_| format!("{}: what it holds is not UTF-8", name()))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        match text.strip_suffix('\r').unwrap_or(text) {
            "" => Err(format!("{}: it is empty; it must hold the password", name())),
            password => Ok(Secret::new(password)),
        }
    }
}

fn named(flag: &str, path: &Path) -> String {
    format!("{flag}={}", path.display())
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    files::read(path).map_err(|error| {
        let by = match (error.kind(), fs::metadata("/proc/self")) {
            (io::ErrorKind::PermissionDenied, Ok(me)) => {
                format!(" by the user that flanneld runs as (id {})", me.uid())
            }
            _ => String::new(),
        };
        format!("{}: it cannot be read{by}: {error}", named(flag, path))
    })
}

/// The certificates in a text in PEM form, at least one.
fn certificates(flag: &str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|_| format!("{}: its PEM form is broken, or it is cut off", named(flag, path)))?;
    match found.is_empty() {
        true => Err(format!("{}: there is no certificate in PEM form in it (BEGIN CERTIFICATE)", named(flag, path))),
        false => Ok(found),
    }
}

/// A trouble with files, logged when it begins and when it becomes another one.
#[derive(Default)]
struct Trouble(RefCell<Option<String>>);

impl Trouble {
    fn is(&self, problem: String) {
        if self.0.borrow().as_ref() != Some(&problem) {
            tracing::warn!("{problem}; what was read before stays in use");
            self.0.replace(Some(problem));
        }
    }

    fn over(&self) {
        self.0.take();
    }
}
