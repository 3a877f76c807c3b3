//! The meaning of etcd-client's errors: did etcd answer, or must the next member be asked?

use super::channel::TimedOut;
use crate::store::StoreError;
use etcd_client::{Error, WatchResponse};
use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::Duration;
use tonic::{Code, Status};

/// Why a call to etcd gave no result.
#[derive(Debug)]
pub(super) enum CallError {
    /// No member answered; each with what happened there.
    NoAnswer(Vec<(String, Failure)>),
    /// etcd answered, with this error: any other member would say the same.
    Answer(Box<Status>),
}

/// The failure of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// No answer came, or not enough of it.
    TimedOut(Duration),
    /// Anything else, in words.
    Other(String),
}

impl From<TimedOut> for Failure {
    fn from(TimedOut(limit): TimedOut) -> Self {
        Failure::TimedOut(limit)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::TimedOut(limit) => write!(f, "no answer within {} s", limit.as_secs()),
            Failure::Other(what) => f.write_str(what),
        }
    }
}

impl CallError {
    /// The same for the daemon; `prefix` is where it wanted to read and write.
    pub(super) fn into_store_error(self, prefix: &str) -> StoreError {
        match self {
            CallError::NoAnswer(failures) => StoreError::Unavailable(summary(&failures)),
            CallError::Answer(status) => StoreError::Refused(refusal(status.message(), prefix)),
        }
    }

    /// A member accepted the call and did not answer in time.
    pub(super) fn is_timed_out(&self) -> bool {
        let timed_out = |(_, failure): &(String, Failure)| matches!(failure, Failure::TimedOut(_));
        matches!(self, CallError::NoAnswer(failures) if failures.iter().any(timed_out))
    }

    /// A lease that was to be used does not exist.
    pub(super) fn is_lease_not_found(&self) -> bool {
        self.answers(Code::NotFound, "requested lease not found")
    }

    /// A lease with the wanted id exists already.
    pub(super) fn is_lease_exists(&self) -> bool {
        self.answers(Code::FailedPrecondition, "lease already exists")
    }

    /// The wanted revision is compacted, or has not come yet: etcd was wiped since.
    pub(super) fn is_no_such_revision(&self) -> bool {
        self.answers(Code::OutOfRange, "required revision")
    }

    /// The answer is longer than the client is ready to read (tonic says it with etcd's code for old revisions).
    pub(super) fn is_too_large(&self) -> bool {
        self.answers(Code::OutOfRange, "message length too large")
    }

    fn answers(&self, code: Code, text: &str) -> bool {
        matches!(self, CallError::Answer(status) if status.code() == code && status.message().contains(text))
    }
}

/// `member: reason; member, member: reason`.
fn summary(failures: &[(String, Failure)]) -> String {
    let alike = failures.chunk_by(|(_, one), (_, other)| one == other);
    let reasons = alike.map(|group| {
        let members: Vec<&str> = group.iter().map(|(member, _)| member.as_str()).collect();
        format!("{}: {}", members.join(", "), group[0].1)
    });
    reasons.collect::<Vec<_>>().join("; ")
}

/// Whether the cluster itself answered; everything else is a member's trouble, and the next one may do better.
pub(super) fn answer(error: Error) -> Result<Box<Status>, Error> {
    match error {
        Error::GRpcStatus(status) if is_definite(&status) => Ok(Box::new(status)),
        other => Err(other),
    }
}

/// Statuses made from a broken connection have a source, those that etcd sent have none.
fn is_definite(status: &Status) -> bool {
    use Code::*;
    let code = matches!(
        status.code(),
        InvalidArgument
            | NotFound
            | AlreadyExists
            | PermissionDenied
            | ResourceExhausted
            | FailedPrecondition
            | OutOfRange
            | Unauthenticated
    );
    code && status.source().is_none() && !status.message().contains("too many requests")
}

/// Whether the connection failed rather than whoever is behind it.
pub(super) fn is_broken_connection(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.source().is_some())
}

/// Whether etcd does not know, or no longer, who asks.
pub(super) fn is_unknown_user(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.code() == Code::Unauthenticated || no_user(status.message()))
}

/// A watch that is not for somebody unknown is confirmed and cancelled at once, where calls get an error.
pub(super) fn user_is_known(created: &WatchResponse) -> Result<(), Error> {
    match created.canceled() && no_user(created.cancel_reason()) {
        true => Err(Error::GRpcStatus(Status::unauthenticated(created.cancel_reason()))),
        false => Ok(()),
    }
}

fn no_user(message: &str) -> bool {
    ["invalid auth token", "user name is empty", "revision of auth store is old"].iter().any(|no| message.contains(no))
}

/// Whether etcd was given a user and wants none.
pub(super) fn is_auth_disabled(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("authentication is not enabled"))
}

/// What happened at a member, in a few words.
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => deepest(status).unwrap_or_else(|| bare(status.message()).to_owned()),
        Error::TransportError(error) => deepest(error).unwrap_or_else(|| error.to_string()),
        error => error.to_string(),
    }
}

