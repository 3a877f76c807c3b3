//! The firewall of this host, changed with the installed programs.

use super::events::RuleEvents;
use super::obstacles::{self, OnHost};
use super::saved::Saved;
use super::tools::{ToolError, run};
use super::{Firewall, Look, Mode, RuleSet};
use std::collections::BTreeMap;
use std::future::pending;

/// The firewall of this host.
pub struct HostFirewall {
    mode: Mode,
    /// Reports of changes; `None` if the kernel has no nftables, so that only checks find changes.
    events: Option<RuleEvents>,
    iptables: Option<Iptables>,
    /// Our tables as nft printed them right after they were made, because versions of nft print them differently.
    printed: BTreeMap<String, String>,
    /// Whether leftovers of the other mode were searched for.
    tidied: bool,
    /// Whether chains of other programs that drop packets may have been added or removed.
    chains_changed: bool,
    dropping_chains: Vec<String>,
}

/// The features of the installed iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Iptables {
    /// Whether it is built on nftables, whose changes the kernel reports.
    on_nftables: bool,
    /// Whether it is 1.6.2 or later: it has `--random-fully`, and `iptables-restore` waits for the lock.
    modern: bool,
}

impl Iptables {
    /// Parses `iptables v1.8.9 (nf_tables)`.
    fn parse(version: &str) -> Self {
        let number = version.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
        let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let parts = [(); 3].map(|()| parts.next().unwrap_or(0));
        Iptables { on_nftables: version.contains("nf_tables"), modern: parts >= [1, 6, 2] }
    }
}

impl HostFirewall {
    /// The firewall of the network namespace of this thread. Starts no program yet; needs a tokio runtime.
    pub fn new() -> Self {
        let events = RuleEvents::open().inspect_err(|error| {
            tracing::debug!(
                "changes of rules are seen only when they are looked at: no reports from nftables: {error}"
            );
        });
        HostFirewall {
            mode: Mode::Iptables,
            events: events.ok(),
            iptables: None,
            printed: BTreeMap::new(),
            tidied: false,
            chains_changed: true,
            dropping_chains: Vec::new(),
        }
    }

    async fn iptables(&mut self) -> Result<Iptables, ToolError> {
        if let Some(known) = self.iptables {
            return Ok(known);
        }
        let found = Iptables::parse(&run("iptables", &["--version"], "").await?);
        if !found.modern {
            tracing::warn!("this iptables is older than 1.6.2: source ports are not chosen at random");
        }
        self.iptables = Some(found);
        Ok(found)
    }

    async fn look_at_iptables(&mut self, set: &RuleSet, on_host: &[OnHost]) -> Result<Look, ToolError> {
        let iptables = self.iptables().await?;
        let mut set = set.clone();
        if let Some(masquerade) = set.masquerade.as_mut().filter(|_| !iptables.modern) {
            masquerade.random_fully = false;
        }
        let (save, restore) = programs(&set);
        let saved = Saved::parse(&run(save, &[], "").await?);
        let mut look = Look { obstacles: obstacles::in_iptables(&saved, &set, on_host), ..Look::default() };
        if let Some(change) = set.iptables_change(&saved) {
            tracing::debug!("{restore}: {}", change.script);
            let wait: &[&str] = if iptables.modern { &["--noflush", "--wait", "5"] } else { &["--noflush"] };
            run(restore, wait, &change.script).await?;
            look.changes = change.why;
        }
        Ok(look)
    }

    async fn look_at_nftables(&mut self, set: &RuleSet) -> Result<Look, ToolError> {
        let table = set.nft_table();
        let now = list(&table).await?;
        let right = [Some(&set.nft_listing()), self.printed.get(&table)];
        let why = match &now {
            Some(now) if right.into_iter().flatten().any(|text| same(text, now)) => return Ok(Look::default()),
            Some(_) => format!("table {table} was not as it should be"),
            None => format!("table {table} was missing"),
        };
        run("nft", &["-f", "-"], &set.nft_script()).await?;
        // A change by another program since then would hardly keep the number of lines.
        if let Some(printed) =
            list(&table).await?.filter(|text| text.lines().count() == set.nft_listing().lines().count())
        {
            self.printed.insert(table, printed);
        }
        Ok(Look { changes: vec![why], ..Look::default() })
    }

