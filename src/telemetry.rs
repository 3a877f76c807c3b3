//! Logs: to standard error, a line an event. WARN is worth a look, INFO tells what changed, DEBUG every detail.

use std::io::Write;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts logging. `verbosity` is flannel's `-v`: 0 INFO, 1 to 4 DEBUG, from 5 on TRACE. Libraries log from INFO on at
/// any level: HTTP/2 alone would write several lines for each packet.
pub fn init(verbosity: u8) {
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter(verbosity)).with_writer(std::io::stderr).with_ansi(false);
    // Where standard error is full or closed nobody can be told of it; to try would be to die of it.
    let lines = lines.with_target(false).log_internal_errors(false);
    // The journal stamps each line itself.
    let started = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => lines.without_time().try_init(),
        None => lines.try_init(),
    };
    if let Err(error) = started {
        let _ = writeln!(std::io::stderr(), "flanneld: logs cannot be set up: {error}");
    }
}

fn filter(verbosity: u8) -> EnvFilter {
    match verbosity {
        0 => EnvFilter::default().add_directive(LevelFilter::INFO.into()),
        1..=4 => EnvFilter::new("info,flanneld=debug"),
        _ => EnvFilter::new("info,flanneld=trace"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_verbosity_makes_libraries_log_each_packet() {
        for verbosity in 0..=u8::MAX {
            let filter = filter(verbosity).to_string();
            let others: Vec<&str> = filter.split(',').filter(|level| !level.starts_with("flanneld=")).collect();
            assert_eq!(others, ["info"]);
        }
    }
}
