//! What `reseal adopt` declared, and which containers use it now. Pure.
//!
//! An adopted certificate is kept in the words of labels, but with the paths of
//! the host: whoever mounts its files is a consumer, under whatever name it is
//! made anew. How a consumer reloads is never kept; the table of known programs
//! says it each time. Read strictly, like labels: the file is the agent's own,
//! and a mistake in it leaves that one out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::discover::Container;
use crate::discover::labels::{self, Certificate};
use crate::discover::mounts::{self, Mount};

/// Keys that hold paths.
const PATHS: [&str; 5] = ["path", "key", "leaf", "chain", "password-file"];

/// One adopted certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// For people: "CONTAINER/NAME" of the first consumer at that time.
    pub label: String,
    /// Mount sources that hold its files.
    pub mounts: Vec<String>,
    /// As labels would say it, without `reload` and `verify`; paths are the host's.
    pub fields: BTreeMap<String, String>,
    /// Who served it.
    pub users: Vec<User>,
    /// When, seconds since the Unix epoch.
    pub at: i64,
}

/// A container that served it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its name.
    pub container: String,
    /// What it was made from: one of another name is known by it.
    pub image: String,
    /// As the label `verify` has it.
    pub verify: String,
}

impl Adopted {
    /// The installation's id.
    pub fn id(&self) -> &str {
        self.fields.get("path").map_or("", String::as_str)
    }

    /// The name part of its label.
    fn name(&self) -> &str {
        self.label.rsplit('/').next().unwrap_or_default()
    }

    /// What is wanted, with the paths of the host; the mistakes when there are any.
    pub fn certificate(&self) -> Result<Certificate, Vec<String>> {
        self.read(&self.fields)
    }

    /// What is wrong with it, taken together with what its users serve.
    pub fn mistakes(&self) -> Vec<String> {
        let mut all: Vec<String> = self.certificate().err().into_iter().flatten().collect();
        for user in self.users.iter().filter(|user| !user.verify.is_empty()) {
            let mut fields = self.fields.clone();
            fields.insert("verify".to_owned(), user.verify.clone());
            all.extend(self.read(&fields).err().into_iter().flatten());
        }
        all.sort();
        all.dedup();
        all
    }

    /// The host as a container that sees the files where they are.
    pub fn place(&self) -> Container {
        let mount =
            |at: &String| Mount { source: at.clone(), destination: at.clone(), kind: "bind".to_owned() };
        let container = self.label.split('/').next().unwrap_or_default().to_owned();
        Container { name: container, mounts: self.mounts.iter().map(mount).collect(), ..Container::default() }
    }

    /// What a container would declare that uses it; `None`: it does not.
    pub fn used_by(&self, container: &Container) -> Option<Certificate> {
        let mut fields = self.fields.clone();
        for key in PATHS {
            if let Some(path) = fields.get_mut(key) {
                *path = mounts::used_at(&container.mounts, path)?;
            }
        }
        if let Some(verify) = self.verify(container) {
            fields.insert("verify".to_owned(), verify.to_owned());
        }
        self.read(&fields).ok()
    }

    fn verify(&self, container: &Container) -> Option<&str> {
        let known = self.users.iter().find(|user| user.container == container.name);
        let known = known.or_else(|| self.users.iter().find(|user| user.image == container.image))?;
        Some(known.verify.as_str()).filter(|verify| !verify.is_empty())
    }

    fn read(&self, fields: &BTreeMap<String, String>) -> Result<Certificate, Vec<String>> {
        let fields = fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        labels::certificate(self.name(), &fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::assemble::{assemble_with, tests::web};
    use crate::discover::declared::Declarations;
    use crate::discover::labels::Declared;
    use reseal_proto::v1::Management;

    fn adopted() -> Adopted {
        let field = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Adopted {
            label: "web/site".into(),
            mounts: vec!["/srv/tls".into()],
            fields: BTreeMap::from([
                field("names", "a.example.test"),
                field("path", "/srv/tls/site.crt"),
                field("key", "/srv/tls/site.key"),
            ]),
            users: vec![User { container: "web".into(), image: "services".into(), verify: "443".into() }],
            at: 1,
        }
    }

    fn plain(name: &str, source: &str) -> Container {
        Container { declared: Declared::default(), ..web(name, source) }
    }

    fn declared() -> Declarations {
        Declarations { adopted: vec![adopted()], ..Declarations::default() }
    }

    #[test]
    fn whoever_mounts_it_is_a_consumer() {
        let mut sidecar = plain("sidecar", "/srv/tls");
        sidecar.image = "another".into();
        let elsewhere = plain("elsewhere", "/srv/other");
        let host = assemble_with(vec![plain("web", "/srv/tls"), sidecar, elsewhere], &declared());
        let found = &host.installations["/srv/tls/site.crt"];
        assert_eq!((found.label.as_str(), found.management), ("web/site", Management::Adopted));
        assert_eq!(found.place.key, "site.key");
        let consumers: Vec<_> =
            found.consumers.iter().map(|one| (one.container.as_str(), one.endpoints.len())).collect();
        assert_eq!(consumers, [("sidecar", 0), ("web", 2)]);
        assert_eq!(found.consumers[1].reload.to_string(), "signal HUP, exec nginx -s reload");
        assert_eq!(host.findings, []);
    }

    #[test]
    fn made_anew_under_another_name_it_is_known_by_its_image() {
        let host = assemble_with(vec![plain("web-2", "/srv/tls")], &declared());
        assert!(host.installations["/srv/tls/site.crt"].consumers[0].serves);
    }

    #[test]
    fn without_a_container_it_is_still_known() {
        let host = assemble_with(Vec::new(), &declared());
        assert!(host.installations["/srv/tls/site.crt"].consumers.is_empty());
    }

    #[test]
    fn labels_win_and_nobody_is_forgotten() {
        let labelled = web("api", "/srv/tls");
        let host = assemble_with(vec![labelled, plain("web", "/srv/tls")], &declared());
        let found = &host.installations["/srv/tls/site.crt"];
        assert_eq!((found.label.as_str(), found.management), ("api/site", Management::Labels));
        assert_eq!(found.consumers.len(), 2, "who only mounts it goes on being reloaded");
        assert_eq!(host.findings, []);
    }

    #[test]
    fn a_damaged_entry_is_a_finding() {
        let mut broken = declared();
        broken.adopted[0].fields.insert("names".into(), "a b".into());
        let host = assemble_with(vec![plain("web", "/srv/tls")], &broken);
        assert!(host.installations.is_empty());
        assert_eq!(host.findings[0].id, "bad-configuration");
    }
}
