//! Findings about how consumers reload. Pure.
//!
//! No method at all, nothing but a restart, or several consumers of one
//! certificate of which some are not told of a new one: said before a renewal
//! has to find out.

use std::collections::BTreeMap;

use reseal_proto::v1::Finding;

use super::labels::Certificate;
use super::{Consumer, Container, Installation, finding, programs};

/// What is to be said of one consumer that runs.
pub(super) fn of_consumer(
    container: &Container,
    declared: &Certificate,
    consumer: &Consumer,
    label: &str,
) -> Option<Finding> {
    if !container.running {
        return None;
    }
    if consumer.reload.only_restarts() {
        let message = format!(
            "container {} takes a new certificate only by a restart, as its label says: each renewal interrupts it",
            container.name
        );
        return Some(finding("restart-only", label, &message, "info"));
    }
    if declared.reload.is_some() || !consumer.reload.is_empty() {
        return None;
    }
    let name = &declared.name;
    let message = match (programs::recognise(container), programs::known(container, declared)) {
        (_, Some(known)) if known.watches => return None,
        (_, Some(known)) => {
            let program = known.program;
            let advice = if program.advice.is_empty() {
                "it does not take such a file while it runs: allow reload=restart"
            } else {
                program.advice
            };
            format!(
                "{} has no gentle way to take a new certificate here: {advice} (reseal.cert.{name}.reload)",
                program.name
            )
        }
        (Err(hidden), None) => format!("no reload method is declared for reseal.cert.{name}: {hidden}"),
        (Ok(_), None) => format!(
            "no reload method is declared and PID 1 ({}) is no known program: say reseal.cert.{name}.reload=signal:HUP, exec:COMMAND, restart or none",
            programs::described(container)
        ),
    };
    Some(finding("reload-missing", label, &message, "warning"))
}

/// How a consumer comes to a new certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It is told, and goes on serving.
    Told,
    /// It is restarted.
    Restarted,
    /// It sees the change by itself, or not at all.
    ByItself,
}

impl Kind {
    fn of(consumer: &Consumer) -> Self {
        if consumer.reload.is_empty() {
            Self::ByItself
        } else if consumer.reload.only_restarts() {
            Self::Restarted
        } else {
            Self::Told
        }
    }
}

/// What is to be said of consumers of one certificate that are not alike.
pub(super) fn of_installations(installations: &BTreeMap<String, Installation>) -> Vec<Finding> {
    let unequal = |installation: &Installation| {
        let running: Vec<&Consumer> = installation.consumers.iter().filter(|one| one.running).collect();
        let first = Kind::of(running.first()?);
        if running.iter().all(|consumer| Kind::of(consumer) == first) {
            return None;
        }
        let each: Vec<String> =
            running.iter().take(8).map(|one| format!("{}: {}", one.container, one.reload)).collect();
        let message = format!(
            "its consumers take a new certificate in different ways ({}): for a while, or for good, they serve different ones",
            each.join("; ")
        );
        Some(finding("unequal-reload", &installation.id, &message, "warning"))
    };
    installations.values().filter_map(unequal).collect()
}

#[cfg(test)]
mod tests {
    use super::super::assemble::assemble;
    use super::super::assemble::tests::{labelled, web};

    fn found(containers: Vec<super::Container>) -> Vec<(String, String)> {
        let host = assemble(containers);
        host.findings.into_iter().map(|finding| (finding.id, finding.message)).collect()
    }

    fn with_reload(name: &str, reload: &str) -> super::Container {
        labelled(name, "/srv/tls", &[("reseal.cert.site.reload", reload)])
    }

    #[test]
    fn only_a_restart_is_said() {
        let said = found(vec![with_reload("web", "restart")]);
        assert_eq!(said[0].0, "restart-only");
        assert!(found(vec![with_reload("web", "signal:HUP,restart")]).is_empty());
        let mut stopped = with_reload("web", "restart");
        stopped.running = false;
        assert!(found(vec![stopped]).is_empty());
    }

    #[test]
    fn unequal_consumers_of_one_certificate_are_said() {
        let said = found(vec![with_reload("a", "signal:HUP"), with_reload("b", "none")]);
        assert_eq!(said[0].0, "unequal-reload");
        assert!(said[0].1.contains("a: signal HUP; b: none"), "{}", said[0].1);
        // Told is told, by whatever means.
        assert!(found(vec![with_reload("a", "signal:HUP"), with_reload("b", "exec:x")]).is_empty());
    }

    #[test]
    fn what_cannot_be_reloaded_is_said_with_advice() {
        for (process, part) in [
            ("slapd -d 0", "HUP ends it"),
            ("traefik", "exec:touch"),
            ("haproxy -db", "-W"),
            ("sh -c my-server", "passes no signal on"),
            ("my-server", "no known program"),
        ] {
            let mut container = web("web", "/srv/tls");
            container.process = process.split(' ').map(str::to_owned).collect();
            let said = found(vec![container]);
            assert_eq!(said[0].0, "reload-missing", "{process}");
            assert!(said[0].1.contains(part), "{process}: {}", said[0].1);
        }
        let mut envoy = web("web", "/srv/tls");
        envoy.process = vec!["envoy".into()];
        assert!(found(vec![envoy]).is_empty());
    }
}
