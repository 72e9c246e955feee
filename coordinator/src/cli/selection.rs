//! Which installations a command is about: the same flags for `plan`, `rotate` and `certs`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use reseal_proto::v1;

use super::exit::CliError;
use super::when;

/// A serial list larger than this is something else, bytes.
const MAX_SERIAL_FILE: u64 = 64 * 1024 * 1024;

/// Kinds are joined by AND, entries of a kind by OR.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Selection (kinds are joined by AND, repeated entries of a kind by OR)")]
pub(crate) struct SelectionArgs {
    /// Everything issued by this authority's key: its name (a, builtin/a), or its
    /// certificate fingerprint, SKI or SPKI hash in hex
    #[arg(long, value_name = "ISSUER")]
    pub(crate) compromised_issuer: Option<String>,
    /// On this host; may be repeated
    #[arg(long = "host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
    /// On hosts with this label; may be repeated, all must match
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) host_labels: Vec<(String, String)>,
    /// With a name that matches: www.example.test, *.example.test, **.example.test
    #[arg(long = "name", value_name = "PATTERN")]
    pub(crate) names: Vec<String>,
    /// With this serial number in hex, or ISSUER:SERIAL; may be repeated
    #[arg(long = "serial", value_name = "SERIAL")]
    pub(crate) serials: Vec<String>,
    /// With a serial from this file, one a line, # begins a comment; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) serial_file: Option<PathBuf>,
    /// With this kind of key: rsa-2048, ecdsa-p256, ...
    #[arg(long = "key-type", value_name = "TYPE")]
    pub(crate) key_types: Vec<String>,
    /// Expiring before this date (2027-01-31 or RFC 3339), or within this span (30d)
    #[arg(long, value_name = "WHEN")]
    pub(crate) expires_before: Option<String>,
}

impl SelectionArgs {
    /// The selection; reads the serial file.
    pub(crate) fn read(&self) -> Result<v1::Selection, CliError> {
        let mut serials: Vec<String> =
            self.serials.iter().map(|text| serial(text)).collect::<Result<_, _>>()?;
        if let Some(path) = &self.serial_file {
            serials.extend(serial_file(path)?);
        }
        let expires_before = match &self.expires_before {
            Some(text) => when::moment(text, when::now())
                .map_err(|error| CliError::Usage(format!("--expires-before: {error}")))?,
            None => 0,
        };
        Ok(v1::Selection {
            compromised_issuer: self.compromised_issuer.clone().unwrap_or_default(),
            hosts: self.hosts.clone(),
            host_labels: labels(&self.host_labels)?,
            names: self.names.clone(),
            serials,
            key_types: self.key_types.clone(),
            expires_before,
            all: false,
        })
    }

    /// Like [`SelectionArgs::read`], but an empty selection is refused: it would mean nothing or everything.
    pub(crate) fn read_some(&self) -> Result<v1::Selection, CliError> {
        let selection = self.read()?;
        if is_empty(&selection) {
            return Err(CliError::Usage(
                "nothing is selected: name at least one of --compromised-issuer, --host, \
                 --host-label, --name, --serial, --serial-file, --key-type, --expires-before"
                    .into(),
            ));
        }
        Ok(selection)
    }
}

/// Selects nothing?
pub(crate) fn is_empty(selection: &v1::Selection) -> bool {
    *selection == v1::Selection { all: selection.all, ..v1::Selection::default() }
}

/// "key=value".
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// Labels as a map; one key twice with different values cannot both match.
pub(crate) fn labels(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>, CliError> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value.clone()).is_some_and(|before| before != *value) {
            return Err(CliError::Usage(format!("label {key:?} is given two values")));
        }
    }
    Ok(map)
}

/// A serial number as certificates are listed by other tools: hex, colons and case aside.
fn serial(text: &str) -> Result<String, CliError> {
    let wrong = || {
        CliError::Usage(format!(
            "{text:?} is not a serial number: up to 20 bytes of hex, optionally ISSUER:SERIAL"
        ))
    };
    // "01:A2:..." as OpenSSL prints serials, or "ISSUER:SERIAL".
    let bytes = text.split(':').all(|byte| byte.len() == 2 && is_hex(byte));
    let (issuer, number) = match text.rsplit_once(':') {
        Some((issuer, number)) if !bytes => (Some(issuer), number),
        Some(_) | None => (None, text),
    };
    let mut digits: String = number.chars().filter(|c| *c != ':').collect();
    digits.make_ascii_lowercase();
    let digits = digits.strip_prefix("0x").unwrap_or(&digits);
    if digits.is_empty() || digits.len() > 42 || !is_hex(digits) {
        return Err(wrong());
    }
    match issuer {
        Some("") => Err(wrong()),
        Some(issuer) => Ok(format!("{issuer}:{digits}")),
        None => Ok(digits.to_owned()),
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn serial_file(path: &Path) -> Result<Vec<String>, CliError> {
    let shown = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    let failed =
        |error: std::io::Error| CliError::failed(format!("cannot read the serial list {shown}: {error}"), "");
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_SERIAL_FILE + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_SERIAL_FILE + 1).read_to_string(&mut text))
    };
    if read.map_err(failed)? as u64 > MAX_SERIAL_FILE {
        return Err(CliError::Usage(format!("the serial list {shown} is too large")));
    }
    serial_lines(&text, &shown)
}

fn serial_lines(text: &str, shown: &str) -> Result<Vec<String>, CliError> {
    let mut serials = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            serials.push(
                serial(line)
                    .map_err(|error| CliError::Usage(format!("{shown}, line {}: {error}", number + 1)))?,
            );
        }
    }
    if serials.is_empty() {
        return Err(CliError::Usage(format!("the serial list {shown} has no serial in it")));
    }
    Ok(serials)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn serials_as_other_tools_print_them() {
        assert_eq!(serial("0x01Ab").unwrap(), "01ab");
        assert_eq!(serial("01:AB:cd").unwrap(), "01abcd");
        assert_eq!(serial("builtin/a:01AB").unwrap(), "builtin/a:01ab");
        assert_eq!(serial("a:01AB").unwrap(), "a:01ab");
        for wrong in ["", "xyz", "a b", ":01", "builtin/a:", &"f".repeat(43)] {
            assert!(serial(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_serial_file_names_its_bad_line() {
        assert_eq!(serial_lines("# list\n01\n\n02 # second\n", "f").unwrap(), ["01", "02"]);
        let error = serial_lines("01\nnope\n", "revoked.txt").unwrap_err().to_string();
        assert!(error.contains("revoked.txt, line 2"), "{error}");
        assert!(serial_lines("# nothing\n", "f").is_err(), "an empty list must not select everything");
    }

    #[test]
    fn an_empty_selection_is_refused() {
        let error = SelectionArgs::default().read_some().unwrap_err();
        assert_eq!(error.exit(), super::super::exit::Exit::Usage);
        let some = SelectionArgs { hosts: vec!["web-1".into()], ..Default::default() };
        assert_eq!(some.read_some().unwrap().hosts, ["web-1"]);
    }

    #[test]
    fn labels_must_not_contradict() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert!(labels(&[pair("a", "1"), pair("a", "2")]).is_err());
        assert_eq!(labels(&[pair("a", "1"), pair("a", "1")]).unwrap().len(), 1);
        assert!(label("novalue").is_err());
        assert_eq!(label("k=a=b").unwrap(), ("k".into(), "a=b".into()));
    }

    proptest! {
        #[test]
        fn never_panics(text in "(\\PC|:){0,60}") {
            let _ = serial(&text);
            let _ = serial_lines(&text, "f");
        }
    }
}
