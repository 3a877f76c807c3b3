//! `flanneld docker-opts`, also as `mk-docker-opts.sh`: writes Docker's options from `subnet.env` as flannel's script does.

use crate::files;
use crate::model::env_files::{DockerLines, DockerOpts};
use crate::model::foreign::line;
use clap::{CommandFactory, Parser};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The subcommand: the first word after the program's name.
pub const NAME: &str = "docker-opts";

/// The name of flannel's script. Units that were written for flannel call it.
const SCRIPT: &str = "mk-docker-opts.sh";

const NOTES: &str = "\
Without -i and -c it writes both forms. What the variable with all options holds in the environment is kept
in front of them. Started under the name mk-docker-opts.sh, flanneld does the same.";

/// Write a file with Docker's options for the subnet that flanneld gave this host
#[derive(Debug, Parser)]
#[command(name = NAME, bin_name = "flanneld docker-opts", after_help = NOTES)]
#[command(no_binary_name = true, args_override_self = true)]
struct Args {
    /// The file to read, which flanneld writes: its --subnet-file
    #[arg(short = 'f', value_name = "FILE", default_value = "/run/flannel/subnet.env", allow_hyphen_values = true)]
    subnet_file: PathBuf,
    /// The file to write; /dev/stdout only shows what would be in it
    #[arg(short = 'd', value_name = "FILE", default_value = "/run/docker_opts.env", allow_hyphen_values = true)]
    docker_file: PathBuf,
    /// Write a variable for each option, such as DOCKER_OPT_MTU="--mtu=1450"
    #[arg(short = 'i')]
    individual: bool,
    /// Write one variable with all options
    #[arg(short = 'c')]
    combined: bool,
    /// The name of the variable with all options
    #[arg(short = 'k', value_name = "KEY", default_value = "DOCKER_OPTS", allow_hyphen_values = true)]
    #[arg(value_parser = variable_name)]
    key: String,
    /// Leave out --ip-masq, for a Docker so old that it does not know it
    #[arg(short = 'm')]
    no_ip_masq: bool,
}

/// The definition of the command line.
pub fn command() -> clap::Command {
    Args::command()
}

/// Whether a program that was started as `program` is the script.
pub fn is_named(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(SCRIPT))
}

/// Runs the subcommand with the words after its name.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let done = match Args::try_parse_from(words) {
        Ok(args) => write(&args),
        Err(error) if error.use_stderr() => Err(format!("{}; --help lists the options", first_line(&error))),
        Err(help) => show(&help.render().to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "flanneld docker-opts: {}", line(&problem));
            ExitCode::FAILURE
        }
    }
}

fn write(args: &Args) -> Result<(), String> {
    let mut opts = read(&args.subnet_file)?;
    if args.no_ip_masq {
        opts.ip_masq = None;
    }
    let both = args.individual == args.combined;
    let (individual, combined) = (both || args.individual, both || args.combined);
    let before = if combined { in_environment(&args.key)? } else { String::new() };
    let text = opts.render(&DockerLines { individual, combined, key: &args.key, before: &before });
    if args.docker_file == Path::new("/dev/stdout") {
        return show(&text);
    }
    let path = args.docker_file.display();
    files::write_atomically(&args.docker_file, &text)
        .map_err(|error| format!("{path} cannot be written: {error}; -d names another file"))
}

fn read(path: &Path) -> Result<DockerOpts, String> {
    let bytes = files::read(path).map_err(|error| {
        format!(
            "{} cannot be read: {error}; flanneld writes it once it has a subnet, -f names another file",
            path.display()
        )
    })?;
    DockerOpts::parse(&String::from_utf8_lossy(&bytes)).map_err(|problem| format!("{}: {problem}", path.display()))
}

/// The value that the variable has already; empty if it is not set.
fn in_environment(key: &str) -> Result<String, String> {
    let value = std::env::var_os(key).unwrap_or_default();
    value.into_string().map_err(|value| format!("environment variable {key} is {value:?}, which is not valid UTF-8"))
}

fn variable_name(text: &str) -> Result<String, String> {
    let is_name = |text: &str| text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    match text.chars().next() {
        Some(first) if !first.is_ascii_digit() && is_name(text) => Ok(text.to_owned()),
        _ => Err("not the name of a variable: letters, digits and _, such as DOCKER_OPTS".to_owned()),
    }
}

fn first_line(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    rendered.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Prints a text. print! would panic if standard output is closed.
fn show(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| format!("standard output: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn it_is_known_by_the_scripts_name() {
        for (program, is) in [
            ("mk-docker-opts.sh", true),
            ("/usr/libexec/flannel/mk-docker-opts.sh", true),
            ("/usr/bin/flanneld", false),
            ("mk-docker-opts.sh/flanneld", false),
            ("", false),
        ] {
            assert_eq!(is_named(OsStr::new(program)), is, "{program}");
        }
    }
}
