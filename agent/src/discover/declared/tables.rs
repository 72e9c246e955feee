//! `[[certificate]]` and `[[trust]]` of the agent's configuration → declarations. Pure.
//!
//! The keys are those of labels, without the prefix, and a few more that say
//! whose certificate it is. An unknown key is a finding that names the nearest;
//! a mistake leaves that one declaration out and no other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use reseal_proto::v1::Finding;
use toml::{Table, Value};

use super::{Declarations, HostProcess};
use crate::discover::labels::{self, Certificate, Trust, shown};
use crate::discover::mounts::Mount;
use crate::discover::{Container, Reload, finding, values};

/// Tables of one configuration that are read.
const MOST: usize = 256;
/// Whose it is, for a certificate.
const CERTIFICATE_OWN: [&str; 6] = ["name", "container", "unit", "pid-file", "address", "directory"];
/// Likewise for a bundle.
const TRUST_OWN: [&str; 5] = ["name", "container", "unit", "pid-file", "directory"];

/// Reads the tables of a whole configuration. `commands` says whether this agent
/// can run commands on the host: not from within a container.
pub fn read(document: &Table, commands: bool) -> Declarations {
    let mut reading = Reading { commands, ..Reading::default() };
    match document.get("adopt") {
        None => {}
        Some(Value::Boolean(adopt)) => reading.result.adopt = *adopt,
        Some(_) => reading.bad("adopt", "must be true or false: nothing can be adopted"),
    }
    for (at, table) in reading.list(document, "certificate") {
        reading.certificate(at, table);
    }
    for (at, table) in reading.list(document, "trust") {
        reading.trust(at, table);
    }
    reading.result.host = reading.host.into_values().collect();
    reading.result
}

#[derive(Default)]
struct Reading {
    commands: bool,
    result: Declarations,
    host: BTreeMap<(HostProcess, IpAddr), Container>,
}

/// One table as text, and what was wrong with it so far.
struct Entry {
    /// For findings.
    object: String,
    name: String,
    texts: BTreeMap<String, String>,
    mistakes: Vec<String>,
}

/// Whose certificate it is.
enum Whose {
    Container(String),
    Host { process: HostProcess, address: IpAddr, directory: Option<String> },
}

impl Reading {
    fn bad(&mut self, object: &str, message: &str) {
        self.result.findings.push(finding("bad-configuration", object, message, "warning"));
    }

