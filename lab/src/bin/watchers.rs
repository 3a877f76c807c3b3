//! Measures what n watching hosts cost a real etcd on loopback: the duration of a write, the time until the last watcher
//! has received it, and etcd's CPU time. Every watcher has its own connection, as every host does.

#[allow(dead_code, unused_imports, reason = "made for the tests; only a part is needed here")]
#[path = "../../../tests/it/lab/mod.rs"]
mod lab;

use clap::Parser;
use etcd_client::{Client, WatchOptions};
use lab::{Etcd, Lease};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Times etcd's fan-out to watchers.
#[derive(Parser)]
struct Options {
    /// Numbers of watching hosts.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,5000")]
    watchers: Vec<usize>,
    /// Number of leases that are written, one after the other.
    #[arg(long, default_value_t = 200)]
    events: u32,
}

const PREFIX: &str = "/n/subnets/";

fn main() {
    let options = Options::parse();
    // As many files as may be, here and in etcd, for all the connections.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to that limit");
    println!("watchers  put p50  put p99  heard by all p50      p99  etcd CPU/event  etcd RSS");
    println!("                ms       ms                ms       ms              ms       MiB");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for watchers in options.watchers {
        let etcd = Etcd::on_loopback();
        runtime.block_on(measure(&etcd, watchers, options.events));
    }
}

async fn measure(etcd: &Etcd, watchers: usize, events: u32) {
    let (tell, mut heard) = mpsc::unbounded_channel();
    for _ in 0..watchers {
        watch(etcd, tell.clone()).await;
    }
    let client = Client::connect([etcd.endpoint()], None).await.expect("a client");
    let (mut puts, mut all) = (Vec::new(), Vec::new());
    let before = cpu(etcd);
    for n in 0..events {
        let lease = Lease::numbered(n);
        let start = Instant::now();
        client.kv_client().put(format!("{PREFIX}{n}"), lease.value(), None).await.expect("a put");
        puts.push(start.elapsed());
        for _ in 0..watchers {
            heard.recv().await.expect("an event");
        }
        all.push(start.elapsed());
    }
    let cpu = (cpu(etcd) - before) * 1e3 / f64::from(events);
    let memory = metric(etcd, "process_resident_memory_bytes") / f64::from(1 << 20);
    let [p50, p99] = quantiles(puts);
    let [all50, all99] = quantiles(all);
    println!("{watchers:>8}{p50:>9.2}{p99:>9.2}{all50:>18.2}{all99:>9.2}{cpu:>16.2}{memory:>10.0}");
}

/// Starts a watcher that reports each event.
async fn watch(etcd: &Etcd, tell: mpsc::UnboundedSender<()>) {
    let client = Client::connect([etcd.endpoint()], None).await.expect("a client");
    let watching = client.watch_client().watch(PREFIX, Some(WatchOptions::new().with_prefix())).await;
    let mut stream = watching.expect("a watch");
    stream.message().await.expect("it is confirmed");
    tokio::spawn(async move {
        let _connection = client;
        while let Ok(Some(message)) = stream.message().await {
            message.events().iter().for_each(|_| tell.send(()).unwrap_or_default());
        }
    });
}

/// CPU seconds so far.
fn cpu(etcd: &Etcd) -> f64 {
    metric(etcd, "process_cpu_seconds_total")
}

/// One of etcd's own metrics.
fn metric(etcd: &Etcd, name: &str) -> f64 {
    let endpoint = etcd.endpoint();
    let address = endpoint.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).expect("etcd");
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").expect("asked");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("etcd's metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name}"))
}

/// The median and the 99th percentile, in ms.
fn quantiles(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3)
}