    /// Repairs our nftables table, and the rules in DOCKER-USER, which only iptables' tables can hold. Removes all other
    /// rules of ours from iptables' tables: an earlier run in the other mode left them.
    async fn look_at_both(&mut self, set: &RuleSet, on_host: &[OnHost]) -> Result<Look, ToolError> {
        let in_nftables = in_nftables(set);
        let mut look = match in_nftables.is_empty() {
            true => Look::default(),
            false => self.look_at_nftables(&in_nftables).await?,
        };
        let in_iptables = RuleSet { forward: false, masquerade: None, ..set.clone() };
        match self.look_at_iptables(&in_iptables, on_host).await {
            Ok(Look { changes, obstacles, .. }) => {
                look.changes.extend(changes);
                look.obstacles.extend(obstacles);
            }
            Err(error) if set.docker_user.is_some() => return Err(error),
            // iptables may not be installed.
            Err(_) => {}
        }
        Ok(look)
    }

    /// Removes tables that an earlier run with nftables left. A failure is ignored, because nft may not be installed.
    async fn tidy(&mut self, sets: &[RuleSet]) -> Vec<String> {
        let mut removed = Vec::new();
        for set in sets.iter().filter(|set| self.mode == Mode::Iptables || in_nftables(set).is_empty()) {
            let table = set.nft_table();
            if let Ok(Some(_)) = list(&table).await
                && run("nft", &["-f", "-"], &set.nft_removal()).await.is_ok()
            {
                removed.push(format!("table {table} was left by an earlier run with nftables"));
            }
        }
        removed
    }

    async fn list_dropping_chains(&self, sets: &[RuleSet]) -> Vec<String> {
        let Ok(chains) = run("nft", &["-j", "list", "chains"], "").await else { return Vec::new() };
        sets.iter().flat_map(|set| obstacles::dropping_chains(&chains, set, self.mode)).collect()
    }
}

impl Default for HostFirewall {
    fn default() -> Self {
        HostFirewall::new()
    }
}

impl Firewall for HostFirewall {
    async fn ensure(&mut self, mode: Mode, sets: &[RuleSet], on_host: &[OnHost]) -> Result<Look, ToolError> {
        // Also if the check was periodic and not caused by a report.
        self.chains_changed |= self.events.as_mut().is_some_and(RuleEvents::drain);
        if self.mode != mode {
            (self.mode, self.tidied, self.chains_changed) = (mode, false, true);
        }
        let mut all = Look::default();
        for set in sets {
            let look = match mode {
                Mode::Nftables => self.look_at_both(set, on_host).await?,
                Mode::Iptables => match self.look_at_iptables(set, on_host).await {
                    Err(ToolError::Missing { .. }) if set.is_empty() => Look::default(),
                    look => look?,
                },
            };
            all.changes.extend(look.changes);
            all.obstacles.extend(look.obstacles);
        }
        if !self.tidied {
            all.changes.extend(self.tidy(sets).await);
            self.tidied = true;
        }
        if std::mem::take(&mut self.chains_changed) {
            self.dropping_chains = self.list_dropping_chains(sets).await;
        }
        all.dropping_chains = self.dropping_chains.clone();
        Ok(all)
    }

    fn reports_changes(&self) -> bool {
        let seen = self.mode == Mode::Nftables || self.iptables.is_some_and(|iptables| iptables.on_nftables);
        self.events.is_some() && seen
    }

    async fn changed(&mut self) {
        match &mut self.events {
            Some(events) => events.changed().await,
            None => pending().await,
        }
    }
}

/// The rules that our own table can hold.
fn in_nftables(set: &RuleSet) -> RuleSet {
    RuleSet { docker_user: None, ..set.clone() }
}

fn programs(set: &RuleSet) -> (&'static str, &'static str) {
    match set.network.addr().is_ipv6() {
        true => ("ip6tables-save", "ip6tables-restore"),
        false => ("iptables-save", "iptables-restore"),
    }
}

/// Our table as nft prints it without counters; `None` if it is not there.
async fn list(table: &str) -> Result<Option<String>, ToolError> {
    let words: Vec<&str> = ["-s", "list", "table"].into_iter().chain(table.split(' ')).collect();
    match run("nft", &words, "").await {
        Ok(text) => Ok(Some(text)),
        Err(ToolError::Failed { text, .. }) if text.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether two texts are equal apart from white space.
fn same(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_iptables_are_read() {
        for (text, on_nftables, modern) in [
            ("iptables v1.8.9 (nf_tables)\n", true, true),
            ("iptables v1.8.9 (legacy)\n", false, true),
            ("iptables v1.6.2", false, true),
            ("iptables v1.4.21", false, false),
            ("", false, false),
        ] {
            assert_eq!(Iptables::parse(text), Iptables { on_nftables, modern }, "{text}");
        }
    }
}
