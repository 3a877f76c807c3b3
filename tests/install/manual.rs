//! Manual pages and completions are made from the definition of the command line. They are kept in the repository, so
//! that installing needs no further build; `make manual` writes them anew.

use clap::{Arg, ArgAction, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{env, fs, process};

/// With this variable in the environment the files are written instead of compared.
const WRITE: &str = "WRITE_MANUAL";

const DAEMON_NOTES: &str = r#".SH FILES
.TP
.I /etc/default/flanneld\fR, \fI/etc/sysconfig/flanneld
The environment of the service, FLANNEL_ETCD_ENDPOINTS and the like; FLANNEL_OPTIONS holds further flags. Where both
files set a variable, the first counts.
.TP
.I /run/flannel/subnet.env
Network, subnet and MTU of this host, for whoever starts containers.
.TP
.I /run/docker_opts.env
The same as options of Docker.
.TP
.I /var/lib/flannel
What is remembered between runs: the MAC address, and what proves the lease to be this host's own.
.SH "EXIT STATUS"
0 after SIGTERM or SIGINT, 1 if the command line, the environment or a file that they name cannot be used. It waits for
everything else, and says for what in
.BR "systemctl status" .
The network stays as it is when flanneld exits.
.SH "SEE ALSO"
.BR flanneld\-docker\-opts (8),
.BR systemctl (1),
.BR dockerd (8)
"#;

const DOCKER_OPTS_NOTES: &str = r#".SH "SEE ALSO"
.BR flanneld (8),
.BR dockerd (8),
.BR systemd.exec (5)
"#;

/// Every file that follows from the command line's definition, and what it must hold.
fn generated() -> Vec<(PathBuf, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let daemon = flanneld::cli::args::command();
    let about = daemon.get_about().expect("a description").to_string();
    let daemon = daemon.about("the overlay network of a cluster's hosts").long_about(about);
    let docker_opts = flanneld::cli::docker_opts::command()
        .name("flanneld-docker-opts")
        .override_usage("flanneld docker-opts [OPTION]...\n       mk-docker-opts.sh [OPTION]...");
    let mut files = vec![
        (directory.join("man/flanneld.8"), page(daemon, DAEMON_NOTES)),
        (directory.join("man/flanneld-docker-opts.8"), page(docker_opts, DOCKER_OPTS_NOTES)),
    ];
    for (shell, name) in [(Shell::Bash, "flanneld"), (Shell::Zsh, "_flanneld"), (Shell::Fish, "flanneld.fish")] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut with_subcommand(), "flanneld", &mut script);
        files.push((directory.join("completions").join(name), text(script)));
    }
    files
}

/// The daemon's and the subcommand's options in one definition; they are parsed apart.
fn with_subcommand() -> Command {
    // The daemon's definition brings its own help, and what it does without is passed on to subcommands.
    let help = Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print help");
    let docker_opts = flanneld::cli::docker_opts::command().arg(help);
    flanneld::cli::args::command().disable_help_subcommand(true).subcommand(docker_opts)
}

/// A page of section 8: options by heading under OPTIONS, then the notes of `--help`, then `more`.
fn page(command: Command, more: &str) -> String {
    let title = command.get_name().to_uppercase();
    let source = concat!("flanneld ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).title(title).section("8").date(" ").source(source).manual("System Administration");
    let part = |render: &dyn Fn(&mut Vec<u8>) -> std::io::Result<()>| {
        let mut part = Vec::new();
        render(&mut part).expect("memory takes it");
        text(part)
    };
    let head = part(&|out| {
        man.render_title(out)?;
        man.render_name_section(out)?;
        man.render_synopsis_section(out)?;
        man.render_description_section(out)
    });
    let options = part(&|out| man.render_options_section(out)).replace(".SH OPTIONS\n", "").replace(".SH ", ".SS ");
    let notes = part(&|out| man.render_extra_section(out)).replace(".SH EXTRA\n", "");
    format!("{head}.SH OPTIONS\n{options}{}{more}", sections(&notes))
}

/// The notes of `--help`: what it says of the environment has a section of its own, with an entry for each name.
fn sections(notes: &str) -> String {
    let (environment, others): (Vec<_>, Vec<_>) =
        notes.trim_end().split("\n\n").partition(|paragraph| paragraph.starts_with("Environment:"));
    let mut sections = format!(".SH NOTES\n{}\n", others.join("\n.PP\n"));
    for line in environment.iter().flat_map(|paragraph| paragraph.lines()) {
        let indent = line.len() - line.trim_start().len();
        sections += match indent {
            0 => ".SH ENVIRONMENT",
            1..8 => ".TP\n.B ",
            _ => "",
        };
        sections += if indent == 0 { "" } else { line.trim_start() };
        sections += "\n";
    }
    sections
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

/// The options that `--help` shows, as they are typed.
pub fn options(command: &Command) -> Vec<String> {
    let mut command = command.clone();
    command.build();
    let long = |arg: &Arg| arg.get_long().map(|long| format!("--{long}"));
    let short = |arg: &Arg| arg.get_short().map(|short| format!("-{short}"));
    command.get_arguments().filter(|arg| !arg.is_hide_set()).flat_map(|arg| [long(arg), short(arg)]).flatten().collect()
}

#[test]
fn the_manual_and_the_completions_are_those_of_the_command_line() {
    for (path, expected) in generated() {
        if env::var_os(WRITE).is_some() {
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(&path, &expected).expect("a file");
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == expected, "{} is not current: run make manual", path.display());
    }
}

#[test]
fn a_reader_of_the_manual_finds_every_option_with_its_help() {
    for (page, command) in [
        ("flanneld.8", flanneld::cli::args::command()),
        ("flanneld-docker-opts.8", flanneld::cli::docker_opts::command()),
    ] {
        let shown = read(page);
        let options = options(&command);
        assert!(options.len() > 6, "{options:?}");
        for option in options {
            let starts = |line: &&str| line.split([' ', ',', '[']).any(|word| word == option);
            assert!(shown.lines().map(str::trim_start).any(|line| starts(&line)), "{page}: {option}\n{shown}");
        }
        for arg in command.get_arguments() {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let unwrapped = |text: &str| text.split_whitespace().collect::<String>();
            let first_line = help.lines().next().unwrap_or_default();
            assert!(unwrapped(&shown).contains(&unwrapped(first_line)), "{page}: {first_line}\n{shown}");
        }
    }
}

/// What `man` shows of a page, on one wide screen; it must not complain.
fn read(page: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/man").join(page);
    let mut man = process::Command::new("man");
    man.args(["--warnings=w", "--no-hyphenation", "--local-file"]).arg(path);
    let output = man.env("MANWIDTH", "1000").stdin(Stdio::null()).output().expect("man starts (make setup)");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{page}: {complaints}");
    text(output.stdout)
}

#[test]
fn the_manual_has_what_an_administrator_looks_for() {
    let shown = read("flanneld.8");
    for heading in
        ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "NOTES", "ENVIRONMENT", "FILES", "EXIT STATUS", "SEE ALSO"]
    {
        assert!(shown.lines().any(|line| line == heading), "{heading}\n{shown}");
    }
    assert!(!shown.contains("--kube-subnet-mgr"), "what does nothing is not described");
    assert!(read("flanneld-docker-opts.8").contains("mk-docker-opts.sh [OPTION]..."));
}
