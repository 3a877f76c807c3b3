//! Many leases at once, and what the daemons ask of etcd, as etcd itself counts it.

use std::collections::BTreeMap;

use etcd_client::{Client, PutOptions, Txn, TxnOp};
use tokio::runtime::Builder;

use super::etcd::Etcd;
use super::netns::http_get;
use super::overlay::Lease;

/// How many operations etcd takes in one transaction.
const AT_ONCE: usize = 128;

/// How often each method of etcd's API was called, and how many messages came over each stream.
pub type Calls = BTreeMap<String, u64>;

impl Etcd {
    /// Puts leases under `prefix` by the hundred, all on one etcd lease of a day.
    pub fn fill(&self, prefix: &str, leases: &[Lease]) {
        self.with_client(async |client| {
            let day = client.lease_client().grant(86400, None).await.expect("a lease").id();
            for leases in leases.chunks(AT_ONCE) {
                let put = |lease: &Lease| {
                    TxnOp::put(lease.key_under(prefix), lease.value(), Some(PutOptions::new().with_lease(day)))
                };
                let txn = Txn::new().and_then(leases.iter().map(put).collect::<Vec<_>>());
                client.kv_client().txn(txn).await.expect("the leases are written");
            }
        });
    }

    /// Deletes leases under `prefix` by the hundred.
    pub fn empty(&self, prefix: &str, leases: &[Lease]) {
        self.with_client(async |client| {
            for leases in leases.chunks(AT_ONCE) {
                let delete = |lease: &Lease| TxnOp::delete(lease.key_under(prefix), None);
                let txn = Txn::new().and_then(leases.iter().map(delete).collect::<Vec<_>>());
                client.kv_client().txn(txn).await.expect("the leases are deleted");
            }
        });
    }

    fn with_client(&self, work: impl AsyncFnOnce(Client) + Send) {
        self.enter(|| {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { work(Client::connect([self.endpoint()], None).await.expect("etcd")).await });
        });
    }

    /// All calls since its start.
    pub fn calls(&self) -> Calls {
        let (_, text) = self.enter(|| http_get(self.clients(), "/metrics")).expect("etcd's metrics");
        text.lines().filter_map(counter).filter(|(_, count)| *count > 0).collect()
    }

    /// The calls while something is done.
    pub fn calls_during(&self, work: impl FnOnce()) -> Calls {
        let before = self.calls();
        work();
        let after = self.calls().into_iter();
        let since = after.map(|(name, count)| (name.clone(), count - before.get(&name).unwrap_or(&0)));
        since.filter(|(_, count)| *count > 0).collect()
    }
}

/// `grpc_server_started_total{grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 7`, and the same of
/// `grpc_server_msg_received_total`, of which only those of streams say more than the first.
fn counter(line: &str) -> Option<(String, u64)> {
    let (name, rest) = line.split_once("{grpc_method=\"")?;
    let (method, _) = rest.split_once('"')?;
    let count = line.rsplit_once(' ')?.1.parse().ok()?;
    match name {
        "grpc_server_started_total" => Some((method.to_owned(), count)),
        "grpc_server_msg_received_total" if rest.contains("stream") => Some((format!("messages to {method}"), count)),
        _ => None,
    }
}
