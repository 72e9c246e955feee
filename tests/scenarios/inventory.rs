//! What hosts report and nobody declares, as the coordinator treats it: seen, named, never
//! ordered. And the lists of certificates and findings, as an operator gets them.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::{
    CertificateFacts, Finding, HostRequest, Management, Origin, PlanRequest, RotateRequest, RotationState,
    Selection, StatusRequest, TargetState,
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
        let shown = until("the first result", 20, async || {
            let shown = show(&mut operator, &id).await?;
            Ok((shown.unmanaged == 1).then_some(shown))
        })
        .await?;
        ensure!(shown.state() == RotationState::Running, "{shown:?}");
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
            // A large inventory is written in several commits: less is seen on the way.
            let whole = shown.installations.len() >= 2_000 && shown.findings.len() >= 1_000;
            Ok(whole.then_some(shown))
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

/// Two hosts: one certificate of ours on each, and strangers in files, images and at endpoints.
async fn strangers(coordinator: &Coordinator) -> Result<(Operator, Vec<u8>)> {
    let (mut operator, first, session) = one_host(coordinator, 1).await?;
    let mut second = Puppet::enrol(coordinator, "h2", 1).await?;
    let mut other = second.connect().await?;
    second.serve(&mut other).await?;
    let stranger = |print: u8, names: &str, not_after: i64| CertificateFacts {
        fingerprint: vec![print; 32],
        spki_sha256: vec![0x77; 32],
        issuer: "C=XX, O=Elsewhere, CN=Old Issuing CA".into(),
        names: vec![names.into()],
        not_before: 1,
        not_after,
        key_type: "rsa-1024".into(),
        ..CertificateFacts::default()
    };
    let far = i64::from(u32::MAX);
    let one = |id: &str, label: &str, origin: Origin, facts: CertificateFacts| {
        let mut one = installation(id, &facts.names[0].clone(), Some(facts));
        one.label = label.into();
        one.consumers[0].container = label.split('/').next().unwrap_or_default().into();
        one.set_management(Management::Discovered);
        one.set_origin(origin);
        one
    };
    let finding = |id: &str, object: &str, severity: &str| Finding {
        id: id.into(),
        object: object.into(),
        message: "as it is".into(),
        severity: severity.into(),
    };
    let of = |puppet: &Puppet| installation(&puppet.held[0].0, &puppet.held[0].1, puppet.held[0].2.clone());
    let mut report = inventory(vec![
        of(&first),
        one("/srv/legacy/old.crt", "legacy/old", Origin::File, stranger(0xa1, "old.example", 1_000_000)),
        one("image:abc:/etc/app.pem", "app/app", Origin::Image, stranger(0xa2, "app.example", far)),
    ]);
    report.findings = vec![
        finding("expired", "/srv/legacy/old.crt", "critical"),
        finding("unmanaged", "/srv/legacy/old.crt", "info"),
        finding("baked-private-key", "image:abc:/etc/app.pem", "critical"),
    ];
    session.send(ToCoordinator::Inventory(report)).await?;
    let mut elsewhere =
        one("endpoint:10.0.0.9:8443/", "gw", Origin::Endpoint, stranger(0xa2, "gw.example", far));
    elsewhere.layout = String::new();
    let mut report = inventory(vec![
        of(&second),
        one("/srv/copy/old.crt", "legacy/copy", Origin::File, stranger(0xa3, "copy.example", far - 1)),
        elsewhere,
    ]);
    report.findings = vec![finding("weak-key", "/srv/copy/old.crt", "warning")];
    other.send(ToCoordinator::Inventory(report)).await?;
    until("both inventories", 20, async || {
        let status = operator.status(StatusRequest {}).await?.into_inner();
        Ok((status.installations == 6).then_some(()))
    })
    .await?;
    Ok((operator, first.held[0].2.clone().context("issued")?.fingerprint))
}

/// This field of every row that a command prints, in its order.
fn column(coordinator: &Coordinator, words: &[&str], field: &str) -> Result<Vec<String>> {
    let rows = coordinator.json(words)?;
    let rows = rows.as_array().with_context(|| format!("{words:?} printed no list"))?;
    let text =
        |row: &serde_json::Value| row.pointer(field).and_then(|value| value.as_str().map(String::from));
    rows.iter().map(|row| text(row).with_context(|| format!("no {field} in {row}"))).collect()
}

