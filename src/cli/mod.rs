//! What an operator can ask for. The only place that names concrete stores and kernels.

pub mod args;
pub mod manager;
pub mod run;

use args::Invocation;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

/// Does what the command line and the environment ask for.
pub fn main() -> ExitCode {
    let text = |text: std::ffi::OsString| text.into_string().ok();
    let env: BTreeMap<String, String> =
        std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
    match args::parse(std::env::args_os().skip(1), &env) {
        Ok(Invocation::Run(options, warnings)) => run::run(*options, &warnings),
        Ok(Invocation::ShowHelp(text) | Invocation::ShowVersion(text)) => {
            // Not print!, which panics when nobody can read it.
            match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "flanneld: {error}\nflanneld --help lists all flags");
            ExitCode::FAILURE
        }
    }
}
