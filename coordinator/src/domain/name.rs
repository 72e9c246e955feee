//! The names a certificate may carry, and patterns over them.
//!
//! A name is a DNS name (lower case, LDH labels, RFC 5890 A-labels included),
//! a wildcard DNS name (RFC 9525, 6.3: one `*` as the whole left-most label) or
//! an IP address. Labels, CSRs and policies all come through here.

use std::fmt;
use std::net::IpAddr;

/// A certificate name that is well-formed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// `www.example.test`
    Dns(String),
    /// `*.example.test`, kept whole.
    Wildcard(String),
    /// `10.0.0.1`
    Address(IpAddr),
}

/// A name or pattern that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Not a DNS name, wildcard or address.
    #[error(
        "{0:?} is neither a DNS name (lower-case letters, digits, '-' in labels of at most 63) nor an IP address"
    )]
    Form(String),
    /// A pattern with a star in an odd place.
    #[error(
        "pattern {0:?} may have '*.' (one label) or '**.' (one or more) in front only, and {{host}} for the host's name"
    )]
    Pattern(String),
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address));
        }
        match text.strip_prefix("*.") {
            Some(rest) if is_dns_name(rest) => Ok(Self::Wildcard(text.to_owned())),
            None if is_dns_name(text) => Ok(Self::Dns(text.to_owned())),
            Some(_) | None => Err(NameError::Form(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Wildcard(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A pattern over DNS names: exact, `*.suffix` (one label) or `**.suffix` (one or more).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl std::str::FromStr for Pattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let rest = text.strip_prefix("**.").or_else(|| text.strip_prefix("*.")).unwrap_or(text);
        if is_dns_name(&rest.replace("{host}", "h")) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Pattern(text.chars().take(80).collect()))
        }
    }
}

impl Pattern {
    /// Does the pattern cover this DNS name, on this host? A wildcard name is
    /// covered when every name it stands for is.
    pub fn covers(&self, name: &str, host: &str) -> bool {
        let pattern = self.0.replace("{host}", host);
        let suffix_of = |suffix: &str| {
            name.strip_suffix(suffix).and_then(|head| head.strip_suffix('.')).filter(|head| !head.is_empty())
        };
        if let Some(suffix) = pattern.strip_prefix("**.") {
            suffix_of(suffix).is_some()
        } else if let Some(suffix) = pattern.strip_prefix("*.") {
            suffix_of(suffix).is_some_and(|head| !head.contains('.'))
        } else {
            pattern == name
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Shell-like match with `*` for any run of characters; for host names.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| text.strip_prefix(head)) else {
        return false;
    };
    let tail: Vec<&str> = parts.collect();
    let Some((last, middle)) = tail.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn is_dns_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
        // An all-numeric last label would read as an address (RFC 1123, 2.1).
        && !text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        assert_eq!("a.test".parse(), Ok(Name::Dns("a.test".into())));
        assert_eq!("*.a.test".parse(), Ok(Name::Wildcard("*.a.test".into())));
        assert!(matches!("::1".parse(), Ok(Name::Address(_))));
        for bad in ["", "A.test", "a..b", "-a.test", "a.*.test", "*", "**.a.test", "a b", "a.test\n", "1.2.3"]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn patterns() {
        let covers = |pattern: &str, name| pattern.parse::<Pattern>().unwrap().covers(name, "h1");
        assert!(covers("*.a.test", "x.a.test"));
        assert!(!covers("*.a.test", "x.y.a.test"));
        assert!(!covers("*.a.test", "a.test"));
        assert!(covers("**.a.test", "x.y.a.test"));
        assert!(covers("*.{host}.a.test", "x.h1.a.test"));
        assert!(!covers("*.{host}.a.test", "x.h2.a.test"));
        assert!(!covers("*.a.test", "xa.test"));
        assert!(covers("**.a.test", "*.a.test"));
        assert!("a.*.test".parse::<Pattern>().is_err());
    }

    #[test]
    fn globs() {
        assert!(glob("web-*", "web-1") && glob("*", "x") && glob("a*b*c", "axxbyyc") && glob("x", "x"));
        assert!(!glob("web-*", "db-1") && !glob("x", "xy") && !glob("a*a", "a"));
    }

    proptest! {
        #[test]
        fn never_panics(pattern in ".{0,40}", text in ".{0,80}") {
            let _ = text.parse::<Name>();
            let _ = glob(&pattern, &text);
            if let Ok(pattern) = pattern.parse::<Pattern>() { let _ = pattern.covers(&text, "h"); }
        }
    }
}
