//! Parses the output of `iptables-save`.

use std::collections::BTreeMap;

/// One rule as words: everything after `-A CHAIN`, without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule(pub Vec<String>);

/// A chain and its rules in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// The policy of a built-in chain, `ACCEPT` or `DROP`; `-` for a user-defined chain.
    pub policy: String,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// All tables by name, each with its chains by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    tables: BTreeMap<String, BTreeMap<String, Chain>>,
}

impl Saved {
    /// Parses the text. Lines that are no table, chain or rule are skipped.
    pub fn parse(text: &str) -> Self {
        let mut saved = Saved::default();
        let mut table = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim().to_owned();
                saved.tables.entry(table.clone()).or_default();
            } else if let Some(rest) = line.strip_prefix(':') {
                let mut words = rest.split_whitespace();
                let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                saved.chain_mut(&table, name).policy = policy.to_owned();
            } else {
                let mut words = split(line);
                if words.len() > 2 && words[0] == "-A" {
                    let rule = Rule(words.split_off(2));
                    saved.chain_mut(&table, &words[1]).rules.push(rule);
                }
            }
        }
        saved
    }

    fn chain_mut(&mut self, table: &str, chain: &str) -> &mut Chain {
        self.tables.entry(table.to_owned()).or_default().entry(chain.to_owned()).or_default()
    }

    /// A chain, if it exists.
    pub fn chain(&self, table: &str, chain: &str) -> Option<&Chain> {
        self.tables.get(table)?.get(chain)
    }

    /// All chains of a table, by name.
    pub fn chains(&self, table: &str) -> impl Iterator<Item = (&String, &Chain)> {
        self.tables.get(table).into_iter().flatten()
    }
}

/// Splits a line into words. Text in double quotes is one word, in which a backslash escapes the next character.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => (quoted, begun) = (!quoted, true),
            '\\' if quoted => word.extend(letters.next()),
            letter if letter.is_whitespace() && !quoted => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            letter => {
                word.push(letter);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

impl Rule {
    /// A rule of these words.
    pub fn new(text: &str) -> Self {
        Rule(split(text))
    }

    /// Renders the rule for `iptables-restore`, without `-A CHAIN`.
    pub fn render(&self) -> String {
        let quoted = |word: &String| match word.is_empty() || word.contains([' ', '"', '\\', '\t']) {
            true => format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")),
            false => word.clone(),
        };
        self.0.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }

    /// The rule in a form that is the same for all versions of iptables: options sorted, names of modules left out.
    pub fn meaning(&self) -> Vec<String> {
        let mut options: Vec<String> = Vec::new();
        let mut negated = false;
        let mut words = self.0.iter().peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "!" => negated = true,
                "-m" | "--match" => drop(words.next()),
                word if word.starts_with('-') => {
                    let mut option = if std::mem::take(&mut negated) { format!("! {word}") } else { word.to_owned() };
                    while let Some(value) = words.next_if(|next| !next.starts_with('-') && *next != "!") {
                        option += " ";
                        option += value;
                    }
                    options.push(option);
                }
                word => options.push(word.to_owned()),
            }
        }
        options.sort();
        options
    }

    /// The target of the rule.
    pub fn target(&self) -> Option<&str> {
        let at = self.0.iter().position(|word| word == "-j" || word == "-g")?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// Whether the rule ends the chain for every packet.
    pub fn swallows_all(&self) -> bool {
        let ends = matches!(self.target(), Some("ACCEPT" | "DROP" | "REJECT" | "RETURN" | "MASQUERADE"));
        let narrows =
            |option: &String| !["-j ", "--comment ", "--reject-with "].iter().any(|free| option.starts_with(free));
        ends && !self.meaning().iter().any(narrows)
    }

    /// The value of an option such as `-d`, and whether it is negated.
    pub fn option(&self, name: &str) -> Option<(bool, &str)> {
        let at = self.0.iter().position(|word| word == name)?;
        let negated = at > 0 && self.0[at - 1] == "!";
        self.0.get(at + 1).map(|value| (negated, value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = r#"# Generated by iptables-save v1.8.9 (nf_tables)
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [3:180]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FORWARD ! -i docker0 -o docker0 -j DROP
COMMIT
"#;

    #[test]
    fn tables_chains_policies_and_rules_are_read() {
        let saved = Saved::parse(TEXT);
        let forward = saved.chain("filter", "FORWARD").unwrap();
        assert_eq!((forward.policy.as_str(), forward.rules.len()), ("DROP", 2));
        assert_eq!(forward.rules[0].target(), Some("FLANNEL-FWD"));
        assert_eq!(forward.rules[1].option("-i"), Some((true, "docker0")));
        assert_eq!(saved.chains("filter").count(), 3);
        assert!(saved.chain("nat", "FORWARD").is_none());
    }

    #[test]
    fn rules_are_rendered_as_they_were_read() {
        for text in [r#"-m comment --comment "flanneld forward" -j FLANNEL-FWD"#, r#"--comment "a \"b\\" -j X"#, "-j X"]
        {
            assert_eq!(Rule::new(text).render(), text);
        }
    }

    #[test]
    fn the_order_of_options_and_the_modules_mean_nothing() {
        let a = Rule::new(r#"-s 10.0.0.0/8 ! -d 224.0.0.0/4 -m comment --comment "x y" -j MASQUERADE --random-fully"#);
        let b = Rule::new(r#"! -d 224.0.0.0/4 -s 10.0.0.0/8 -j MASQUERADE --random-fully -m comment --comment "x y""#);
        assert_eq!(a.meaning(), b.meaning());
        for other in ["-s 10.0.0.0/8 -d 224.0.0.0/4 -j MASQUERADE", "-s 10.0.0.0/8 -j MASQUERADE"] {
            assert_ne!(a.meaning(), Rule::new(other).meaning());
        }
    }

    #[test]
    fn what_swallows_everything_is_known() {
        for all in ["-j DROP", "-j REJECT --reject-with icmp-host-prohibited", r#"-m comment --comment "x" -j ACCEPT"#]
        {
            assert!(Rule::new(all).swallows_all(), "{all}");
        }
        for some in ["-i eth0 -j DROP", "-m conntrack --ctstate INVALID -j DROP", "-j DOCKER-USER", "-j LOG"] {
            assert!(!Rule::new(some).swallows_all(), "{some}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            for (_, chain) in Saved::parse(&text).chains("filter") {
                chain.rules.iter().for_each(|rule| { rule.meaning(); rule.swallows_all(); rule.render(); });
            }
        }
    }
}
