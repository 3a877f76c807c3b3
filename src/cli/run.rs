//! The daemon: puts real store, kernel, clock and service manager together, and runs until a signal.

use super::args::Options;
use super::service_manager::ServiceManager;
use super::signals::Signals;
use crate::agent::runtime::{Notice, Runtime, boottime};
use crate::agent::status::StatusHandle;
use crate::agent::{self, Parts};
use crate::files::FileIo;
use crate::firewall::host::HostFirewall;
use crate::http;
use crate::kernel::netlink::NetlinkKernel;
use crate::kernel::sysctl;
use crate::model::lease::LeaseId;
use crate::store::etcd::EtcdStore;
use crate::store::{Leases, Registry};
use crate::telemetry::{self, Log};
use sd_notify::NotifyState;
use std::net::TcpListener;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::LocalSet;

/// The time limit for returning the lease at exit.
const RELEASE: Duration = Duration::from_millis(800);

/// How long the end of the daemon may wait for a reader of its log.
const FLUSH: Duration = Duration::from_millis(200);

/// Runs the daemon until SIGTERM or SIGINT, then returns 0 and leaves kernel, files and lease as they are. With
/// `--release-lease-on-exit` the lease is returned. Returns 1 only for a failure that no waiting can repair.
pub fn run(options: Options, warnings: &[String]) -> ExitCode {
    let log = telemetry::init(options.verbosity);
    let code = run_logged(options, warnings, &log);
    // Nobody who stops the daemon waits for a reader of its log.
    log.flush(FLUSH);
    code
}

fn run_logged(options: Options, warnings: &[String], log: &Log) -> ExitCode {
    tracing::info!("flanneld {} starts", env!("CARGO_PKG_VERSION"));
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("the runtime cannot be started: {error}")),
    };
    let service_manager = Rc::new(ServiceManager::from_env());
    let outcome = LocalSet::new().block_on(&runtime, daemon(options, service_manager.clone(), log.clone()));
    // Does not wait for a lookup of a host name that is still running.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            service_manager.notify(&NotifyState::Status(&reason));
            fail(&reason)
        }
    }
}

fn fail(reason: &str) -> ExitCode {
    tracing::error!("{reason}");
    ExitCode::FAILURE
}

async fn daemon(options: Options, service_manager: Rc<ServiceManager>, log: Log) -> Result<(), String> {
    let mut signals = Signals::receive()?;
    let runtime = Runtime::of_host({
        let service_manager = service_manager.clone();
        move |notice| notify(&service_manager, notice)
    });
    let runtime = Rc::new(runtime.with_log_lines_lost(move || log.lost()).with_files(FileIo::Aside));
    let status = StatusHandle::new(runtime.clone());
    if let Some(address) = options.healthz {
        let listening =
            TcpListener::bind(address).and_then(|listener| http::start(listener, status.health(), boottime));
        listening.map_err(|error| {
            format!("cannot listen on {address}: {error}; choose another --healthz-ip or --healthz-port")
        })?;
    }
    warn_about_the_host();
    let (endpoints, access) = (options.etcd_endpoints.clone(), options.etcd_access.clone());
    let store = tokio::select! {
        opened = EtcdStore::open(endpoints, &options.settings.prefix, access) => opened.map_err(|error| error.to_string())?,
        _ = signals.end(|| {}) => return Ok(()),
    };
    let store = Rc::new(store);
    let kernel = NetlinkKernel::new().map_err(|error| error.to_string())?;
    let releases = options.settings.leases.release_on_exit;
    let (firewall, settings) = (HostFirewall::new(), options.settings);
    let parts = Parts { store: store.clone(), kernel, firewall, settings, runtime, status: status.clone() };
    tokio::select! {
        never = agent::run(parts) => match never {},
        name = signals.end(|| store.redial()) => {
            tracing::info!("{name}: stopping; network and files are left as they are");
        }
    }
    service_manager.notify(&NotifyState::Stopping);
    let lease = status.read().own.lease;
    if let Some(id) = lease.filter(|_| releases) {
        release(&store, id).await;
    }
    Ok(())
}

/// Returns the lease to etcd. Does not delay the stop for an etcd that does not answer.
async fn release(store: &EtcdStore, id: LeaseId) {
    match tokio::time::timeout(RELEASE, store.release(id)).await {
        Ok(Ok(())) => tracing::info!("the lease is given back"),
        Ok(Err(error)) => tracing::warn!("the lease is not given back, it ends with its TTL: {error}"),
        Err(_) => tracing::warn!("the lease is not given back, it ends with its TTL: etcd does not answer"),
    }
}

fn warn_about_the_host() {
    if sysctl::ip_forward() == Some(false) {
        tracing::warn!("net.ipv4.ip_forward is 0: containers reach no other host until it is 1 (Docker sets it)");
    }
    if !sysctl::bridge_netfilter_loaded() {
        tracing::warn!("br_netfilter is not loaded: Kubernetes services need it (modprobe br_netfilter)");
    }
}

fn notify(service_manager: &ServiceManager, notice: Notice) {
    match notice {
        Notice::Ready => service_manager.notify(&NotifyState::Ready),
        Notice::Status(line) => service_manager.notify(&NotifyState::Status(&line)),
        Notice::StillStarting(time) => {
            let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            service_manager.notify(&NotifyState::ExtendTimeoutUsec(micros));
        }
        Notice::Alive => service_manager.notify(&NotifyState::Watchdog),
    }
}
