//! Network configs under other prefixes: if there is none under ours, the prefix may be misspelt.

use super::error::CallError;
use super::keys::{CONFIG, Keys};
use super::pool::Pool;
use etcd_client::{GetOptions, GetResponse};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// How often etcd is searched at most.
const SEARCH_EVERY: Duration = Duration::from_secs(60);
/// How many directories are looked into beside ours, and beside the one above.
const DIRECTORIES: usize = 20;
/// The prefixes that guides and packages of flannel use.
const USUAL: [&str; 4] = ["/coreos.com/network", "/flannel/network", "/kube-centos/network", "/atomic.io/network"];

/// The configs that were found last.
#[derive(Default)]
pub(super) struct Nearby {
    found: RefCell<Vec<String>>,
    searched_at: Cell<Option<Instant>>,
}

impl Nearby {
    /// The keys of configs under other prefixes, as far as the user may read them.
    pub(super) async fn search(&self, pool: &Pool, keys: &Keys) -> Vec<String> {
        if self.searched_at.get().is_none_or(|then| then.elapsed() >= SEARCH_EVERY) {
            self.searched_at.set(Some(Instant::now()));
            self.found.replace(search(pool, &keys.prefix).await);
        }
        self.found.borrow().clone()
    }
}

async fn search(pool: &Pool, prefix: &str) -> Vec<String> {
    let mut prefixes: BTreeSet<String> = USUAL.map(str::to_owned).into();
    prefixes.insert(match prefix.strip_prefix('/') {
        Some(bare) => bare.to_owned(),
        None => format!("/{prefix}"),
    });
    let above = parent(prefix);
    for directory in BTreeSet::from([above, parent(above)]) {
        for child in children(pool, directory).await.unwrap_or_default() {
            prefixes.insert(format!("{child}/network"));
            prefixes.insert(child);
        }
    }
    prefixes.remove(prefix);
    let mut found = Vec::new();
    for key in prefixes.iter().map(|prefix| format!("{prefix}/{CONFIG}")) {
        if range(pool, key.clone(), GetOptions::new().with_count_only()).await.is_ok_and(|read| read.count() > 0) {
            found.push(key);
        }
    }
    found
}

/// `/coreos.com` of `/coreos.com/network`, and nothing of that.
fn parent(prefix: &str) -> &str {
    prefix.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The first directories in a directory. Each is found by one key, whatever it holds.
async fn children(pool: &Pool, directory: &str) -> Result<Vec<String>, CallError> {
    let start = format!("{directory}/");
    let (mut from, end) = (start.clone(), format!("{directory}0"));
    let mut found = Vec::new();
    for _ in 0..DIRECTORIES {
        let options = GetOptions::new().with_range(end.clone()).with_limit(1).with_keys_only();
        let read = range(pool, from, options).await?;
        let Some(key) = read.kvs().first().map(|kv| String::from_utf8_lossy(kv.key()).into_owned()) else { break };
        let name = key.strip_prefix(&start).and_then(|rest| rest.split_once('/')).map(|(name, _)| name);
        from = match name {
            Some(name) => {
                found.push(format!("{start}{name}"));
                format!("{start}{name}0")
            }
            None => format!("{key}\0"),
        };
    }
    Ok(found)
}

async fn range(pool: &Pool, from: String, options: GetOptions) -> Result<GetResponse, CallError> {
    pool.call(async |mut s| s.kv.get(from.clone(), Some(options.clone())).await).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_above_a_prefix_is_searched_and_the_one_above_that() {
        assert_eq!((parent("/coreos.com/network"), parent("/coreos.com"), parent("")), ("/coreos.com", "", ""));
    }
}
