//! Adopting what a host discovered, and releasing it.
//!
//! The host decides: it infers what to do from its own picture, and only where
//! its own configuration allows it. Here it is found, the policy is asked, and
//! that somebody asked for it is on record before the host hears of it.

use std::time::Duration;

use reseal_proto::v1::{
    Adopt, AdoptOutcome, AdoptReply, AdoptRequest, Adopted, CheckPolicyReply, CheckPolicyRequest,
    Installation, Management,
};
use tonic::Status;

use super::OperatorService;
use crate::domain::listing::fingerprint_digits;
use crate::domain::renewal;
use crate::grpc::auth::Caller;
use crate::grpc::convert::status;
use crate::grpc::sessions::Unasked;
use crate::issuance::keyring::random;
use crate::store::{AuditDraft, Commit};

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether its report has come, and how soon again: two seconds.
const REPORT_LOOKS: usize = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// Lines of a host's answer that are told, and characters of each.
const MOST_LINES: usize = 20;
const MOST_CHARACTERS: usize = 500;

impl OperatorService {
    pub(super) async fn adopt(&self, caller: &Caller, request: AdoptRequest) -> Result<AdoptReply, Status> {
        let (_, host) = self.host(&request.host).await?;
        let (installations, _) = self.inventory(&request.host).await?;
        let installation = found(&request, installations)?;
        let policy = if request.release {
            None
        } else {
            Some(self.would_be_issued(&request.host, &installation).await?)
        };
        let mut reply = AdoptReply {
            connected: host.connected,
            renewal_at: renewal::due_at(
                &request.host,
                &installation.id,
                installation.certificate.as_ref().map(renewal::life),
            ),
            installation: Some(installation),
            policy,
            outcome: AdoptOutcome::Unspecified.into(),
        };
        if request.dry_run {
            return Ok(reply);
        }
        let id = reply.installation.as_ref().map(|one| one.id.clone()).unwrap_or_default();
        let act = Act { service: self, caller, request: &request, id: &id };
        if let Err(refusal) = possible(&request, &reply) {
            act.record("refused", refusal.message()).await?;
            return Err(refusal);
        }
        // On record before anything happens: what follows may be cut off at any point.
        act.record("asked", "").await?;
        match act.ask().await {
            Ok(outcome) => {
                act.record("done", "").await?;
                self.reported(&request, &id).await?;
                reply.outcome = outcome.into();
                Ok(reply)
            }
            Err(refusal) => {
                let outcome = match refusal.code() {
                    tonic::Code::DeadlineExceeded | tonic::Code::Unavailable => "unanswered",
                    _ => "refused",
                };
                act.record(outcome, refusal.message()).await?;
                Err(refusal)
            }
        }
    }

    /// Waits until the host has reported what it did, so that whoever asked can go on from
    /// there at once. A host that is slow at that is not waited for much longer.
    async fn reported(&self, request: &AdoptRequest, id: &str) -> Result<(), Status> {
        for _ in 0..REPORT_LOOKS {
            let (installations, _) = self.inventory(&request.host).await?;
            let one = installations.iter().find(|one| one.id == id);
            let adopted = one.is_some_and(|one| one.management() == Management::Adopted);
            if adopted != request.release {
                return Ok(());
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    }

    async fn would_be_issued(
        &self,
        host: &str,
        installation: &Installation,
    ) -> Result<CheckPolicyReply, Status> {
        let request = CheckPolicyRequest {
            host: host.to_owned(),
            names: installation.names.clone(),
            key_type: installation.key_type.clone(),
            usage: installation.usage,
        };
        match self.check_policy(request).await {
            // What cannot be asked for is not issued, either.
            Err(error) if error.code() == tonic::Code::InvalidArgument => {
                let explanation = vec![error.message().to_owned()];
                Ok(CheckPolicyReply { explanation, ..CheckPolicyReply::default() })
            }
            checked => checked,
        }
    }
}

/// One call, as the audit log has it.
struct Act<'a> {
    service: &'a OperatorService,
    caller: &'a Caller,
    request: &'a AdoptRequest,
    id: &'a str,
}

impl Act<'_> {
    async fn record(&self, outcome: &str, detail: &str) -> Result<(), Status> {
        let action = if self.request.release { "installation.release" } else { "installation.adopt" };
        let object = format!("host/{} {}", self.request.host, self.id);
        let draft = AuditDraft {
            outcome: outcome.to_owned(),
            ..self.service.draft(self.caller, action, &object, detail)
        };
        self.service.store.commit(Commit::new().audit(draft)).await.map_err(|error| status(&error))?;
        Ok(())
    }