#[test]
fn certificates_are_filtered_sorted_and_shown() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(as_released()?).await?;
        let (_, ours) = strangers(&coordinator).await?;
        let ids = |words: &[&str]| column(&coordinator, &[&["certs"], words].concat(), "/installation/id");
        let (old, copy) = ("/srv/legacy/old.crt", "/srv/copy/old.crt");
        let (image, endpoint) = ("image:abc:/etc/app.pem", "endpoint:10.0.0.9:8443/");
        for (words, wanted) in [
            (&["--managed"][..], &["/srv/0/site.crt", "/srv/0/site.crt"][..]),
            (&["--discovered"], &[old, image, endpoint, copy]),
            (&["--discovered", "--host", "h2"], &[endpoint, copy]),
            (&["--status", "expired"], &[old]),
            (&["--origin", "image", "--origin", "endpoint"], &[image, endpoint]),
            (&["--container", "leg*"], &[old, copy]),
            (&["--issuer", "elsewhere", "--host", "h1"], &[old, image]),
            (&["--issuer", "builtin/a"], &["/srv/0/site.crt", "/srv/0/site.crt"]),
            (&["--fingerprint", "A1A1:A1A1"], &[old]),
            (
                &["--key-type", "rsa-1024", "--name", "*.example", "--sort", "name"],
                &[image, copy, endpoint, old],
            ),
            (&["--discovered", "--sort", "expires"], &[old, copy, image, endpoint]),
            (&["--discovered", "--sort", "expires", "-r"], &[endpoint, image, copy, old]),
            (&["--expires-before", "2001-01-01"], &[old]),
            (&["--sort", "status", "--discovered"], &[old, image, copy, endpoint]),
            (&["list", "--host", "h1", "--reverse"], &[image, old, "/srv/0/site.crt"]),
            (&["--status", "missing"], &[]),
        ] {
            let mut found = ids(words)?;
            if !words.contains(&"--sort") && !words.contains(&"--reverse") {
                // Host by host, within one by id.
                let plain = found.clone();
                ensure!(plain == ids(&[words, &["--sort", "host"]].concat())?, "{words:?}: {plain:?}");
                found.sort();
                let mut wanted = wanted.to_vec();
                wanted.sort();
                ensure!(found == wanted, "{words:?}: {found:?}");
            } else {
                ensure!(found == wanted, "{words:?}: {found:?}");
            }
        }
        let csv = String::from_utf8(coordinator.reseal(&["certs", "-o", "csv"]).output()?.stdout)?;
        ensure!(csv.lines().count() == 7 && csv.contains(",discovered,image,"), "{csv}");
        let table = String::from_utf8(coordinator.reseal(&["certs"]).output()?.stdout)?;
        ensure!(table.contains("no (image)") && table.contains("Old Issuing CA"), "{table}");

        let digits = &hex::encode(&ours)[..12];
        let shown = coordinator.json(&["certs", "show", digits])?;
        ensure!(shown["total"] == 1 && shown["authority"]["name"] == "builtin/a", "{shown}");
        ensure!(shown["root"]["name"] == "managed-root", "{shown}");
        let shown = coordinator.json(&["certs", "show", "a1a1a1a1"])?;
        ensure!(shown["findings"].as_array().is_some_and(|found| found.len() == 2), "{shown}");
        ensure!(shown["places"][0]["installation"]["consumers"][0]["container"] == "legacy", "{shown}");
        let shown = coordinator.json(&["certs", "show", "a2a2a2a2"])?;
        ensure!(shown["total"] == 2, "in an image, and at an endpoint of another host: {shown}");
        for (digits, code) in [("abc", 2), ("0000000000", 1)] {
            let output = coordinator.reseal(&["certs", "show", digits]).output()?;
            ensure!(output.status.code() == Some(code), "{digits}: {output:?}");
        }
        let host = String::from_utf8(coordinator.reseal(&["host", "show", "h1"]).output()?.stdout)?;
        for part in
            ["Managed (1)", "Discovered, managed by nobody (1)", "Built into images (1)", "Findings (3)"]
        {
            ensure!(host.contains(part), "no {part:?} in {host}");
        }
        Ok(())
    })
}

