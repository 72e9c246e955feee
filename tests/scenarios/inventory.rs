//! What hosts report and nobody declares, as the coordinator treats it: seen, named, never
//! ordered. And the lists of certificates and findings, as an operator gets them.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::{
    CertificateFacts, Finding, HostRequest, Management, PlanRequest, RotateRequest, RotationState, Selection,
    StatusRequest, TargetState,
};
use reseal_tests::product::rotate;
use reseal_tests::wire::ask::{as_released, audit, from_a, in_state, one_host, runtime, show, until};
use reseal_tests::wire::{Coordinator, Operator, Puppet, Session, an_order, installation, inventory};
use tonic::Code;

const FOUND: &str = "/found/copy.crt";

/// Says what is on the host, and waits until the coordinator has it: so many installations.
async fn tell(
    operator: &mut Operator,
    session: &mut Session,
    puppet: &Puppet,
    discovered: u32,
) -> Result<()> {
    session.send(puppet.inventory()?).await?;
    until("the inventory", 20, async || {
        let status = operator.status(StatusRequest {}).await?.into_inner();
        let there = (status.installations as usize, status.discovered) == (puppet.held.len(), discovered);
        Ok(there.then_some(()))
    })
    .await
}

/// The next order means exactly these.
async fn ordered(session: &mut Session, wanted: &[&str]) -> Result<reseal_proto::v1::Order> {
    let order = session.next_that(an_order).await?;
    ensure!(order.installations == wanted, "ordered are {:?}", order.installations);
    Ok(order)
}

#[test]
fn what_was_discovered_is_named_and_never_ordered() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(as_released()?).await?;
        let (mut operator, mut puppet, mut session) = one_host(&coordinator, 1).await?;
        let copy = puppet.held[0].2.clone().context("it has a certificate")?;
        let expired = CertificateFacts { not_after: 1, issuer_spki_sha256: vec![9; 32], ..copy.clone() };
        // Three that nobody declares (all would be due, were they declared), and one that is
        // declared and missing: the renewal that comes for it means nothing else.
        puppet.held.push((FOUND.into(), "copy.wire.test".into(), Some(copy.clone())));
        puppet.held.push(("/found/old.crt".into(), "old.wire.test".into(), Some(expired)));
        puppet.held.push(("/found/none.crt".into(), "none.wire.test".into(), None));
        puppet.held.push(("/srv/9/site.crt".into(), "s9.h1.wire.test".into(), None));
        puppet.discovered.extend([FOUND, "/found/old.crt", "/found/none.crt"].map(String::from));
        tell(&mut operator, &mut session, &puppet, 3).await?;
        let order = ordered(&mut session, &["/srv/9/site.crt"]).await?;
        puppet.obtain(&mut session, &order).await?;
        puppet.report(&mut session, &order, TargetState::Verified).await?;

        let selection = Some(Selection { compromised_issuer: "a".into(), ..Selection::default() });
        let plan = operator.plan(PlanRequest { selection, ..PlanRequest::default() }).await?.into_inner();
        ensure!((plan.targets, plan.unmanaged, plan.unmanaged_certificates.len()) == (2, 1, 1), "{plan:?}");
        let row = &plan.unmanaged_certificates[0];
        ensure!((row.host.as_str(), row.installation.as_str()) == ("h1", FOUND), "{row:?}");
        ensure!(row.fingerprint == copy.fingerprint && row.containers == ["service"], "{row:?}");
        ensure!(row.next.contains("reseal adopt h1 /found/copy.crt"), "{row:?}");
        let issuer = plan.compromised.context("the issuer")?;
        ensure!((issuer.installations, issuer.unmanaged) == (3, 1), "{issuer:?}");

        // A selection that means nothing else is refused, in words that say why.
        let selection = Some(Selection { names: vec!["s0.h1.wire.test".into()], ..Selection::default() });
        let named = operator.plan(PlanRequest { selection, ..PlanRequest::default() }).await?.into_inner();
        ensure!((named.targets, named.unmanaged) == (1, 2), "{named:?}");
        let only = Selection { expires_before: 2, ..Selection::default() };
        let refusal = operator.rotate(RotateRequest { selection: Some(only), ..from_a("") }).await;
        let refusal = refusal.err().context("a rotation of nothing")?;
        ensure!(refusal.code() == Code::FailedPrecondition, "{refusal}");
        ensure!(refusal.message().contains("nobody looks after the 1"), "{refusal}");

        // The command line: the managed ones are replaced, and that is not all of them.
        let mut command: Command = coordinator
            .reseal(&[&rotate("key found", &["--compromised-issuer", "a"])[..], &["-o", "json"]].concat());
        let rotating = tokio::task::spawn_blocking(move || command.output());
        let order = ordered(&mut session, &["/srv/0/site.crt", "/srv/9/site.crt"]).await?;
        puppet.obtain(&mut session, &order).await?;
        puppet.report(&mut session, &order, TargetState::Verified).await?;
        let output = rotating.await??;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(6), "{:?}: {said}", output.status);
        ensure!(said.contains("1 certificate more that the selection matches: not managed"), "{said}");
        let lines = String::from_utf8(output.stdout)?;
        let last: serde_json::Value = serde_json::from_str(lines.lines().last().context("a summary")?)?;
        ensure!(
            last["type"] == "summary" && last["replaced"] == true && last["contained"] == false,
            "{last}"
        );
        ensure!(last["unmanaged"] == 1 && last["verified_targets"] == 2, "{last}");
        ensure!(last["unmanaged_certificates"][0]["installation"] == FOUND, "{last}");
        let id = last["id"].as_str().context("an id")?;
        let text = String::from_utf8(coordinator.reseal(&["rotation", "show", id]).output()?.stdout)?;
        ensure!(text.contains("every managed certificate is replaced, NOT contained"), "{text}");
        ensure!(text.contains("Not managed by Reseal (1)") && text.contains(FOUND), "{text}");
        let entries = audit(&mut operator).await?;
        let noted = |(action, _, detail): &(String, String, String)| {
            action == "rotation.start" && detail.contains("1 certificates not managed")
        };
        ensure!(entries.iter().any(noted), "{entries:?}");
        let mut evidence = coordinator.reseal(&["rotation", "evidence", id, "--file", "-"]);
        let file: serde_json::Value = serde_json::from_slice(&evidence.output()?.stdout)?;
        ensure!(
            file["body"]["residual"]["unmanaged"][0]["installation"] == FOUND,
            "{}",
            file["body"]["residual"]
        );
        ensure!(file["body"]["summary"]["targets"] == 2, "{}", file["body"]["summary"]);
        Ok(())
    })
}