    /// Asks the host, and says what became of it.
    async fn ask(&self) -> Result<AdoptOutcome, Status> {
        let host = &self.request.host;
        let adopt = Adopt {
            request: hex::encode(random::<16>()),
            installation: self.id.to_owned(),
            release: self.request.release,
        };
        let answer = self.service.sessions.ask(host, adopt).map_err(|error| match error {
            Unasked::Away => Status::failed_precondition(format!(
                "host {host} has no session with this coordinator: nothing was done; try again when it is back"
            )),
            Unasked::Busy => Status::resource_exhausted(format!("host {host}: {error}; nothing was done")),
        })?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => judged(host, self.id, &answer),
            Ok(Err(_)) => Err(Status::unavailable(format!(
                "the session of host {host} ended before it answered: `reseal host show {host}` tells what became of it, and asking again is harmless"
            ))),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "host {host} did not answer within 30 seconds (an agent that is older than this coordinator never does): `reseal host show {host}` tells what became of it, and asking again is harmless"
            ))),
        }
    }
}

/// The installation that is meant.
fn found(request: &AdoptRequest, installations: Vec<Installation>) -> Result<Installation, Status> {
    let host = &request.host;
    let wanted = request.installation.trim();
    let shown: String = wanted.chars().take(200).collect();
    let unknown = || {
        Status::not_found(format!(
            "host {host} reports nothing of that id or fingerprint ({shown:?}): `reseal host show {host}` lists what it has"
        ))
    };
    if let Some(exact) = installations.iter().find(|one| one.id == wanted) {
        return Ok(exact.clone());
    }
    let digits = fingerprint_digits(wanted).ok_or_else(unknown)?;
    let meant = if request.release { Management::Adopted } else { Management::Discovered };
    let has = |one: &&Installation| {
        let facts = one.certificate.as_ref();
        facts.is_some_and(|facts| hex::encode(&facts.fingerprint).starts_with(&digits))
    };
    let mut matching: Vec<&Installation> = installations.iter().filter(has).collect();
    // The same certificate may be declared elsewhere on this host.
    if matching.iter().any(|one| one.management() == meant) {
        matching.retain(|one| one.management() == meant);
    }
    match matching.as_slice() {
        [] => Err(unknown()),
        [one] => Ok((*one).clone()),
        several => {
            let ids: Vec<&str> = several.iter().take(MOST_LINES).map(|one| one.id.as_str()).collect();
            Err(Status::failed_precondition(format!(
                "host {host} has {} installations with that fingerprint, name one by its id: {}",
                several.len(),
                ids.join(", ")
            )))
        }
    }
}

/// Is it worth asking the host?
fn possible(request: &AdoptRequest, reply: &AdoptReply) -> Result<(), Status> {
    let host = &request.host;
    let installation = reply.installation.clone().unwrap_or_default();
    let id = &installation.id;
    match (installation.management(), request.release) {
        // The host may have been asked before, and its answer been lost.
        (Management::Adopted | Management::Discovered, false) | (Management::Adopted, true) => {}
        (Management::Labels | Management::Configuration, false) => {
            return Err(Status::failed_precondition(format!("{id} of host {host} is managed already")));
        }
        (Management::Labels | Management::Configuration, true) => {
            return Err(Status::failed_precondition(format!(
                "{id} of host {host} was not adopted but is declared by labels or by the agent's configuration: remove it there"
            )));
        }
        (Management::Discovered, true) => {
            return Err(Status::failed_precondition(format!("{id} of host {host} is not managed")));
        }
    }
    if let Some(policy) = reply.policy.as_ref().filter(|policy| !policy.admitted) {
        return Err(Status::permission_denied(format!(
            "no policy admits {} for host {host}, so it could not be renewed: {}",
            installation.names.join(", "),
            policy.explanation.join("; ")
        )));
    }
    let inference = installation.inference.unwrap_or_default();
    if !request.release && !inference.obstacles.is_empty() {
        return Err(Status::failed_precondition(format!(
            "{id} of host {host} cannot be adopted: {}",
            inference.obstacles.join("; ")
        )));
    }
    if !reply.connected {
        return Err(Status::failed_precondition(format!(
            "host {host} is away: nothing was done; try again when `reseal host list` shows it connected"
        )));
    }
    Ok(())
}

