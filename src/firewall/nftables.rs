//! Rules in nftables: one table for each family. A table that differs is replaced as a whole.

use super::{KUBE_PROXY_MARK, RuleSet};

impl RuleSet {
    /// The family and name of our table: `ip flannel-ipv4`.
    pub fn nft_table(&self) -> String {
        let (family, name) = if self.is_v6() { ("ip6", "flannel-ipv6") } else { ("ip", "flannel-ipv4") };
        format!("{family} {name}{}", self.suffix)
    }

    /// The table as `nft -s list table` prints it.
    pub fn nft_listing(&self) -> String {
        let (table, family) = (self.nft_table(), if self.is_v6() { "ip6" } else { "ip" });
        let name = table.split(' ').next_back().unwrap_or_default();
        let (net, subnet, multicast) = (self.network, self.subnet, self.multicast());
        let mut text = format!("table {table} {{\n\tcomment \"rules for {name}\"\n");
        if let Some(how) = self.masquerade {
            let masquerade = if how.random_fully { "masquerade fully-random" } else { "masquerade" };
            text += &chain(
                "postrtg",
                "nat hook postrouting priority srcnat",
                &[
                    format!("meta mark & {KUBE_PROXY_MARK:#010x} == {KUBE_PROXY_MARK:#010x} return"),
                    format!("{family} saddr {subnet} {family} daddr {net} return"),
                    format!("{family} saddr {net} {family} daddr {subnet} return"),
                    format!("{family} saddr != {net} {family} daddr {subnet} return"),
                    format!("{family} saddr {net} {family} daddr != {multicast} {masquerade}"),
                    format!("{family} saddr != {net} {family} daddr {net} {masquerade}"),
                ],
            );
        }
        if self.forward {
            if self.masquerade.is_some() {
                text += "\n";
            }
            text += &chain(
                "forward",
                "filter hook forward priority filter",
                &[format!("{family} saddr {net} accept"), format!("{family} daddr {net} accept")],
            );
        }
        text + "}\n"
    }

    /// The script that replaces the table in one transaction.
    pub fn nft_script(&self) -> String {
        let table = self.nft_table();
        // The first line makes sure that the table exists, because deleting a missing table fails.
        format!("table {table}\ndelete table {table}\n{}", self.nft_listing())
    }

    /// The script that removes the table.
    pub fn nft_removal(&self) -> String {
        let table = self.nft_table();
        format!("table {table}\ndelete table {table}\n")
    }
}

fn chain(name: &str, hook: &str, rules: &[String]) -> String {
    let rules: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
    format!("\tchain {name} {{\n\t\ttype {hook}; policy accept;\n{rules}\t}}\n")
}
