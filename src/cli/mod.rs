//! The commands. Only this folder names concrete stores and kernels.

pub mod args;
pub mod docker_opts;
pub mod run;
pub mod service_manager;
mod signals;

use crate::files::background;
use args::Invocation;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// Runs the command. A subcommand is the first word of the command line, or the name of the program.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os().peekable();
    let program = words.next().unwrap_or_default();
    if docker_opts::is_named(&program) || words.next_if(|word| word == docker_opts::NAME).is_some() {
        return docker_opts::main(words);
    }
    if words.next_if(|word| word == background::WRITER).is_some() {
        return background::main(words);
    }
    let env = match environment(std::env::vars_os()) {
        Ok(env) => env,
        Err(problem) => return refuse(&problem),
    };
    match args::parse(words, &env) {
        Ok(Invocation::Run(options, warnings)) => run::run(*options, &warnings),
        Ok(Invocation::ShowHelp(text) | Invocation::ShowVersion(text)) => {
            // print! would panic if standard output is closed.
            match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(error) => refuse(&error),
    }
}

fn refuse(problem: &dyn Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "flanneld: {problem}\nflanneld --help lists all flags");
    ExitCode::FAILURE
}

/// The environment variables that are valid UTF-8. Another one is an error only if its name is one of flanneld's.
fn environment(all: impl Iterator<Item = (OsString, OsString)>) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::new();
    for (name, value) in all {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => drop(env.insert(name, value)),
            Err(_) if name.starts_with("FLANNEL") || name == "STATE_DIRECTORY" => {
                return Err(format!("environment variable {name} is not valid UTF-8"));
            }
            Err(_) => {}
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_variable_of_ours_that_is_no_text_is_named() {
        let broken = |name: &str| [(OsString::from(name), OsString::from_vec(vec![0xff]))].into_iter();
        let error = environment(broken("FLANNELD_ETCD_PREFIX")).unwrap_err();
        assert_eq!(error, "environment variable FLANNELD_ETCD_PREFIX is not valid UTF-8");
        assert!(environment(broken("LS_COLORS")).unwrap().is_empty());
    }
}
