//! The addresses of etcd.

use std::net::Ipv6Addr;

/// Reads a comma-separated list of endpoints and writes each as `http://host:port` or `https://host:port`.
///
/// # Errors
///
/// The form that an endpoint must have. The text repeats no endpoint if any of them may hold a password.
pub(super) fn parse(list: &str) -> Result<Vec<String>, String> {
    if list.contains('@') {
        return Err("no user and password here: give --etcd-username and --etcd-password-file".to_owned());
    }
    let pieces: Vec<&str> = list.split(',').map(str::trim).filter(|piece| !piece.is_empty()).collect();
    if pieces.is_empty() {
        return Err("give at least one endpoint, like http://127.0.0.1:2379".to_owned());
    }
    pieces.into_iter().map(endpoint).collect()
}

fn endpoint(piece: &str) -> Result<String, String> {
    let (scheme, rest) = piece.split_once("://").unwrap_or(("http", piece));
    let scheme = scheme.to_ascii_lowercase();
    if !["http", "https"].contains(&scheme.as_str()) {
        return Err(format!("{piece} must be http://HOST:PORT or https://HOST:PORT"));
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if let Some(end) = authority.find(['/', '?', '#']) {
        return Err(format!("{piece} must end after the port: {scheme}://{}", &authority[..end]));
    }
    let (host, port) = host_and_port(authority, &scheme).map_err(|wanted| format!("{piece} {wanted}"))?;
    Ok(format!("{scheme}://{host}:{port}"))
}

/// Splits and checks `host:port`. An IPv6 address must be in brackets and keeps them.
fn host_and_port<'a>(authority: &'a str, scheme: &str) -> Result<(&'a str, u16), String> {
    let (host, port) = match authority.rfind(']') {
        Some(bracket) => authority.split_at(bracket + 1),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    if authority.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("needs brackets and a port: {scheme}://[{authority}]:2379"));
    }
    let host_is_valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    if !host_is_valid {
        return Err(format!("needs a host name or an address: {scheme}://HOST:PORT"));
    }
    if port.is_empty() {
        return Err(format!("needs a port: {scheme}://{host}:2379"));
    }
    match port.strip_prefix(':').map(str::parse) {
        Some(Ok(port)) if port != 0 => Ok((host, port)),
        _ => Err(format!("needs a port from 1 to 65535: {scheme}://{host}:2379")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_normalised() {
        let table: &[(&str, &[&str])] = &[
            ("http://127.0.0.1:2379", &["http://127.0.0.1:2379"]),
            ("http://a:1,http://b:2", &["http://a:1", "http://b:2"]),
            (" http://a:1 , ,b:2,", &["http://a:1", "http://b:2"]),
            ("etcd-0.example.org:2379/", &["http://etcd-0.example.org:2379"]),
            ("HTTP://Etcd_1:02379/", &["http://Etcd_1:2379"]),
            ("[fd00::1]:2379", &["http://[fd00::1]:2379"]),
            ("http://[::1]:65535", &["http://[::1]:65535"]),
            ("https://a:1,HTTPS://[fd00::1]:2/,c:3", &["https://a:1", "https://[fd00::1]:2", "http://c:3"]),
        ];
        for (list, expected) in table {
            let expected = expected.iter().map(|&endpoint| endpoint.to_owned()).collect();
            assert_eq!(parse(list), Ok(expected), "{list}");
        }
    }

    #[test]
    fn a_wrong_endpoint_is_named_with_what_is_right() {
        let table = &[
            ("", "give at least one endpoint, like http://127.0.0.1:2379"),
            (" ,, ", "give at least one endpoint, like http://127.0.0.1:2379"),
            ("etcd", "etcd needs a port: http://etcd:2379"),
            ("http://a:1,http://etcd", "http://etcd needs a port: http://etcd:2379"),
            ("http://etcd/", "http://etcd/ needs a port: http://etcd:2379"),
            ("etcd:", "etcd: needs a port from 1 to 65535: http://etcd:2379"),
            ("etcd:0", "etcd:0 needs a port from 1 to 65535: http://etcd:2379"),
            ("etcd:65536", "etcd:65536 needs a port from 1 to 65535: http://etcd:2379"),
            ("etcd:-1", "etcd:-1 needs a port from 1 to 65535: http://etcd:2379"),
            ("a:1:2", "a:1:2 needs a port from 1 to 65535: http://a:2379"),
            ("[::1]", "[::1] needs a port: http://[::1]:2379"),
            ("[::1]2379", "[::1]2379 needs a port from 1 to 65535: http://[::1]:2379"),
            ("http://fd00::1", "http://fd00::1 needs brackets and a port: http://[fd00::1]:2379"),
            ("[etcd]:2379", "[etcd]:2379 needs a host name or an address: http://HOST:PORT"),
            ("http://:2379", "http://:2379 needs a host name or an address: http://HOST:PORT"),
            ("a b:2379", "a b:2379 needs a host name or an address: http://HOST:PORT"),
            ("a:1;b:2", "a:1;b:2 needs a port from 1 to 65535: http://a:2379"),
            ("http://a:1/v2", "http://a:1/v2 must end after the port: http://a:1"),
            ("http://a:1?x", "http://a:1?x must end after the port: http://a:1"),
            ("https://a", "https://a needs a port: https://a:2379"),
            ("https://a:1/v2", "https://a:1/v2 must end after the port: https://a:1"),
            ("unix:///run/etcd", "unix:///run/etcd must be http://HOST:PORT or https://HOST:PORT"),
        ];
        for &(list, expected) in table {
            assert_eq!(parse(list), Err(expected.to_owned()), "{list}");
        }
    }

    #[test]
    fn no_part_of_a_password_is_repeated() {
        for list in
            ["http://root:s3c,r3t@a:1", "root:s3c/r3t@a:1", "https://root:s3cr3t@a", "http://a:1,http://s3c:r3t@b"]
        {
            let error = parse(list).expect_err(list);
            assert!(!error.contains("s3c") && !error.contains("r3t"), "{error}");
        }
    }
}
