//! Completion as it happens at a prompt: real shells, a real terminal, the TAB key.

use crate::manual::options;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const PROMPT: &str = "READY>";
const PATIENCE: Duration = Duration::from_secs(60);

/// The directory with a script for each shell.
fn scripts() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "packaging", "completions"].iter().collect()
}

/// A shell on a terminal of its own.
struct Terminal {
    script: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(shell: &str) -> Self {
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--return", "--command", shell, "/dev/null"]);
        script.env_clear().envs([("PATH", "/usr/bin:/bin"), ("PS1", PROMPT), ("TERM", "dumb"), ("LC_ALL", "C.UTF-8")]);
        let script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut script = script.expect("script starts");
        let (keyboard, mut output) = (script.stdin.take().expect("piped"), script.stdout.take().expect("piped"));
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&screen);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                shown.lock().expect("no panic").push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        Terminal { script, keyboard, screen }
    }

    /// Types once there is a prompt, on an empty screen.
    fn keys(&mut self, keys: &str) {
        self.wait_for(PROMPT);
        self.screen.lock().expect("no panic").clear();
        self.keyboard.write_all(keys.as_bytes()).and_then(|()| self.keyboard.flush()).expect("the shell reads");
    }

    fn wait_for(&self, text: &str) {
        let begin = Instant::now();
        while !self.screen.lock().expect("no panic").contains(text) {
            assert!(
                begin.elapsed() < PATIENCE,
                "no {text:?} on the screen:\n{}",
                self.screen.lock().expect("no panic")
            );
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

#[test]
fn bash_completes_options_and_files_at_the_tab_key() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("only-ca.crt"), "").expect("a file");
    let mut terminal = Terminal::start("bash --norc --noprofile -i");
    let script = scripts().join("flanneld");
    terminal.keys(&format!("source {}; flanneld() {{ echo \"got <$*>\"; }}\n", script.display()));
    terminal.keys("flanneld --etcd-pre\tX\n");
    terminal.wait_for("got <--etcd-prefix X>");
    terminal.keys(&format!("flanneld --etcd-ca\t{}/only\t\n", directory.path().display()));
    terminal.wait_for(&format!("got <--etcd-cafile {}/only-ca.crt>", directory.path().display()));
    terminal.keys("flanneld dock\t-\t\t\n");
    terminal.wait_for("got <docker-opts -");
}

#[test]
fn zsh_completes_options_at_the_tab_key() {
    let mut terminal = Terminal::start("zsh -f -i");
    let setup = "autoload -Uz compinit; compinit -u -D; flanneld() { print \"got <$*>\" }";
    terminal.keys(&format!("fpath=({} $fpath); {setup}\n", scripts().display()));
    terminal.keys("flanneld --etcd-pre\tX\n");
    terminal.wait_for("got <--etcd-prefix=X>");
    terminal.keys("flanneld dock\t\n");
    terminal.wait_for("got <docker-opts>");
}

/// What bash would offer for the last of these words.
const BASH: &str = r#"source "$0"; COMP_WORDS=(flanneld "$@"); COMP_CWORD=$#
    _flanneld flanneld "${!#}" "${COMP_WORDS[COMP_CWORD-1]}"; printf '%s\n' "${COMPREPLY[@]}""#;
/// What fish would.
const FISH: &str = r#"source $argv[1]; complete -C "flanneld $argv[2..]" | string replace -r '\t.*' ''"#;

#[test]
fn bash_and_fish_offer_every_option() {
    use flanneld::cli;
    for (command, words) in [(cli::args::command(), &["-"][..]), (cli::docker_opts::command(), &["docker-opts", "-"])] {
        let mut expected = options(&command);
        expected.sort();
        for (shell, flags, program, script) in
            [("bash", "--norc", BASH, "flanneld"), ("fish", "--no-config", FISH, "flanneld.fish")]
        {
            let mut shell = Command::new(shell);
            let output = shell.args([flags, "-c", program]).arg(scripts().join(script)).args(words).output();
            let output = output.expect("the shell starts (make setup)");
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            let offered = String::from_utf8(output.stdout).expect("text");
            let mut offered: Vec<_> = offered.lines().filter(|line| line.starts_with('-')).collect();
            offered.sort();
            assert_eq!(offered, expected, "{script}");
        }
    }
}