/// What the host's answer means for who asked.
fn judged(host: &str, id: &str, answer: &Adopted) -> Result<AdoptOutcome, Status> {
    let reasons: Vec<String> = answer
        .reasons
        .iter()
        .take(MOST_LINES)
        .map(|line| reseal_proto::facts::printable(line).chars().take(MOST_CHARACTERS).collect())
        .collect();
    let reasons = reasons.join("; ");
    let outcome = answer.outcome();
    match outcome {
        AdoptOutcome::Adopted | AdoptOutcome::Released => Ok(outcome),
        AdoptOutcome::NotAllowed => Err(Status::permission_denied(format!(
            "host {host} does not allow it: put `adopt = true` into its /etc/reseal/agent.toml; it counts at the next look, or at once with `systemctl reload reseal-agent`"
        ))),
        AdoptOutcome::Unknown => {
            Err(Status::not_found(format!("host {host} has nothing to do that with at {id}: {reasons}")))
        }
        AdoptOutcome::Declared => Err(Status::failed_precondition(format!(
            "{id} of host {host} is declared by labels or by the agent's configuration: {reasons}"
        ))),
        AdoptOutcome::Obstacles => {
            Err(Status::failed_precondition(format!("{id} of host {host} cannot be adopted: {reasons}")))
        }
        AdoptOutcome::Failed => Err(Status::failed_precondition(format!("host {host}: {reasons}"))),
        AdoptOutcome::Unspecified => Err(Status::failed_precondition(format!(
            "host {host} gave an answer that this coordinator does not know: upgrade it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reseal_proto::v1::{CertificateFacts, Inference};
    use tonic::Code;

    fn one(id: &str, print: u8, management: Management) -> Installation {
        Installation {
            id: id.into(),
            management: management.into(),
            certificate: Some(CertificateFacts { fingerprint: vec![print; 32], ..Default::default() }),
            ..Installation::default()
        }
    }

    fn request(installation: &str) -> AdoptRequest {
        AdoptRequest { host: "h1".into(), installation: installation.into(), ..AdoptRequest::default() }
    }

    #[test]
    fn by_id_or_by_fingerprint() {
        let all = || {
            vec![
                one("/a", 0xaa, Management::Discovered),
                one("/b", 0xbb, Management::Discovered),
                one("/c", 0xbb, Management::Labels),
                one("/d", 0xcc, Management::Discovered),
                one("/e", 0xcc, Management::Discovered),
            ]
        };
        let id = |text: &str| found(&request(text), all()).map(|one| one.id);
        assert_eq!(id("/c").unwrap(), "/c");
        assert_eq!(id("AA:AA:AA:AA").unwrap(), "/a");
        assert_eq!(id("bbbbbbbb").unwrap(), "/b", "what is declared already is not meant");
        let several = id("cccccccc").unwrap_err();
        assert!(several.message().contains("/d, /e"), "{several}");
        for nothing in ["/x", "dddddddd", "aaa", ""] {
            assert_eq!(id(nothing).unwrap_err().code(), Code::NotFound, "{nothing}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_asked_of_the_host() {
        let reply = |management, admitted, connected| AdoptReply {
            installation: Some(one("/a", 1, management)),
            policy: Some(CheckPolicyReply { admitted, ..Default::default() }),
            connected,
            ..AdoptReply::default()
        };
        let adopt = request("/a");
        let code = |reply: &AdoptReply| possible(&adopt, reply).map_err(|error| error.code());
        assert_eq!(code(&reply(Management::Discovered, true, true)), Ok(()));
        assert_eq!(code(&reply(Management::Adopted, true, true)), Ok(()), "asked again");
        assert_eq!(code(&reply(Management::Labels, true, true)), Err(Code::FailedPrecondition));
        assert_eq!(code(&reply(Management::Discovered, false, true)), Err(Code::PermissionDenied));
        assert_eq!(code(&reply(Management::Discovered, true, false)), Err(Code::FailedPrecondition));
        let mut blocked = reply(Management::Discovered, true, true);
        let inference = Inference { obstacles: vec!["no key".into()], ..Inference::default() };
        blocked.installation.as_mut().unwrap().inference = Some(inference);
        assert!(possible(&adopt, &blocked).unwrap_err().message().contains("no key"));
        let release = AdoptRequest { release: true, ..adopt.clone() };
        let released = |management| {
            let reply = AdoptReply { policy: None, ..reply(management, true, true) };
            possible(&release, &reply).map_err(|error| error.code())
        };
        assert_eq!(released(Management::Adopted), Ok(()));
        assert_eq!(released(Management::Labels), Err(Code::FailedPrecondition));
        assert_eq!(released(Management::Discovered), Err(Code::FailedPrecondition));
    }

    #[test]
    fn every_answer_has_a_clear_end() {
        let code = |outcome: AdoptOutcome| {
            let answer =
                Adopted { outcome: outcome.into(), reasons: vec!["x\x1b".into()], ..Adopted::default() };
            judged("h1", "/a", &answer).map_err(|error| {
                assert!(!error.message().contains('\x1b'));
                error.code()
            })
        };
        assert_eq!(code(AdoptOutcome::Adopted), Ok(AdoptOutcome::Adopted));
        assert_eq!(code(AdoptOutcome::Released), Ok(AdoptOutcome::Released));
        assert_eq!(code(AdoptOutcome::NotAllowed), Err(Code::PermissionDenied));
        assert_eq!(code(AdoptOutcome::Unknown), Err(Code::NotFound));
        for outcome in [AdoptOutcome::Declared, AdoptOutcome::Obstacles, AdoptOutcome::Failed] {
            assert_eq!(code(outcome), Err(Code::FailedPrecondition));
        }
        assert_eq!(code(AdoptOutcome::Unspecified), Err(Code::FailedPrecondition));
    }
}
