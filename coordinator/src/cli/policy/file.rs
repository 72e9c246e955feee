//! `policy.toml`: a policy as a file, all its mistakes found at once.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use reseal_proto::v1;
use toml::Value;

use crate::cli::when;
use crate::domain::policy::Policy;

/// Kinds of key a policy allows that names none.
const DEFAULT_KEY_TYPES: [&str; 2] = ["ecdsa-p256", "ecdsa-p384"];
/// Lifetime of a policy that names none, seconds.
pub(crate) const DEFAULT_LIFETIME: u64 = 30 * 86_400;
const KEYS: [&str; 8] =
    ["hosts", "host_labels", "names", "addresses", "key_types", "usages", "lifetime", "wildcards"];

/// Reads a policy; the error has one line per mistake.
pub(crate) fn parse(name: &str, text: &str) -> Result<v1::Policy, Vec<String>> {
    let (policy, mut wrong) = read(name, text)?;
    wrong.extend(mistakes(&policy));
    if wrong.is_empty() { Ok(policy) } else { Err(wrong) }
}

/// What is wrong with a policy; the coordinator asks the same.
pub(crate) fn mistakes(policy: &v1::Policy) -> Vec<String> {
    Policy::try_from(policy).err().map(|error| error.mistakes).unwrap_or_default()
}

/// Fills in what was left out, whether in a file or in flags.
pub(crate) fn complete(policy: &mut v1::Policy) {
    if policy.key_types.is_empty() {
        policy.key_types = DEFAULT_KEY_TYPES.map(str::to_owned).to_vec();
    }
    if policy.usages.is_empty() {
        policy.usages = vec![v1::Usage::Server.into()];
    }
    if policy.lifetime_seconds == 0 {
        policy.lifetime_seconds = DEFAULT_LIFETIME;
    }
}

/// The policy as it is written, and what is wrong with the writing. An error:
/// this is no TOML at all.
fn read(name: &str, text: &str) -> Result<(v1::Policy, Vec<String>), Vec<String>> {
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return Err(vec![error.to_string().trim_end().to_owned()]),
    };
    let mut reader = Reader { table, wrong: Vec::new() };
    let mut policy = v1::Policy {
        name: name.to_owned(),
        hosts: reader.texts("hosts"),
        host_labels: reader.labels("host_labels"),
        names: reader.texts("names"),
        addresses: reader.texts("addresses"),
        key_types: reader.texts("key_types"),
        usages: reader.usages("usages"),
        lifetime_seconds: reader.lifetime("lifetime"),
        wildcards: reader.flag("wildcards"),
    };
    for key in reader.table.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        reader.wrong.push(format!("unknown key {key:?}; a policy has {}", KEYS.join(", ")));
    }
    complete(&mut policy);
    Ok((policy, reader.wrong))
}

/// A policy as the file [`parse`] reads.
pub(crate) fn write(policy: &v1::Policy) -> String {
    let list = |items: &[String]| {
        let quoted: Vec<String> = items.iter().map(|item| quote(item)).collect();
        format!("[{}]", quoted.join(", "))
    };
    let labels: Vec<String> =
        policy.host_labels.iter().map(|(key, value)| format!("{} = {}", quote(key), quote(value))).collect();
    let usages: Vec<String> =
        policy.usages().map(|usage| crate::cli::view::usage(usage).to_owned()).collect();
    let mut text = format!("# policy {}\n", policy.name);
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key} = {value}");
    };
    line("hosts", list(&policy.hosts));
    line("host_labels", if labels.is_empty() { "{}".into() } else { format!("{{ {} }}", labels.join(", ")) });
    line("names", list(&policy.names));
    line("addresses", list(&policy.addresses));
    line("key_types", list(&policy.key_types));
    line("usages", list(&usages));
    if policy.lifetime_seconds > 0 {
        line("lifetime", quote(&when::short(policy.lifetime_seconds)));
    }
    line("wildcards", policy.wildcards.to_string());
    text
}

/// The usage a word names.
pub(crate) fn usage(word: &str) -> Result<v1::Usage, String> {
    match word {
        "server" => Ok(v1::Usage::Server),
        "client" => Ok(v1::Usage::Client),
        "both" => Ok(v1::Usage::Both),
        _ => Err(format!("{word:?} is not server, client or both")),
    }
}

struct Reader {
    table: toml::Table,
    wrong: Vec<String>,
}