/// The cause at the bottom of an error, if it says more than the top.
fn deepest(error: &dyn std::error::Error) -> Option<String> {
    let mut text = None;
    let mut source = error.source();
    while let Some(error) = source {
        text = Some(match error.downcast_ref::<io::Error>() {
            Some(error) if error.kind() == io::ErrorKind::TimedOut => "no connection in time".to_owned(),
            Some(error) if error.raw_os_error().is_some() => error.kind().to_string(),
            _ => error.to_string(),
        });
        source = error.source();
    }
    text
}

/// etcd's message without the name of its package.
fn bare(message: &str) -> &str {
    message.strip_prefix("etcdserver: ").unwrap_or(message)
}

/// A refusal with the advice that helps.
fn refusal(message: &str, prefix: &str) -> String {
    let message = message.split_once("desc = ").map_or(message, |(_, message)| message);
    let message = bare(message);
    let advice = if message.contains("permission denied") {
        format!(
            "; give a role of the user (--etcd-username, else the common name of the client certificate) readwrite on \
             prefix {prefix}/: etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}/"
        )
    } else if message.contains("user name is empty") {
        "; it has authentication enabled: give --etcd-username and --etcd-password-file".to_owned()
    } else if message.contains("invalid user ID or password") {
        "; set --etcd-username and --etcd-password-file right".to_owned()
    } else if message.contains("database space exceeded") {
        "; it is full: compact and defragment it, then disarm the alarm".to_owned()
    } else {
        String::new()
    };
    format!("etcd refuses: {message} for {prefix}{advice}")
}

/// What a cancelled watch means; `reason` is etcd's.
pub(super) fn cancelled(reason: &str, prefix: &str) -> StoreError {
    let refused = ["permission denied", "user name is empty", "auth"];
    match refused.iter().any(|word| reason.contains(word)) {
        true => StoreError::Refused(refusal(reason, prefix)),
        false if reason.is_empty() => StoreError::Unavailable("etcd cancelled the watch".into()),
        false => StoreError::Unavailable(format!("etcd cancelled the watch: {}", bare(reason))),
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NoAnswer(failures) => f.write_str(&summary(failures)),
            CallError::Answer(status) => f.write_str(bare(status.message())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "/coreos.com/network";

    #[test]
    fn a_refusal_says_what_to_do() {
        let denied = CallError::Answer(Box::new(Status::permission_denied("etcdserver: permission denied")));
        assert_eq!(
            denied.into_store_error(PREFIX).to_string(),
            "etcd refuses: permission denied for /coreos.com/network; give a role of the user (--etcd-username, else the \
             common name of the client certificate) readwrite on prefix /coreos.com/network/: etcdctl role \
             grant-permission ROLE readwrite --prefix=true /coreos.com/network/"
        );
        let cancelled =
            cancelled("rpc error: code = PermissionDenied desc = etcdserver: permission denied", PREFIX).to_string();
        assert!(cancelled.starts_with("etcd refuses: permission denied for /coreos.com/network; give"), "{cancelled}");
        let wrong = Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password");
        assert_eq!(
            CallError::Answer(Box::new(wrong)).into_store_error(PREFIX).to_string(),
            "etcd refuses: authentication failed, invalid user ID or password for /coreos.com/network; set \
             --etcd-username and --etcd-password-file right"
        );
    }

    #[test]
    fn members_with_one_trouble_share_one_reason() {
        let failed = |member: &str, reason: &str| (member.to_owned(), Failure::Other(reason.to_owned()));
        let failures = [failed("a", "dead"), failed("b", "dead"), failed("c", "mute"), failed("d", "dead")];
        assert_eq!(CallError::NoAnswer(failures.to_vec()).to_string(), "a, b: dead; c: mute; d: dead");
    }

    #[test]
    fn only_what_the_cluster_says_is_an_answer() {
        let says = |status: Status| answer(Error::GRpcStatus(status)).is_ok();
        assert!(says(Status::permission_denied("etcdserver: permission denied")));
        assert!(says(Status::not_found("etcdserver: requested lease not found")));
        assert!(says(Status::resource_exhausted("etcdserver: mvcc: database space exceeded")));
        assert!(!says(Status::unavailable("etcdserver: no leader")));
        assert!(!says(Status::cancelled("Timeout expired")));
        assert!(!says(Status::unknown("h2 protocol error: error reading a body from connection")));
        assert!(!says(Status::unimplemented("404")));
        assert!(!says(Status::resource_exhausted("etcdserver: too many requests")));
        assert!(answer(Error::WatchError("the stream ended".into())).is_err());
    }

    #[test]
    fn the_two_meanings_of_out_of_range_are_told_apart() {
        let error = |text| CallError::Answer(Box::new(Status::out_of_range(text)));
        let compacted = error("etcdserver: mvcc: required revision has been compacted");
        assert!(compacted.is_no_such_revision() && !compacted.is_too_large());
        let large = error("Error, decoded message length too large: found 6482584 bytes, the limit is: 4194304 bytes");
        assert!(large.is_too_large() && !large.is_no_such_revision());
    }
}
