//! Which host may hold which names, with which key, for how long.
//!
//! The first policy by name that admits a request decides; none means refused.
//! A refusal says, policy by policy, what it objected to. Asked by issuance for
//! every CSR and by `reseal policy check`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use reseal_proto::v1::{self, Usage};

use super::name::{Name, Pattern, glob};

/// Key types a policy may name.
pub const KEY_TYPES: [&str; 5] = ["ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "rsa-4096"];
/// The longest lifetime a policy may give.
pub const MAX_LIFETIME: Duration = Duration::from_secs(398 * 86_400);
/// The shortest.
pub const MIN_LIFETIME: Duration = Duration::from_secs(60);
/// More names in one certificate are refused.
pub const MAX_NAMES: usize = 100;

/// A policy that is sound.
#[derive(Clone, Debug)]
pub struct Policy {
    name: String,
    hosts: Vec<String>,
    host_labels: BTreeMap<String, String>,
    names: Vec<Pattern>,
    addresses: Vec<Network>,
    key_types: Vec<String>,
    usages: Vec<i32>,
    lifetime: Duration,
    wildcards: bool,
}

/// What a host wants.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The host, from its identity.
    pub host: &'a str,
    /// Its labels, from the coordinator's record.
    pub labels: &'a BTreeMap<String, String>,
    /// From the CSR.
    pub names: &'a [Name],
    /// From the CSR.
    pub key_type: &'a str,
    /// From the host's declaration.
    pub usage: Usage,
}

/// What is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The policy that admits.
    pub policy: String,
    /// Validity of the certificate.
    pub lifetime: Duration,
}

/// Nothing is: one line for each policy looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no policy admits this request: {}; see `reseal policy list`, or `reseal policy check` to try", explanation.join("; "))]
pub struct Refusal {
    /// "policy NAME: objection".
    pub explanation: Vec<String>,
}

/// A policy with mistakes, all of them.
#[derive(Debug, thiserror::Error)]
#[error("policy {name:?} has mistakes: {}", mistakes.join("; "))]
pub struct PolicyError {
    /// The policy.
    pub name: String,
    /// Every mistake found.
    pub mistakes: Vec<String>,
}

/// Decides; `policies` in the order of their names.
pub fn admit(policies: &[Policy], request: &Request<'_>) -> Result<Admission, Refusal> {
    let mut objections = Vec::new();
    for policy in policies {
        match policy.objection(request) {
            None => return Ok(Admission { policy: policy.name.clone(), lifetime: policy.lifetime }),
            Some(objection) => objections.push((&policy.name, objection)),
        }
    }
    let mut explanation: Vec<String> =
        objections.iter().map(|(name, objection)| format!("policy {name}: {objection}")).collect();
    if explanation.is_empty() {
        explanation.push("there is no policy at all".to_owned());
    }
    Err(Refusal { explanation })
}

/// The safe default of `reseal init`: a host may hold its own name, nothing else.
pub fn default_policy() -> v1::Policy {
    v1::Policy {
        name: "default".into(),
        names: vec!["{host}".into(), "{host}.internal".into()],
        key_types: vec!["ecdsa-p256".into(), "ecdsa-p384".into()],
        usages: vec![Usage::Server.into()],
        lifetime_seconds: 30 * 86_400,
        ..v1::Policy::default()
    }
}

/// What a policy has against a request; put into words only when no policy admits it.
#[derive(Clone, Copy, Debug)]
enum Objection<'a> {
    Host(&'a str),
    Label { host: &'a str, key: &'a str, value: &'a str },
    NoNames,
    ManyNames(usize),
    Wildcard(&'a Name),
    Name(&'a Name),
    KeyType { asked: &'a str, allowed: &'a [String] },
    Usage(Usage),
}

impl fmt::Display for Objection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "is not for host {host}"),
            Self::Label { host, key, value } => write!(f, "host {host} lacks label {key}={value}"),
            Self::NoNames => f.write_str("the request has no names"),
            Self::ManyNames(number) => write!(f, "{number} names are more than the {MAX_NAMES} allowed"),
            Self::Wildcard(name) => write!(f, "wildcard name {name} is not allowed"),
            Self::Name(name) => write!(f, "name {name} is not covered"),
            Self::KeyType { asked, allowed } => {
                write!(f, "key type {asked} is not one of {}", allowed.join(", "))
            }
            Self::Usage(usage) => write!(f, "usage {} is not allowed", usage_word(*usage)),
        }
    }
}

