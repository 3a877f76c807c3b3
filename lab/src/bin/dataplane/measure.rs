//! Measures the throughput and the round-trip time of a path.

use std::process::{Child, Command, Stdio};
use std::thread::{available_parallelism, sleep};
use std::time::Duration;

use serde_json::Value;

use crate::pair::End;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// One stream, in Gbit/s.
    Tcp,
    /// The same per second of CPU time, in Gbit/s. Other work on the machine affects it least.
    TcpWork,
    /// Datagrams sent as fast as possible that arrive, in Gbit/s.
    Udp,
    /// The same per second of CPU time.
    UdpWork,
    /// Median of sequential round trips, in microseconds.
    Half,
    /// 99th percentile of the same.
    Most,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Metric::Tcp => "TCP Gbit/s",
            Metric::TcpWork => "TCP Gbit per CPU second",
            Metric::Udp => "UDP Gbit/s",
            Metric::UdpWork => "UDP Gbit per CPU second",
            Metric::Half => "ping p50 us",
            Metric::Most => "ping p99 us",
        }
    }

    /// Whether more is better.
    pub fn is_rate(self) -> bool {
        !matches!(self, Metric::Half | Metric::Most)
    }
}

/// How many pings a measurement takes.
const PINGS: usize = 1000;

/// Some of the metrics of one path, measured once.
pub fn measure([from, to]: &[End; 2], metrics: &[Metric], time: Duration) -> Vec<(Metric, f64)> {
    let mut found = Vec::new();
    for metric in metrics {
        match metric {
            Metric::Tcp => {
                let (rate, work) = iperf(from, to, &["-C", "cubic", "-O", "0.5"], time);
                found.extend([(Metric::Tcp, rate), (Metric::TcpWork, work)]);
            }
            Metric::Udp => {
                let (rate, work) = iperf(from, to, &["-u", "-b", "0", "-l", "1372"], time);
                found.extend([(Metric::Udp, rate), (Metric::UdpWork, work)]);
            }
            Metric::Half => {
                let times = pings(from, to);
                found.push((Metric::Half, times[times.len() / 2]));
                found.push((Metric::Most, times[times.len() * 99 / 100]));
            }
            Metric::TcpWork | Metric::UdpWork | Metric::Most => {}
        }
    }
    found
}

/// The server and the client each have a processor of their own, if there are two.
fn pinned(end: &End, cpu: &str, words: &[&str]) -> Command {
    let alone = available_parallelism().is_ok_and(|count| count.get() < 2);
    let mut command = end.command("taskset");
    command.args(["-c", if alone { "0" } else { cpu }]).args(words);
    command
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What arrived, in Gbit/s, and by the processors' time that client and server took.
fn iperf(from: &End, to: &End, flags: &[&str], time: Duration) -> (f64, f64) {
    const ATTEMPTS: usize = 20;
    let (address, seconds) = (to.address().to_string(), time.as_secs().max(1).to_string());
    let patience = (2 * time + Duration::from_secs(20)).as_secs().to_string();
    let mut reason = Value::Null;
    for attempt in 1..=ATTEMPTS {
        let mut server = pinned(to, "1", &["iperf3", "-s", "-1"]);
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("iperf3");
        let _server = Server(server);
        // It takes a moment to listen.
        sleep(Duration::from_millis(100) * attempt as u32);
        let mut client = pinned(from, "0", &["timeout", &patience, "iperf3", "-c", &address, "-t", &seconds, "-J"]);
        let output = client.args(flags).output().expect("iperf3");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match received(&report["end"]) {
            Some(rate) if report["error"].is_null() => return (rate / 1e9, rate / 1e9 / processors(&report["end"])),
            _ => reason = report["error"].clone(),
        }
    }
    panic!("iperf3 to {address} fails again and again: {reason}");
}

/// In bit/s. Of datagrams, what was sent less what was lost, as the receiver counts.
fn received(end: &Value) -> Option<f64> {
    match end["sum"]["lost_percent"].as_f64() {
        Some(lost) => Some(end["sum"]["bits_per_second"].as_f64()? * (1.0 - lost / 100.0).max(0.0)),
        None => end["sum_received"]["bits_per_second"].as_f64(),
    }
}

/// How many processors client and server kept busy.
fn processors(end: &Value) -> f64 {
    let percent = |side: &str| end["cpu_utilization_percent"][side].as_f64().unwrap_or(f64::NAN);
    (percent("host_total") + percent("remote_total")) / 100.0
}

/// Sorted round trips in microseconds.
fn pings(from: &End, to: &End) -> Vec<f64> {
    let (address, count) = (to.address().to_string(), PINGS.to_string());
    let output = pinned(from, "0", &["ping", "-n", "-A", "-c", &count, &address]).output().expect("ping");
    let text = String::from_utf8_lossy(&output.stdout);
    let time = |line: &str| line.split_once("time=")?.1.split(' ').next()?.parse::<f64>().ok();
    let mut times: Vec<f64> = text.lines().filter_map(time).map(|millis| millis * 1000.0).collect();
    assert!(times.len() > PINGS / 2, "ping: {text}");
    times.sort_by(f64::total_cmp);
    times
}
