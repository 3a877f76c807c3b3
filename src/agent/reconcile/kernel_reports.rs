//! Takes in what the kernel reports, and reads in full what the reports do not tell.

use super::Reconciler;
use crate::agent::announce;
use crate::agent::lease_manager::Address;
use crate::agent::loop_state::LoopState;
use crate::agent::status::Condition;
use crate::firewall::obstacles::OnHost;
use crate::kernel::{Event, Kernel, KernelError};
use crate::model::desired::{Dirty, LocalNode};
use crate::model::device::ExistingDevice;
use crate::model::iface::{ExternalInterface, HostView};
use crate::model::lease_set::Moment;
use crate::model::table::Noticed;

impl<K: Kernel> Reconciler<K> {
    /// Takes in all reports of the kernel. Only the last report on an entry is the kernel's present state, so none is left
    /// for later.
    pub(super) fn take_kernel_events(&mut self, state: &mut LoopState, now: Moment) {
        let events = self.kernel.take_changes(&self.desired.scope());
        state.handled(events.len());
        for event in events {
            if state.damage.is_clean() {
                state.damaged_at = now;
            }
            self.take_kernel_event(event, state, now);
        }
    }

    fn take_kernel_event(&self, event: Event, state: &mut LoopState, now: Moment) {
        let nic = &self.desired.own().nic;
        match event {
            Event::Entry(observed) => match state.have.notice(observed) {
                Noticed::Nothing => {}
                Noticed::Key(key) => state.damage.merge(Dirty::Keys([key].into())),
                Noticed::Doubt => state.reads.read_soon(now),
            },
            Event::Device => state.reads.read_soon(now),
            Event::Host { index, name } if index == nic.index || name.as_ref() == Some(&nic.name) => {
                state.reads.read_host_soon(now);
                if self.desired.routes_directly() {
                    // The kernel removes routes by an interface that goes down without a report.
                    state.reads.read_soon(now);
                }
            }
            Event::Underlay if self.desired.routes_directly() => state.reads.read_host_some_time(now),
            Event::Underlay => {}
            Event::Host { .. } => state.reads.read_host_some_time(now),
            Event::Unclear => state.reads.read_soon(now),
            Event::Overrun => {
                tracing::info!("reports of the kernel were lost because they came too fast: reading its state in full");
                self.status.update(|status| status.counters.overruns += 1);
                state.reads.read_soon(now);
            }
        }
    }

    /// Reads in full what the kernel holds. Returns whether it could be read.
    pub(super) async fn read(&mut self, state: &mut LoopState) -> bool {
        // The reading contains whatever was reported before it.
        drop(self.kernel.take_changes(&self.desired.scope()));
        self.files.doubt();
        let started = self.runtime.now();
        let have = match self.read_host(state).await {
            Ok(()) => self.kernel.observe(&self.desired.scope()).await,
            Err(error) => Err(error),
        };
        let now = self.runtime.now();
        match have {
            Ok(have) => {
                state.was_read(have, started, now, &self.runtime);
                self.log_offload(state);
                self.status.update(|status| status.counters.full_reads += 1);
                true
            }
            Err(error) => {
                self.status.raise(Condition::Kernel, format!("the kernel's state cannot be read: {error}"));
                state.reads.failed(now, &self.runtime);
                false
            }
        }
    }

    /// Logs that the device has an offload off without `--tx-checksum-off`. It stays off: perhaps the administrator had a
    /// reason, or an earlier run with that flag.
    fn log_offload(&mut self, state: &LoopState) {
        let Some(ExistingDevice::Known(_, have)) = &state.have.device else { return };
        let wanted = self.desired.want().device.get().is_some_and(|want| want.tx_checksum_off);
        let unasked = have.tx_checksum_off && !wanted;
        if unasked && !self.offload_was_logged {
            let name = &have.name;
            tracing::info!(
                "{name} has tx-checksum-ip-generic off, which costs most of its throughput; if no hardware below it needs \
                 that, run: ethtool -K {name} tx-checksum-ip-generic on"
            );
        }
        self.offload_was_logged = unasked;
    }

    /// Reads the host's interfaces, and takes in what they are now.
    pub(super) async fn read_host(&mut self, state: &mut LoopState) -> Result<(), KernelError> {
        let host = self.kernel.host().await?;
        self.status.clear(Condition::Host);
        state.reads.host_was_read(self.runtime.now());
        let own = &self.desired.own().nic;
        let nic = own.follow(&host, self.public_ip);
        let usable = match nic {
            None => Err(format!("the external interface {} is gone or has no IPv4 address", own.name)),
            Some(nic) => self.desired.interface_complaint(&nic).map_or(Ok(nic), Err),
        };
        state.nic_is_gone = usable.is_err();
        let nic = match usable {
            Ok(nic) => nic,
            Err(reason) => {
                self.status.raise(Condition::Interface, reason);
                return Ok(());
            }
        };
        self.status.clear(Condition::Interface);
        if nic != *own {
            tracing::info!("external interface {nic}, it was {own}");
        }
        self.take_host(nic, host, state);
        Ok(())
    }

    fn take_host(&mut self, nic: ExternalInterface, host: HostView, state: &mut LoopState) {
        let address = Address { public_ip: nic.public_ip, nic_mac: nic.mac };
        self.ends.addresses.send_if_modified(|known| std::mem::replace(known, address) != address);
        let on_host: Vec<OnHost> =
            host.connected(&self.desired.scope().device).map(|(name, net)| (name.to_owned(), net.into())).collect();
        self.ends.on_host.send_if_modified(|known| std::mem::replace(known, on_host.clone()) != on_host);
        let own = self.desired.own().clone();
        let changed = self.desired.set_host(LocalNode { nic, ..own }, host);
        state.news.merge(changed);
        announce::log(self.desired.take_findings());
        self.status.set(Condition::Docker, self.desired.docker_complaint());
    }
}