impl Policy {
    fn objection<'a>(&'a self, request: &Request<'a>) -> Option<Objection<'a>> {
        if !self.hosts.is_empty() && !self.hosts.iter().any(|pattern| glob(pattern, request.host)) {
            return Some(Objection::Host(request.host));
        }
        if let Some((key, value)) =
            self.host_labels.iter().find(|(key, value)| request.labels.get(*key) != Some(*value))
        {
            return Some(Objection::Label { host: request.host, key, value });
        }
        if request.names.is_empty() {
            return Some(Objection::NoNames);
        }
        if request.names.len() > MAX_NAMES {
            return Some(Objection::ManyNames(request.names.len()));
        }
        if let Some(name) = request.names.iter().find(|name| !self.covers(name, request.host)) {
            return Some(match name {
                Name::Wildcard(_) if !self.wildcards => Objection::Wildcard(name),
                Name::Wildcard(_) | Name::Dns(_) | Name::Address(_) => Objection::Name(name),
            });
        }
        if !self.key_types.iter().any(|allowed| allowed == request.key_type) {
            return Some(Objection::KeyType { asked: request.key_type, allowed: &self.key_types });
        }
        if !self.usages.contains(&(request.usage as i32)) {
            return Some(Objection::Usage(request.usage));
        }
        None
    }

    fn covers(&self, name: &Name, host: &str) -> bool {
        match name {
            Name::Dns(name) => self.names.iter().any(|pattern| pattern.covers(name, host)),
            Name::Wildcard(name) => {
                self.wildcards && self.names.iter().any(|pattern| pattern.covers(name, host))
            }
            Name::Address(address) => self.addresses.iter().any(|network| network.contains(*address)),
        }
    }
}

impl TryFrom<&v1::Policy> for Policy {
    type Error = PolicyError;

    fn try_from(policy: &v1::Policy) -> Result<Self, PolicyError> {
        let mut mistakes = Vec::new();
        if let Err(error) = reseal_proto::identity::check_name("policy", &policy.name) {
            mistakes.push(error.to_string());
        }
        let names = keep(&mut mistakes, policy.names.iter().map(|name| name.parse::<Pattern>()));
        let addresses = keep(&mut mistakes, policy.addresses.iter().map(|text| text.parse::<Network>()));
        if names.is_empty() && addresses.is_empty() && mistakes.is_empty() {
            mistakes.push("it allows no name and no address".to_owned());
        }
        if policy.key_types.is_empty() {
            mistakes.push("key_types is empty".to_owned());
        }
        for key_type in &policy.key_types {
            if !KEY_TYPES.contains(&key_type.as_str()) {
                mistakes.push(format!("key type {key_type:?} is not one of {}", KEY_TYPES.join(", ")));
            }
        }
        if policy.usages.is_empty() {
            mistakes.push("usages is empty".to_owned());
        }
        for usage in &policy.usages {
            if !matches!(Usage::try_from(*usage), Ok(Usage::Server | Usage::Client | Usage::Both)) {
                mistakes.push(format!("usage {usage} is unknown"));
            }
        }
        let lifetime = Duration::from_secs(policy.lifetime_seconds);
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime) {
            mistakes.push(format!(
                "lifetime of {} seconds is not between {} seconds and {} days",
                policy.lifetime_seconds,
                MIN_LIFETIME.as_secs(),
                MAX_LIFETIME.as_secs() / 86_400
            ));
        }
        let entries =
            policy.names.len() + policy.addresses.len() + policy.hosts.len() + policy.host_labels.len();
        if entries > 500 {
            mistakes.push(format!("{entries} entries are more than 500; split the policy"));
        }
        if !mistakes.is_empty() {
            return Err(PolicyError { name: policy.name.clone(), mistakes });
        }
        Ok(Self {
            name: policy.name.clone(),
            hosts: policy.hosts.clone(),
            host_labels: policy.host_labels.clone(),
            names,
            addresses,
            key_types: policy.key_types.clone(),
            usages: policy.usages.clone(),
            lifetime,
            wildcards: policy.wildcards,
        })
    }
}

/// "server", "client", "both".
pub fn usage_word(usage: Usage) -> &'static str {
    match usage {
        Usage::Unspecified => "unspecified",
        Usage::Server => "server",
        Usage::Client => "client",
        Usage::Both => "both",
    }
}

