//! Readers for single values. An error says what would be right; the caller adds the flag and the
//! value.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use regex::Regex;

/// The shortest TTL. etcd rounds shorter ones up, and no renewal would come in time.
const MIN_LEASE_TTL: Duration = Duration::from_secs(2);
const MAX_LEASE_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Makes an empty value mean that nothing was given.
pub(super) fn optional<T>(parse: impl Fn(&str) -> Result<T, String>) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| {
        if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
    }
}

/// Reads a bool as Go's `strconv.ParseBool` does.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// Cleans a key prefix as Go's `path.Join` does, but for the root, which becomes empty so that
/// `{prefix}/config` is right.
pub(super) fn key_prefix(text: &str) -> Result<String, String> {
    let rooted = text.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|&last| last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, true) => Ok(String::new()),
        (true, false) => Ok(format!("/{}", parts.join("/"))),
        (false, false) => Ok(parts.join("/")),
        (false, true) => Err("must name a key, like /coreos.com/network".to_owned()),
    }
}

/// Reads the name of an interface, or an address that one has.
pub(super) fn interface(text: &str) -> Result<String, String> {
    if text.contains(|c: char| c == '/' || c.is_whitespace()) {
        return Err("must be the name of one interface, like eth0, or its address without a length".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a regular expression.
pub(super) fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| match error {
        // The error has several lines that draw the place; the last one states the problem.
        regex::Error::Syntax(drawing) => {
            let reason = drawing.lines().last().unwrap_or_default();
            format!("must be a regular expression, but {}", reason.trim_start_matches("error: "))
        }
        error => format!("must be a regular expression, but {error}"),
    })
}

/// Reads an address of either family.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "must be an IP address".to_owned())
}

/// Reads an IPv4 address that other hosts can send to.
pub(super) fn unicast_v4(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse::<Ipv4Addr>() {
        Ok(ip) if !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast()) => Ok(ip),
        _ => Err("must be an IPv4 address that other hosts can send to, like 192.0.2.1".to_owned()),
    }
}

/// Reads the path of a file or directory, absolute or relative.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

/// Reads a port, 0 to 65535.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "must be a port from 0 to 65535, where 0 means off".to_owned())
}

/// Reads a number of seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().ok().filter(|seconds| *seconds > 0);
    let seconds = seconds.map(|seconds| Duration::from_secs(seconds.into()));
    seconds.ok_or_else(|| "must be a whole number of seconds, 1 or more".to_owned())
}

/// Reads a log level.
pub(super) fn verbosity(text: &str) -> Result<u8, String> {
    text.parse().map_err(|_| "must be a number from 0 to 255".to_owned())
}

/// Reads the TTL of a lease, 2 s to 30 days.
pub(super) fn lease_ttl(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("needs a unit: {text}h, {text}m or {text}s"));
    }
    match humantime::parse_duration(text) {
        Ok(ttl) if ttl.subsec_nanos() == 0 && (MIN_LEASE_TTL..=MAX_LEASE_TTL).contains(&ttl) => Ok(ttl),
        _ => Err("must be whole seconds from 2s to 30days, like 24h or 1h30m".to_owned()),
    }
}

