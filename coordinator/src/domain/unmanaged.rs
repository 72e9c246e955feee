//! Certificates that were discovered: who is told of them, and what to do about them.
//!
//! Nobody looks after a discovered installation. It is never renewed and never a
//! target; plans and rotations name it, so that nobody takes a fleet for clean over it.

use reseal_proto::v1::{Installation, Origin, UnmanagedCertificate};

/// A discovered installation as plans and rotations name it.
pub fn named(host: &str, installation: &Installation) -> UnmanagedCertificate {
    let facts = installation.certificate.clone().unwrap_or_default();
    let mut containers: Vec<String> =
        installation.consumers.iter().map(|consumer| consumer.container.clone()).collect();
    containers.dedup();
    UnmanagedCertificate {
        host: host.to_owned(),
        installation: installation.id.clone(),
        label: installation.label.clone(),
        origin: installation.origin,
        names: if facts.names.is_empty() { installation.names.clone() } else { facts.names },
        containers,
        endpoints: endpoints(installation),
        fingerprint: facts.fingerprint,
        not_after: facts.not_after,
        next: next(host, installation),
    }
}

/// "10.0.0.1:443 (www.example.test)" of each endpoint, for people.
pub fn endpoints(installation: &Installation) -> Vec<String> {
    let shown = |address: &str, sni: &str| match sni {
        "" => address.to_owned(),
        sni => format!("{address} ({sni})"),
    };
    installation.endpoints.iter().map(|endpoint| shown(&endpoint.address, &endpoint.sni)).collect()
}

/// What to do about it, one sentence.
pub fn next(host: &str, installation: &Installation) -> String {
    let obstacle = installation.inference.as_ref().and_then(|inference| inference.obstacles.first());
    match (installation.origin(), obstacle) {
        (Origin::Image, _) => {
            "rebuild the image without it, and mount a certificate that Reseal manages".to_owned()
        }
        (Origin::Endpoint, _) => {
            "find what serves it and where it keeps its file: replace it there, or mount it and label it"
                .to_owned()
        }
        (Origin::File, Some(obstacle)) => {
            format!("replace it by hand, or label its container: it cannot be adopted ({obstacle})")
        }
        (Origin::File, None) => {
            format!("`reseal adopt {host} {}`, then rotate again; or replace it by hand", installation.id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reseal_proto::v1::{Endpoint, Inference};

    #[test]
    fn each_says_what_to_do_about_it() {
        let of = |origin: Origin, obstacles: &[&str]| {
            let installation = Installation {
                id: "/srv/a.crt".into(),
                origin: origin.into(),
                inference: Some(Inference {
                    obstacles: obstacles.iter().map(|text| (*text).to_owned()).collect(),
                    ..Inference::default()
                }),
                ..Installation::default()
            };
            next("web-1", &installation)
        };
        assert!(of(Origin::File, &[]).contains("`reseal adopt web-1 /srv/a.crt`"));
        assert!(of(Origin::File, &["its key was not found"]).contains("(its key was not found)"));
        assert!(of(Origin::Image, &[]).contains("rebuild the image"));
        assert!(of(Origin::Endpoint, &["no file"]).contains("what serves it"));
    }

    #[test]
    fn endpoints_are_shown_with_the_name_they_are_asked_for() {
        let endpoint =
            |sni: &str| Endpoint { address: "10.0.0.1:443".into(), sni: sni.into(), ..Endpoint::default() };
        let installation =
            Installation { endpoints: vec![endpoint(""), endpoint("a.test")], ..Installation::default() };
        assert_eq!(named("h", &installation).endpoints, ["10.0.0.1:443", "10.0.0.1:443 (a.test)"]);
    }
}
