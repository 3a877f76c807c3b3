//! Rewrites flags in Go's forms: every word becomes `--name=value`.

use std::ffi::OsString;

use super::ArgsError;
use super::flags::{self, Arity};

/// Rewrites a command line in Go's or GNU's forms as `--name=value` words, in which the value is unambiguous.
///
/// Reading stops at a request for help or version. It also stops at an unknown flag, because the next word may be its
/// value; the parser then reports the flag.
pub(super) fn to_long_form(args: impl IntoIterator<Item = OsString>) -> Result<Vec<String>, ArgsError> {
    let mut words = args.into_iter().enumerate().map(|(index, word)| utf8(index, word));
    let mut long = Vec::new();
    while let Some(word) = words.next() {
        let word = word?;
        // systemd passes an unset ${VARIABLE} of a unit as an empty argument.
        if word.is_empty() {
            continue;
        }
        let Some(body) = strip_dashes(&word) else {
            return Err(not_a_flag(&word, &long));
        };
        if body.is_empty() {
            return match words.next() {
                None => Ok(long),
                Some(_) => Err(ArgsError::one("nothing may follow \"--\": flanneld takes flags only")),
            };
        }
        let (name, value) = split(body)?;
        let Some(flag) = flags::find(name) else {
            long.push(builtin_or_unknown(name));
            break;
        };
        let value = match (value, flag.arity) {
            (Some(value), _) => value,
            (None, Arity::Bool) => "true".to_owned(),
            (None, Arity::Value(value_name)) => words.next().unwrap_or_else(|| {
                let flag = flags::dashed(name);
                Err(ArgsError::one(format!("{flag} needs a value: {flag}={value_name}")))
            })?,
        };
        long.push(format!("--{name}={value}"));
    }
    Ok(long)
}

fn utf8(index: usize, word: OsString) -> Result<String, ArgsError> {
    // The word itself is not shown: it may be the value of --etcd-password.
    word.into_string().map_err(|_| ArgsError::one(format!("argument {} is not valid UTF-8", index + 1)))
}

/// The text after one or two dashes; `None` for words without a dash and, as in Go, for a lone dash.
fn strip_dashes(word: &str) -> Option<&str> {
    let body = word.strip_prefix('-')?;
    match body.strip_prefix('-') {
        Some(body) => Some(body),
        None => (!body.is_empty()).then_some(body),
    }
}

/// Splits `name=value` or `name`.
fn split(body: &str) -> Result<(&str, Option<String>), ArgsError> {
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (body, None),
    };
    if name.is_empty() || name.starts_with('-') {
        return Err(ArgsError::one("a flag is missing its name: write --name=value (--help lists the flags)"));
    }
    Ok((name, value))
}

/// Go reads `-h` as `-help`. The parser reports an unknown flag.
fn builtin_or_unknown(name: &str) -> String {
    match name {
        "h" => "--help".to_owned(),
        "V" => "--version".to_owned(),
        _ => format!("--{name}"),
    }
}

/// The error for a word where a flag was expected. Go silently stops reading flags there.
fn not_a_flag(word: &str, before: &[String]) -> ArgsError {
    let Some(last) = before.last() else {
        return ArgsError::one(format!("unknown subcommand {word:?}: flanneld has none, only flags (see --help)"));
    };
    // It may be the rest of a password that the shell split at a space, or an URL that holds one.
    let word = match before.iter().any(|word| word.starts_with("--etcd-password=")) || word.contains('@') {
        true => "an argument".to_owned(),
        false => format!("argument {word:?}"),
    };
    let name = last.split('=').next().unwrap_or(last).trim_start_matches('-');
    match flags::find(name) {
        Some(flag) if flag.arity == Arity::Bool => ArgsError::one(format!(
            "{word} after {flag} is not a flag: write {flag}=true or {flag}=false",
            flag = flags::dashed(name)
        )),
        _ => ArgsError::one(format!("{word} is not a flag: flanneld takes flags only (see --help)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(args: &[&str]) -> Result<Vec<String>, String> {
        to_long_form(args.iter().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_becomes_the_long_one() {
        let table: &[(&[&str], &[&str])] = &[
            (&[], &[]),
            (&["-etcd-prefix=/x"], &["--etcd-prefix=/x"]),
            (&["-etcd-prefix", "/x"], &["--etcd-prefix=/x"]),
            (&["--etcd-prefix", "/x"], &["--etcd-prefix=/x"]),
            (&["--etcd-prefix=a=b"], &["--etcd-prefix=a=b"]),
            (&["--docker-opts-file="], &["--docker-opts-file="]),
            (&["-iface-regex", "-x"], &["--iface-regex=-x"]),
            (&["-iface-regex", "--"], &["--iface-regex=--"]),
            (&["-docker-opts-file", ""], &["--docker-opts-file="]),
            (&["-ip-masq"], &["--ip-masq=true"]),
            (&["--ip-masq=false"], &["--ip-masq=false"]),
            (&["-ip-masq", "-v", "2"], &["--ip-masq=true", "--v=2"]),
            (&["-v=2"], &["--v=2"]),
            (&["", "-v=2", "", ""], &["--v=2"]),
            (&["-iface", "", "-v=2"], &["--iface=", "--v=2"]),
            (&["--v", "2"], &["--v=2"]),
            (&["-v", "2", "--"], &["--v=2"]),
            (&["-h"], &["--help"]),
            (&["-help", "whatever"], &["--help"]),
            (&["-version"], &["--version"]),
            (&["-nonsense=x", "whatever"], &["--nonsense"]),
        ];
        for (args, expected) in table {
            let expected = expected.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(long(args), Ok(expected), "{args:?}");
        }
    }

    #[test]
    fn words_that_are_no_flags_are_errors() {
        let table: &[(&[&str], &str)] = &[
            (&["status"], "unknown subcommand \"status\": flanneld has none, only flags (see --help)"),
            (&["-v=2", "x"], "argument \"x\" is not a flag: flanneld takes flags only (see --help)"),
            (&["-v=2", "-"], "argument \"-\" is not a flag: flanneld takes flags only (see --help)"),
            (
                &["--ip-masq", "false"],
                "argument \"false\" after --ip-masq is not a flag: write --ip-masq=true or \
                 --ip-masq=false",
            ),
            (&["--etcd-password", "a", "b"], "an argument is not a flag: flanneld takes flags only (see --help)"),
            (&["-v=2", "http://u:p@h:1"], "an argument is not a flag: flanneld takes flags only (see --help)"),
            (&["--", "x"], "nothing may follow \"--\": flanneld takes flags only"),
            (&["---v=2"], "a flag is missing its name: write --name=value (--help lists the flags)"),
            (&["-=2"], "a flag is missing its name: write --name=value (--help lists the flags)"),
            (&["-iface"], "--iface needs a value: --iface=NAME|IP"),
            (&["-v"], "-v needs a value: -v=LEVEL"),
        ];
        for (args, expected) in table {
            assert_eq!(long(args), Err((*expected).to_owned()), "{args:?}");
        }
    }

    #[test]
    fn words_that_are_not_utf8_are_counted_not_shown() {
        use std::os::unix::ffi::OsStringExt;
        let args = [OsString::from("--etcd-password"), OsString::from_vec(vec![b's', 0xff])];
        let error = to_long_form(args).map_err(|error| error.to_string());
        assert_eq!(error, Err("argument 2 is not valid UTF-8".to_owned()));
    }
}
