//! The daemon: puts real store, kernel, clock and service manager together, and runs until a signal.

use super::args::Options;
use super::service_manager::ServiceManager;
use super::signals::Signals;
use crate::agent::runtime::{Notice, Runtime};
use crate::agent::status::StatusHandle;
use crate::agent::{self, Parts};
use crate::firewall::host::HostFirewall;
use crate::http;
use crate::kernel::netlink::NetlinkKernel;
use crate::kernel::sysctl;
use crate::model::lease::LeaseId;
use crate::store::etcd::EtcdStore;
use crate::store::{Leases, Registry};
use sd_notify::NotifyState;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

/// The time limit for returning the lease at exit.
const RELEASE: Duration = Duration::from_millis(800);

/// Runs the daemon until SIGTERM or SIGINT, then returns 0 and leaves kernel, files and lease as they are. With
/// `--release-lease-on-exit` the lease is returned. Returns 1 only for a failure that no waiting can repair.
pub fn run(options: Options, warnings: &[String]) -> ExitCode {
    crate::telemetry::init(options.verbosity);
    tracing::info!("flanneld {} starts", env!("CARGO_PKG_VERSION"));
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("the runtime cannot be started: {error}")),
    };
    let service_manager = Rc::new(ServiceManager::from_env());
    let outcome = LocalSet::new().block_on(&runtime, daemon(options, service_manager.clone()));
    // Does not wait for a lookup of a host name that is still running.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            service_manager.tell(&NotifyState::Status(&reason));
            fail(&reason)
        }
    }
}

fn fail(reason: &str) -> ExitCode {
    tracing::error!("{reason}");
    ExitCode::FAILURE
}

async fn daemon(options: Options, service_manager: Rc<ServiceManager>) -> Result<(), String> {
    let mut signals = Signals::receive()?;
    let runtime = Rc::new(Runtime::of_host({
        let service_manager = service_manager.clone();
        move |notice| tell(&service_manager, notice)
    }));
    let status = StatusHandle::new(runtime.clone());
    if let Some(address) = options.healthz {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            format!("cannot listen on {address}: {error}; choose another --healthz-ip or --healthz-port")
        })?;
        tokio::task::spawn_local(http::serve(listener, status.clone()));
    }
    warn_about_the_host();
    let store =
        EtcdStore::with_access(options.etcd_endpoints.clone(), &options.settings.prefix, options.etcd_access.clone())
            .map_err(|error| error.to_string())?;
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
    service_manager.tell(&NotifyState::Stopping);
    let lease = status.read().lease;
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

fn tell(service_manager: &ServiceManager, notice: Notice) {
    match notice {
        Notice::Ready => service_manager.tell(&NotifyState::Ready),
        Notice::Status(line) => service_manager.tell(&NotifyState::Status(&line)),
        Notice::StillStarting(time) => {
            let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            service_manager.tell(&NotifyState::ExtendTimeoutUsec(micros));
        }
        Notice::Alive => service_manager.tell(&NotifyState::Watchdog),
    }
}