    fn list<'a>(&mut self, document: &'a Table, kind: &str) -> Vec<(usize, &'a Table)> {
        let list = match document.get(kind) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(_) => {
                self.bad(kind, &format!("write [[{kind}]] in front of each one: nothing of it is managed"));
                return Vec::new();
            }
        };
        if list.len() > MOST {
            self.bad(kind, &format!("{} are declared, the first {MOST} are read", list.len()));
        }
        let mut tables = Vec::new();
        for (at, value) in list.iter().take(MOST).enumerate() {
            match value {
                Value::Table(table) => tables.push((at + 1, table)),
                _ => self.bad(&format!("{kind} {}", at + 1), "is no table and is not managed"),
            }
        }
        tables
    }

    fn certificate(&mut self, at: usize, table: &Table) {
        let mut entry = self.entry("certificate", at, table, &labels::CERTIFICATE_KEYS, &CERTIFICATE_OWN);
        let whose = entry.whose();
        let declared = entry.certificate();
        let (Some(whose), Some(certificate)) = (whose, declared) else {
            return self.not_managed(&entry);
        };
        match whose {
            Whose::Container(container) => {
                let declared = self.result.containers.entry(container).or_default();
                declared.certificates.push(certificate);
            }
            Whose::Host { process, address, directory } => {
                entry.mistakes.extend(self.impossible(&process, &certificate));
                let mut files = certificate.files();
                files.extend(certificate.password_file.clone());
                let mount = mount_of(&files, directory);
                match mount {
                    Ok(mount) if entry.mistakes.is_empty() => {
                        let container = self.process(process, address, mount);
                        container.declared.certificates.push(certificate);
                    }
                    Ok(_) => self.not_managed(&entry),
                    Err(mistake) => {
                        entry.mistakes.push(mistake);
                        self.not_managed(&entry);
                    }
                }
            }
        }
    }

    fn trust(&mut self, at: usize, table: &Table) {
        let mut entry = self.entry("trust", at, table, &labels::TRUST_KEYS, &TRUST_OWN);
        let whose = entry.whose();
        let (Some(whose), Some(trust)) = (whose, entry.trust()) else {
            return self.not_managed(&entry);
        };
        match whose {
            Whose::Container(container) => {
                self.result.containers.entry(container).or_default().trusts.push(trust);
            }
            Whose::Host { process, address, directory } => {
                match mount_of(std::slice::from_ref(&trust.path), directory) {
                    Ok(mount) => self.process(process, address, mount).declared.trusts.push(trust),
                    Err(mistake) => {
                        entry.mistakes.push(mistake);
                        self.not_managed(&entry);
                    }
                }
            }
        }
    }

    /// What a process of the host cannot be asked for.
    fn impossible(&self, process: &HostProcess, certificate: &Certificate) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut command = certificate.check.is_some();
        for step in certificate.reload.iter().flat_map(|ladder| &ladder.0) {
            match step {
                Reload::Signal(_) if *process == HostProcess::Unnamed => {
                    mistakes.push("reload: say by unit or pid-file who gets the signal".to_owned());
                }
                Reload::Signal(_) => {}
                Reload::Restart => mistakes.push(
                    "reload: only a container can be restarted; say exec:COMMAND, such as exec:systemctl restart UNIT"
                        .to_owned(),
                ),
                Reload::Exec(_) => command = true,
            }
        }
        if command && !self.commands {
            mistakes.push(
                "reload, check: an agent that sees the host under host_root cannot run commands there; say signal:NAME with unit or pid-file"
                    .to_owned(),
            );
        }
        mistakes
    }

    /// The process as a container that sees `mount` where the host has it.
    fn process(&mut self, process: HostProcess, address: IpAddr, mount: String) -> &mut Container {
        let name = match address {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => process.to_string(),
            address => format!("{process}@{address}"),
        };
        let container = self.host.entry((process.clone(), address)).or_insert_with(|| Container {
            id: name.clone(),
            name,
            addresses: vec![address],
            host: Some(process),
            ..Container::default()
        });
        // The outermost of several counts: what is beneath it is seen all the same.
        let beneath = |one: &str, other: &str| {
            one.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if !container.mounts.iter().any(|known| beneath(&mount, &known.source)) {
            container.mounts.retain(|known| !beneath(&known.source, &mount));
            let kind = "bind".to_owned();
            container.mounts.push(Mount { source: mount.clone(), destination: mount, kind });
        }
        container
    }

    fn entry(&mut self, kind: &str, at: usize, table: &Table, keys: &[&str], own: &[&str]) -> Entry {
        let text = |key: &str| table.get(key).and_then(Value::as_str);
        let whose = text("container").or(text("unit")).or(text("pid-file")).unwrap_or("host");
        let name = text("name").map_or_else(|| name_of(text("path").unwrap_or(kind)), str::to_owned);
        let object = format!("[[{kind}]] {at} ({whose}/{name})");
        let mut entry = Entry { object, name, texts: BTreeMap::new(), mistakes: Vec::new() };
        for (key, value) in table {
            if !keys.contains(&key.as_str()) && !own.contains(&key.as_str()) {
                let nearest = keys.iter().chain(own).min_by_key(|known| values::distance(known, key));
                let message = format!(
                    "the key {} does not exist; the nearest that does is {}",
                    shown(key),
                    nearest.unwrap_or(&"name")
                );
                self.bad(&entry.object, &message);
                continue;
            }
            match as_label(key, value) {
                Ok(text) => {
                    entry.texts.insert(key.clone(), text);
                }
                Err(why) => entry.mistakes.push(format!("{key}: {why}")),
            }
        }
        entry.texts.remove("name");
        if !labels::is_name(&entry.name) {
            let mistake = format!("name={}: must be 1 to 32 of a-z, 0-9 and '-'", shown(&entry.name));
            entry.mistakes.push(mistake);
        }
        entry
    }

    fn not_managed(&mut self, entry: &Entry) {
        for mistake in &entry.mistakes {
            self.bad(&entry.object, &format!("it is not managed: {mistake}"));
        }
    }
}