/// Reads the renewal margin: a bare number means minutes.
pub(super) fn renew_margin(text: &str) -> Result<Duration, String> {
    let margin = match text.parse::<u32>() {
        Ok(minutes) => Some(Duration::from_secs(u64::from(minutes) * 60)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    let margin = margin.filter(|margin| !margin.is_zero());
    margin.ok_or_else(|| "must be a number of minutes, or a duration like 20s, and more than zero".to_owned())
}

/// Reads how long peers are held, up to 30 days.
pub(super) fn peer_hold(text: &str) -> Result<Duration, String> {
    let hold = humantime::parse_duration(text).ok().filter(|hold| *hold <= MAX_LEASE_TTL);
    hold.ok_or_else(|| "must be a duration from 0s to 30days, like 24h or 90s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_gos() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(text), Ok(true), "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(text), Ok(false), "{text}");
        }
        for text in ["", "yes", "tRUE", " true", "2"] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prefixes_are_cleaned() {
        let table = [
            ("/coreos.com/network", Some("/coreos.com/network")),
            ("/coreos.com//network/", Some("/coreos.com/network")),
            ("coreos.com/network/", Some("coreos.com/network")),
            ("/a/./b/../c", Some("/a/c")),
            ("a/../../b", Some("../b")),
            ("../../b", Some("../../b")),
            ("/../../b", Some("/b")),
            ("/", Some("")),
            ("//", Some("")),
            ("/a/..", Some("")),
            ("", None),
            (".", None),
            ("a/..", None),
        ];
        for (text, expected) in table {
            assert_eq!(key_prefix(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn lease_ttls() {
        let unit = |text| Err(format!("needs a unit: {text}h, {text}m or {text}s"));
        let wrong = || Err("must be whole seconds from 2s to 30days, like 24h or 1h30m".to_owned());
        let table = [
            ("24h", Ok(86_400)),
            ("30s", Ok(30)),
            ("1h30m", Ok(5_400)),
            ("1h30m0s", Ok(5_400)),
            ("1h 30m", Ok(5_400)),
            ("2s", Ok(2)),
            ("30days", Ok(2_592_000)),
            ("24", unit("24")),
            ("0", unit("0")),
            ("1s", wrong()),
            ("2500ms", wrong()),
            ("31days", wrong()),
            ("-24h", wrong()),
            ("24 hectares", wrong()),
            ("99999999999999999999h", wrong()),
            ("", wrong()),
        ];
        for (text, expected) in table {
            assert_eq!(lease_ttl(text), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn holds() {
        for (text, expected) in
            [("0s", Some(0)), ("90s", Some(90)), ("30days", Some(2_592_000)), ("1h30m", Some(5_400))]
        {
            assert_eq!(peer_hold(text).ok(), expected.map(Duration::from_secs), "{text}");
        }
        for text in ["", "90", "-1s", "31days", "soon"] {
            assert!(peer_hold(text).is_err(), "{text}");
        }
    }

    #[test]
    fn renew_margins() {
        let table = [
            ("60", Some(3_600)),
            ("1439", Some(86_340)),
            ("20s", Some(20)),
            ("1h30m", Some(5_400)),
            ("4294967295", Some(257_698_037_700)),
            ("4294967296", None),
            ("0", None),
            ("0s", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(renew_margin(text).ok(), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_unicast() {
        for text in ["192.168.64.3", "8.8.8.8", "169.254.1.1"] {
            assert!(unicast_v4(text).is_ok(), "{text}");
        }
        for text in
            ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "fd00::1", "10.0.0.1/24", "host", "010.0.0.1"]
        {
            assert!(unicast_v4(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_in_a_pattern_is_one_line() {
        let error = regex("eth[").expect_err("an open class");
        assert_eq!(error, "must be a regular expression, but unclosed character class");
    }

    #[test]
    fn small_values() {
        assert_eq!(optional(ip)(""), Ok(None));
        assert!(optional(ip)("fd00::1").is_ok_and(|ip| ip.is_some()));
        assert!(ip("localhost").is_err());
        assert_eq!(port("65535"), Ok(65_535));
        assert!(port("65536").is_err() && port("-1").is_err() && port("").is_err());
        assert_eq!(verbosity("10"), Ok(10));
        assert!(verbosity("-1").is_err() && verbosity("debug").is_err());
        assert!(seconds("5").is_ok() && seconds("5s").is_err());
        assert!(path("").is_err() && path("x/y").is_ok());
        assert!(interface("eth0.100").is_ok() && interface("10.0.0.1/24").is_err() && interface("eth0 eth1").is_err());
    }
}