#[test]
fn a_host_that_flips_what_is_managed_gains_and_loses_nothing() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(as_released()?).await?;
        let (mut operator, mut puppet, mut session) = one_host(&coordinator, 2).await?;
        puppet.discovered.insert("/srv/1/site.crt".into());
        tell(&mut operator, &mut session, &puppet, 1).await?;
        let id = operator.rotate(from_a("100%")).await?.into_inner().id;
        let first = ordered(&mut session, &["/srv/0/site.crt"]).await?;
        ensure!(show(&mut operator, &id).await?.unmanaged == 1, "it is named");

        // Declared again, with the old issuer: the rotation takes it in.
        puppet.discovered.clear();
        tell(&mut operator, &mut session, &puppet, 0).await?;
        let second = ordered(&mut session, &["/srv/1/site.crt"]).await?;
        // Only found again, both: they are targets all the same, and nothing ends without them.
        puppet.discovered.extend(puppet.held.iter().map(|held| held.0.clone()));
        tell(&mut operator, &mut session, &puppet, 2).await?;
        puppet.obtain(&mut session, &first).await?;
        puppet.report(&mut session, &first, TargetState::Verified).await?;
        let shown = show(&mut operator, &id).await?;
        ensure!(shown.state() == RotationState::Running && shown.unmanaged == 1, "{shown:?}");
        // One fails; while it is not declared it is not tried again.
        puppet.report(&mut session, &second, TargetState::Failed).await?;
        in_state(&operator, &id, RotationState::Halted).await?;
        retry(&mut operator, &id).await?;
        let shown = in_state(&operator, &id, RotationState::Halted).await?;
        ensure!(shown.targets.get(&(TargetState::Failed as u32)) == Some(&1), "{shown:?}");
        // Declared, it is.
        puppet.discovered.clear();
        tell(&mut operator, &mut session, &puppet, 0).await?;
        retry(&mut operator, &id).await?;
        let third = ordered(&mut session, &["/srv/1/site.crt"]).await?;
        puppet.obtain(&mut session, &third).await?;
        puppet.report(&mut session, &third, TargetState::Verified).await?;
        let shown = in_state(&operator, &id, RotationState::Completed).await?;
        ensure!(shown.targets.get(&(TargetState::Verified as u32)) == Some(&2), "{shown:?}");
        ensure!(shown.unmanaged == 0, "{shown:?}");
        Ok(())
    })
}

async fn retry(operator: &mut Operator, id: &str) -> Result<()> {
    let retry = reseal_proto::v1::ControlRotationRequest {
        id: id.into(),
        action: reseal_proto::v1::RotationAction::Retry.into(),
        ..Default::default()
    };
    operator.control_rotation(retry).await?;
    Ok(())
}

#[test]
fn much_that_was_found_hides_nothing_that_is_managed() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(as_released()?).await?;
        let (mut operator, puppet, session) = one_host(&coordinator, 1).await?;
        let facts = puppet.held[0].2.clone();
        let mut all = vec![installation("/srv/0/site.crt", "s0.h1.wire.test", facts.clone())];
        all.extend((0..2_500).map(|at| {
            let mut one = installation(&format!("/found/{at:04}.crt"), "x.wire.test", facts.clone());
            one.set_management(Management::Discovered);
            one
        }));
        let finding = |id: &str, severity: &str, at: usize| Finding {
            id: id.into(),
            object: format!("/found/{at:04}.crt"),
            message: "it is as it is".into(),
            severity: severity.into(),
        };
        let mut delta = inventory(all);
        delta.findings = (0..1_500).map(|at| finding("unmanaged", "info", at)).collect();
        delta.findings.push(finding("expired", "critical", 0));
        session.send(ToCoordinator::Inventory(delta)).await?;
        let shown = until("the inventory", 20, async || {
            let shown = operator.show_host(HostRequest { name: "h1".into() }).await?.into_inner();
            Ok((shown.installations.len() > 1).then_some(shown))
        });
        let shown = shown.await?;
        ensure!(shown.installations.len() == 2_000, "{}", shown.installations.len());
        ensure!(shown.installations.iter().filter(|one| one.is_managed()).count() == 1, "it is hidden");
        ensure!(shown.findings.len() == 1_000, "{}", shown.findings.len());
        ensure!(shown.findings.iter().any(|finding| finding.id == "expired"), "the worst is missing");
        let left: Vec<&Finding> = shown.findings.iter().filter(|finding| finding.id == "left-out").collect();
        ensure!(left.iter().any(|finding| finding.message.contains("at most 2000")), "{left:?}");
        ensure!(left.iter().any(|finding| finding.message.contains("findings more")), "{left:?}");
        Ok(())
    })
}