impl Reader {
    fn texts(&mut self, key: &str) -> Vec<String> {
        match self.table.get(key) {
            None => Vec::new(),
            Some(Value::Array(items)) if items.iter().all(Value::is_str) => {
                items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            Some(_) => {
                self.wrong.push(format!("{key}: must be a list of texts, such as [\"...\"]"));
                Vec::new()
            }
        }
    }

    fn labels(&mut self, key: &str) -> BTreeMap<String, String> {
        match self.table.get(key) {
            None => BTreeMap::new(),
            Some(Value::Table(table)) if table.values().all(Value::is_str) => table
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect(),
            Some(_) => {
                self.wrong.push(format!("{key}: must be a table of texts, such as {{ env = \"prod\" }}"));
                BTreeMap::new()
            }
        }
    }

    fn usages(&mut self, key: &str) -> Vec<i32> {
        let mut usages = Vec::new();
        for word in self.texts(key) {
            match usage(&word) {
                Ok(usage) => usages.push(usage.into()),
                Err(error) => self.wrong.push(format!("{key}: {error}")),
            }
        }
        usages
    }

    fn lifetime(&mut self, key: &str) -> u64 {
        match self.table.get(key) {
            None => 0,
            Some(Value::String(text)) => when::duration(text).unwrap_or_else(|error| {
                self.wrong.push(format!("{key}: {error}"));
                0
            }),
            Some(_) => {
                self.wrong.push(format!("{key}: must be a text such as \"720h\" or \"30d\""));
                0
            }
        }
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.table.get(key) {
            None => false,
            Some(Value::Boolean(flag)) => *flag,
            Some(_) => {
                self.wrong.push(format!("{key}: must be true or false"));
                false
            }
        }
    }
}

/// A TOML basic string, for values and for keys.
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"
        hosts = ["web-*"]
        host_labels = { env = "prod" }
        names = ["*.example.test", "{host}.internal"]
        addresses = ["10.0.0.0/8"]
        key_types = ["ecdsa-p256"]
        usages = ["server", "client"]
        lifetime = "720h"
        wildcards = true
    "#;

    #[test]
    fn comes_back_as_it_was_set() {
        let policy = parse("web", GOOD).unwrap();
        assert_eq!(policy.lifetime_seconds, 720 * 3600);
        assert_eq!(policy.usages().collect::<Vec<_>>(), [v1::Usage::Server, v1::Usage::Client]);
        assert_eq!(parse("web", &write(&policy)).unwrap(), policy);
    }

    #[test]
    fn all_mistakes_at_once() {
        let text = r#"
            hostz = []
            names = "a"
            lifetime = 30
            usages = ["sever"]
            key_types = ["dsa"]
            addresses = ["10.0.0.0/40"]
            wildcards = "yes"
            host_labels = ["env"]
        "#;
        let wrong = parse("Web", text).unwrap_err();
        for word in [
            "hostz",
            "names: must be",
            "lifetime: must be",
            "\"sever\"",
            "\"dsa\"",
            "10.0.0.0/40",
            "wildcards:",
            "host_labels:",
            "\"Web\"",
        ] {
            assert!(wrong.iter().any(|line| line.contains(word)), "{word} is not in {wrong:#?}");
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let policy = parse("web", "names = [\"a.example.test\"]").unwrap();
        assert_eq!(policy.key_types, DEFAULT_KEY_TYPES);
        assert_eq!(policy.lifetime_seconds, DEFAULT_LIFETIME);
        assert_eq!(policy.usages().collect::<Vec<_>>(), [v1::Usage::Server]);
    }

    #[test]
    fn broken_toml_names_its_line() {
        let wrong = parse("web", "names = [\n").unwrap_err();
        assert!(wrong[0].contains("line"), "{wrong:?}");
        assert!(parse("web", "").is_err(), "an empty policy admits nothing");
    }

    proptest! {
        #[test]
        fn never_panics(text in "(\\PC|\n|=|\\[|\"){0,120}") {
            let _ = parse("web", &text);
        }

        #[test]
        fn any_words_come_back(names in proptest::collection::vec("[^\\s\\p{C}]{1,12}", 1..4), key in "\\PC{1,8}", value in ".{0,8}") {
            let mut policy = v1::Policy { name: "p".into(), names, host_labels: [(key, value)].into(), ..Default::default() };
            complete(&mut policy);
            prop_assert_eq!(read("p", &write(&policy)).unwrap(), (policy, Vec::new()));
        }
    }
}