fn keep<T, E: std::fmt::Display>(
    mistakes: &mut Vec<String>,
    items: impl Iterator<Item = Result<T, E>>,
) -> Vec<T> {
    items.filter_map(|item| item.map_err(|error| mistakes.push(error.to_string())).ok()).collect()
}

/// An address range in CIDR notation (RFC 4632, RFC 4291).
#[derive(Clone, Copy, Debug)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an address range such as 10.0.0.0/8 or 2001:db8::/32")]
struct NetworkError(String);

impl std::str::FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let error = || NetworkError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), str::parse).map_err(|_| error())?;
        if prefix > longest { Err(error()) } else { Ok(Self { address, prefix }) }
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
            IpAddr::V6(address) => (u128::from(address), 128),
        };
        let ((own, own_length), (other, other_length)) = (bits(self.address), bits(address));
        let shift = 128 - u32::from(self.prefix);
        own_length == other_length && (shift == 128 || own >> shift == other >> shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire() -> v1::Policy {
        v1::Policy {
            name: "web".into(),
            hosts: vec!["web-*".into()],
            names: vec!["*.example.test".into()],
            addresses: vec!["10.0.0.0/8".into()],
            key_types: vec!["ecdsa-p256".into()],
            usages: vec![Usage::Server.into()],
            lifetime_seconds: 3600,
            ..v1::Policy::default()
        }
    }

    fn check(policy: &v1::Policy, host: &str, names: &[&str], key_type: &str) -> Result<Admission, Refusal> {
        let names: Vec<Name> = names.iter().map(|name| name.parse().unwrap()).collect();
        let labels = BTreeMap::new();
        let request = Request { host, labels: &labels, names: &names, key_type, usage: Usage::Server };
        admit(&[Policy::try_from(policy).unwrap()], &request)
    }

    #[test]
    fn admits_what_it_covers_and_explains_the_rest() {
        assert!(check(&wire(), "web-1", &["a.example.test", "10.2.3.4"], "ecdsa-p256").is_ok());
        for (host, names, key, why) in [
            ("db-1", vec!["a.example.test"], "ecdsa-p256", "not for host db-1"),
            ("web-1", vec!["a.example.test", "evil.test"], "ecdsa-p256", "name evil.test"),
            ("web-1", vec!["*.example.test"], "ecdsa-p256", "wildcard"),
            ("web-1", vec!["11.0.0.1"], "ecdsa-p256", "11.0.0.1"),
            ("web-1", vec!["a.example.test"], "rsa-2048", "rsa-2048"),
            ("web-1", vec![], "ecdsa-p256", "no names"),
        ] {
            let refusal = check(&wire(), host, &names, key).unwrap_err();
            assert!(refusal.to_string().contains(why), "{refusal}");
        }
    }

    #[test]
    fn a_hundred_names_are_enough() {
        let names: Vec<String> = (0..=MAX_NAMES).map(|at| format!("n{at}.example.test")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(check(&wire(), "web-1", &names[..MAX_NAMES], "ecdsa-p256").is_ok());
        let refusal = check(&wire(), "web-1", &names, "ecdsa-p256").unwrap_err();
        assert!(refusal.to_string().contains("101 names"), "{refusal}");
    }

    #[test]
    fn the_default_gives_a_host_its_own_name_only() {
        let policy = default_policy();
        assert!(check(&policy, "web-1", &["web-1.internal"], "ecdsa-p256").is_ok());
        assert!(check(&policy, "web-1", &["web-2.internal"], "ecdsa-p256").is_err());
    }

    #[test]
    fn reports_every_mistake_at_once() {
        let policy = v1::Policy {
            names: vec!["a.*.b".into()],
            addresses: vec!["10.0.0.0/33".into()],
            key_types: vec!["dsa".into()],
            usages: vec![9],
            ..wire()
        };
        assert_eq!(Policy::try_from(&policy).unwrap_err().mistakes.len(), 4);
    }

    proptest! {
        #[test]
        fn a_prefix_contains_exactly_its_range(own: u32, other: u32, prefix in 0u8..=32) {
            let network: Network = format!("{}/{prefix}", std::net::Ipv4Addr::from(own)).parse().unwrap();
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            prop_assert_eq!(network.contains(IpAddr::V4(other.into())), own & mask == other & mask);
        }
    }
}