#[test]
fn findings_are_filtered_counted_and_made_of_all_hosts() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(as_released()?).await?;
        strangers(&coordinator).await?;
        let ids = |words: &[&str]| column(&coordinator, &[&["findings"], words].concat(), "/id");
        let shared = "key-shared-across-hosts";
        let all = ids(&[])?;
        ensure!(all == ["baked-private-key", "expired", shared, shared, "weak-key", "unmanaged"], "{all:?}");
        for (words, wanted) in [
            (&["--severity", "critical"][..], &["baked-private-key", "expired"][..]),
            (&["--host", "h2"], &[shared, "weak-key"]),
            (&["--host", "h*", "--id", "weak-*"], &["weak-key"]),
            (&["--object", "LEGACY", "--id", "expired", "--id", "unmanaged"], &["expired", "unmanaged"]),
            (&["--severity", "info", "-r"], &["unmanaged"]),
        ] {
            let found = ids(words)?;
            ensure!(found == wanted, "{words:?}: {found:?}");
        }
        // The key in h1's file and image is the one on h2; what h2 only sees served is no key of its own.
        let rows = coordinator.json(&["findings", "--id", shared])?;
        for row in rows.as_array().context("a list")? {
            let other = if row["host"] == "h1" { "h2" } else { "h1" };
            ensure!(row["message"].as_str().is_some_and(|text| text.contains(other)), "{row}");
            ensure!(row["remedy"].is_string() && row["severity"] == "warning", "{row}");
            ensure!(row["object"] != "endpoint:10.0.0.9:8443/", "{row}");
        }
        let counts = coordinator.json(&["findings", "--count"])?;
        ensure!(counts[0]["id"] == "baked-private-key" && counts[0]["number"] == 1, "{counts}");
        let text = String::from_utf8(coordinator.reseal(&["findings"]).output()?.stdout)?;
        ensure!(
            text.contains("By kind (6 in all)") && text.contains("give each host a key of its own"),
            "{text}"
        );
        let output = coordinator.reseal(&["findings", "--host", "h9"]).output()?;
        ensure!(output.status.code() == Some(1), "a mistyped host reads as clean: {output:?}");
        let output = coordinator.reseal(&["findings", "--severity", "bad"]).output()?;
        ensure!(output.status.code() == Some(2), "{output:?}");
        Ok(())
    })
}

#[test]
fn ten_thousand_rows_come_sorted() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(as_released()?).await?;
        let mut operator = coordinator.operator().await?;
        for host in 0..5 {
            let puppet = Puppet::enrol(&coordinator, &format!("h{host}"), 0).await?;
            let session = puppet.connect().await?;
            let rows = (0..2_000u32).map(|at| {
                let name = format!("n{:05}.wire.test", (at * 7_919) % 2_000);
                let facts = CertificateFacts {
                    fingerprint: vec![1; 32],
                    names: vec![name.clone()],
                    not_after: i64::from(at),
                    ..CertificateFacts::default()
                };
                let mut one = installation(&format!("/found/{at:04}.crt"), &name, Some(facts));
                one.set_management(Management::Discovered);
                one
            });
            session.send(ToCoordinator::Inventory(inventory(rows.collect()))).await?;
            until("the inventory", 30, async || {
                let status = operator.status(StatusRequest {}).await?.into_inner();
                Ok((status.installations == 2_000 * (host + 1)).then_some(()))
            })
            .await?;
        }
        let csv = coordinator.reseal(&["certs", "--sort", "name", "-o", "csv"]).output()?.stdout;
        let csv = String::from_utf8(csv)?;
        let names: Vec<&str> = csv.lines().skip(1).filter_map(|line| line.split(',').nth(5)).collect();
        ensure!(names.len() == 10_000 && names.is_sorted(), "{} rows", names.len());
        let page = coordinator.reseal(&["certs", "--sort", "expires"]).output()?.stdout;
        ensure!(String::from_utf8(page)?.lines().count() == 10_001, "a table has them all");
        Ok(())
    })
}