impl Entry {
    /// Takes the keys that say whose it is.
    fn whose(&mut self) -> Option<Whose> {
        let before = self.mistakes.len();
        let mut take = |key: &str, read: fn(&str) -> Result<String, String>| {
            let text = self.texts.remove(key)?;
            match read(&text) {
                Ok(value) => Some(value),
                Err(why) => {
                    self.mistakes.push(format!("{key}={}: {why}", shown(&text)));
                    None
                }
            }
        };
        let container = take("container", container_name);
        let unit = take("unit", unit_name);
        let pid_file = take("pid-file", values::file_path);
        let address = take("address", |text| {
            text.parse::<IpAddr>()
                .map(|address| address.to_string())
                .map_err(|_| "must be an IP address".to_owned())
        });
        let directory = take("directory", values::file_path);
        if container.is_some() {
            for (key, is_there) in [
                ("unit", unit.is_some()),
                ("pid-file", pid_file.is_some()),
                ("address", address.is_some()),
                ("directory", directory.is_some()),
            ] {
                if is_there {
                    self.mistakes.push(format!("{key}: is for processes of the host, not beside container"));
                }
            }
        }
        if unit.is_some() && pid_file.is_some() {
            self.mistakes.push("unit, pid-file: say one of the two".to_owned());
        }
        if self.mistakes.len() > before {
            return None;
        }
        if let Some(container) = container {
            return Some(Whose::Container(container));
        }
        let process = match (unit, pid_file) {
            (Some(unit), _) => HostProcess::Unit(unit),
            (None, Some(path)) => HostProcess::PidFile(path),
            (None, None) => HostProcess::Unnamed,
        };
        let address = address.and_then(|text| text.parse().ok());
        let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Some(Whose::Host { process, address, directory })
    }

    fn fields(&self) -> BTreeMap<&str, &str> {
        self.texts.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    fn certificate(&mut self) -> Option<Certificate> {
        let read = labels::certificate(&self.name, &self.fields());
        self.judged(read)
    }

    fn trust(&mut self) -> Option<Trust> {
        let read = labels::trust(&self.name, &self.fields());
        self.judged(read)
    }

    fn judged<T>(&mut self, read: Result<T, Vec<String>>) -> Option<T> {
        match read {
            Ok(value) if self.mistakes.is_empty() => Some(value),
            Ok(_) => None,
            Err(mistakes) => {
                self.mistakes.extend(mistakes);
                None
            }
        }
    }
}

/// A value as a label would write it: text, or a list where labels have commas.
fn as_label(key: &str, value: &Value) -> Result<String, String> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        // 0640 is no TOML, and 0o640 is the number 416.
        Value::Integer(_) if key == "mode" => Err("write it as text, such as \"0640\"".to_owned()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
            Err("must be text".to_owned())
        }
    };
    match value {
        Value::Array(list) if matches!(key, "names" | "verify") => {
            list.iter().map(one).collect::<Result<Vec<_>, _>>().map(|texts| texts.join(","))
        }
        value => one(value),
    }
}

/// A name for a declaration that has none: the file's, as far as it goes.
pub fn name_of(path: &str) -> String {
    let file = values::split(path).1;
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_ascii_lowercase();
    let plain = stem.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' });
    let name: String = plain.take(32).collect();
    if name.is_empty() { "certificate".to_owned() } else { name }
}

fn container_name(text: &str) -> Result<String, String> {
    let good = (1..=255).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if good { Ok(text.to_owned()) } else { Err("is no name of a container".to_owned()) }
}

fn unit_name(text: &str) -> Result<String, String> {
    let good = text.len() <= 255
        && text.ends_with(".service")
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ":_.@\\-".contains(c));
    if good {
        Ok(text.to_owned())
    } else {
        Err("must be a systemd service, such as nginx.service".to_owned())
    }
}

/// The directory that holds all the files, beneath which links are followed.
fn mount_of(files: &[String], directory: Option<String>) -> Result<String, String> {
    let within =
        |directory: &str, path: &str| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    if let Some(directory) = directory {
        return match files.iter().find(|file| !within(&directory, file)) {
            None => Ok(directory),
            Some(file) => Err(format!("directory={}: {} is not beneath it", shown(&directory), shown(file))),
        };
    }
    let mut common = files.first().map_or("", |first| values::split(first).0);
    while !common.is_empty() && files.iter().any(|file| !within(common, file)) {
        common = values::split(common).0;
    }
    match common {
        "" => Err("path, key: must be in one directory of the host".to_owned()),
        common => Ok(common.to_owned()),
    }
}

/// What is said when a container of the configuration is not there.
pub fn missing(name: &str) -> Finding {
    let message =
        "the agent's configuration declares certificates for this container, and there is none of that name";
    finding("container-missing", name, message, "warning")
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
