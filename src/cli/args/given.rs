//! Values with their origin: the command line first, then the environment, then the default.

use std::collections::BTreeMap;
use std::fmt;

use clap::ArgMatches;

use super::flags;

/// Where a value was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    CommandLine,
    /// In the environment variable of this name.
    Environment(String),
    Default,
}

/// The text given for a flag.
pub(super) struct Value {
    /// The flag's name, without dashes.
    pub(super) flag: &'static str,
    pub(super) text: String,
    pub(super) origin: Origin,
}

impl Value {
    /// Flag and origin, for messages that are not about the value.
    pub(super) fn name(&self) -> String {
        match &self.origin {
            Origin::Environment(variable) => {
                format!("{} (environment variable {variable})", flags::dashed(self.flag))
            }
            _ => flags::dashed(self.flag),
        }
    }
}

impl fmt::Display for Value {
    /// Writes the value as it was assigned. A value with an `@` may hold a password and is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Environment(variable) => write!(f, "environment variable {variable}")?,
            _ => f.write_str(&flags::dashed(self.flag))?,
        }
        if self.text.contains('@') { Ok(()) } else { write!(f, "={:?}", self.text) }
    }
}

/// The flags and the environment of one start, and the problems found so far.
pub(super) struct Given<'a> {
    matches: &'a ArgMatches,
    env: &'a BTreeMap<String, String>,
    problems: Vec<String>,
}

impl<'a> Given<'a> {
    pub(super) fn new(matches: &'a ArgMatches, env: &'a BTreeMap<String, String>) -> Self {
        Self { matches, env, problems: Vec::new() }
    }

    pub(super) fn report(&mut self, problem: String) {
        self.problems.push(problem);
    }

    pub(super) fn into_problems(self) -> Vec<String> {
        self.problems
    }

    /// The value of a flag, from the first place that has one. An empty value counts on the command line but not in
    /// the environment.
    pub(super) fn value(&self, name: &'static str) -> Value {
        self.values(name).pop().unwrap_or_else(|| {
            let default = flags::find(name).map_or("", |flag| flag.default);
            Value { flag: name, text: default.to_owned(), origin: Origin::Default }
        })
    }

    /// All values of a repeatable flag, none if none was given. The environment holds one at most.
    fn values(&self, name: &'static str) -> Vec<Value> {
        if self.matches.contains_id(name) {
            let texts = self.matches.get_many::<String>(name).into_iter().flatten();
            return texts
                .map(|text| Value { flag: name, text: trimmed(name, text), origin: Origin::CommandLine })
                .collect();
        }
        let found = from_environment(name, self.env);
        found
            .map(|(variable, text)| Value {
                flag: name,
                text: trimmed(name, &text),
                origin: Origin::Environment(variable),
            })
            .into_iter()
            .collect()
    }

    /// Reads one value. Reports a wrong value and returns `None`.
    pub(super) fn read<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.value(name);
        self.parsed(&value, parse)
    }

    /// Reads all values of a repeatable flag but empty ones, which scripts give for "not set".
    /// Reports all wrong values and returns `None` if there was one.
    pub(super) fn read_each<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let mut values = self.values(name);
        values.retain(|value| !value.text.is_empty());
        let parsed: Vec<Option<T>> = values.iter().map(|value| self.parsed(value, &parse)).collect();
        parsed.into_iter().collect()
    }

    fn parsed<T>(&mut self, value: &Value, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(&value.text) {
            Ok(parsed) => Some(parsed),
            Err(wanted) => {
                self.report(format!("{value}: {wanted}"));
                None
            }
        }
    }
}

/// The first variable that gives the flag a value that is not empty, and that value.
fn from_environment(name: &str, env: &BTreeMap<String, String>) -> Option<(String, String)> {
    let get = |variable: &str| env.get(variable).filter(|text| !text.is_empty()).cloned();
    let own = format!("FLANNELD_{}", name.to_uppercase().replace(['-', '.'], "_"));
    if let Some(text) = get(&own) {
        return Some((own, text));
    }
    let others: &[&str] = match name {
        // The names in CentOS's /etc/sysconfig/flanneld.
        "etcd-endpoints" => &["FLANNEL_ETCD_ENDPOINTS", "FLANNEL_ETCD"],
        "etcd-prefix" => &["FLANNEL_ETCD_PREFIX", "FLANNEL_ETCD_KEY"],
        "state-dir" => &["STATE_DIRECTORY"],
        _ => &[],
    };
    others.iter().find_map(|&variable| {
        let text = get(variable)?;
        let text = match variable {
            // systemd lists all StateDirectory= entries of the unit.
            "STATE_DIRECTORY" => text.split(':').next().unwrap_or_default(),
            _ => unquoted(&text),
        };
        (!text.is_empty()).then(|| (variable.to_owned(), text.to_owned()))
    })
}

/// Drops the space around a value, which files and scripts leave there by accident. It may be part of a password.
fn trimmed(name: &str, text: &str) -> String {
    if name == "etcd-password" { text.to_owned() } else { text.trim().to_owned() }
}

/// Drops the quotes that a shell or systemd would have dropped; `docker --env-file` leaves them.
fn unquoted(text: &str) -> &str {
    let text = text.trim();
    let inside = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}
