//! Adopting, between operator, coordinator and an agent that is a client: who may, what is
//! asked of the host, and every way in which it can end.

use anyhow::{Context as _, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::coordinator_message::Body as FromCoordinator;
use reseal_proto::v1::{
    Adopt, AdoptOutcome, AdoptReply, AdoptRequest, Adopted, CertificateFacts, HostRequest, Inference,
    Installation, ListAuditRequest, Management,
};
use reseal_tests::wire::ask::{as_released, runtime, until};
use reseal_tests::wire::{Coordinator, Operator, Puppet, Session, installation, inventory};
use tonic::{Code, Status};

const ID: &str = "/srv/web/tls/site.crt";

fn discovered(id: &str, name: &str, print: u8, obstacles: &[&str]) -> Installation {
    let facts = CertificateFacts {
        fingerprint: vec![print; 32],
        not_before: 0,
        not_after: 4_000_000_000,
        names: vec![name.into()],
        ..CertificateFacts::default()
    };
    Installation {
        management: Management::Discovered.into(),
        inference: Some(Inference {
            decisions: vec![format!("names: {name}, because its SAN has them")],
            obstacles: obstacles.iter().map(|line| (*line).to_owned()).collect(),
        }),
        ..installation(id, name, Some(facts))
    }
}

/// What the host of these scenarios has.
fn all() -> Vec<Installation> {
    vec![
        discovered(ID, "web.h1.wire.test", 0xaa, &[]),
        discovered("/srv/foreign.crt", "www.example.com", 0xbb, &[]),
        discovered("/srv/stuck.crt", "stuck.h1.wire.test", 0xcc, &["key: no private key was found"]),
        Installation {
            management: Management::Labels.into(),
            ..discovered("/srv/labelled.crt", "labelled.h1.wire.test", 0xdd, &[])
        },
    ]
}

struct World {
    coordinator: Coordinator,
    operator: Operator,
    puppet: Puppet,
    session: Session,
}

async fn world() -> Result<World> {
    let coordinator = Coordinator::start(as_released()?).await?;
    let operator = coordinator.operator().await?;
    let puppet = Puppet::enrol(&coordinator, "h1", 0).await?;
    let session = puppet.connect().await?;
    let world = World { coordinator, operator, puppet, session };
    world.report().await?;
    Ok(world)
}

impl World {
    /// All that there is, on record: at the start of a session the puppet says that it has nothing.
    async fn report(&self) -> Result<()> {
        self.session.send(ToCoordinator::Inventory(inventory(all()))).await?;
        let on_record = async || Ok(ask(&self.operator, ID, true, false).await.ok());
        until("the inventory on record", 20, on_record).await.map(drop)
    }
}

async fn ask(
    operator: &Operator,
    installation: &str,
    dry_run: bool,
    release: bool,
) -> Result<AdoptReply, Status> {
    let request = AdoptRequest { host: "h1".into(), installation: installation.into(), dry_run, release };
    Ok(operator.clone().adopt(request).await?.into_inner())
}

fn an_adopt(body: FromCoordinator) -> Option<Adopt> {
    match body {
        FromCoordinator::Adopt(adopt) => Some(adopt),
        _ => None,
    }
}

/// One question of the coordinator, answered so.
async fn answer(session: &mut Session, outcome: AdoptOutcome, reasons: &[&str]) -> Result<Adopt> {
    let asked = session.next_that(an_adopt).await?;
    let reasons = reasons.iter().map(|line| (*line).to_owned()).collect();
    let answer = Adopted { request: asked.request.clone(), outcome: outcome.into(), reasons };
    session.send(ToCoordinator::Adopted(answer)).await?;
    Ok(asked)
}

/// Outcomes of the audit entries of this kind, oldest first.
async fn audited(operator: &Operator, action: &str) -> Result<Vec<String>> {
    let mut stream = operator.clone().list_audit(ListAuditRequest::default()).await?.into_inner();
    let mut outcomes = Vec::new();
    while let Some(entry) = stream.message().await? {
        if entry.action == action {
            ensure!(
                entry.actor == "operator/alice" && entry.object.starts_with("host/h1 /srv/"),
                "{entry:?}"
            );
            outcomes.push(entry.outcome);
        }
    }
    Ok(outcomes)
}

#[test]
fn a_host_is_asked_for_the_id_and_nothing_else() -> Result<()> {
    runtime().block_on(async {
        let mut world = world().await?;
        let shown = ask(&world.operator, "AA:AA:AA:AA", true, false).await?;
        let installation = shown.installation.clone().context("an installation")?;
        ensure!(installation.id == ID && shown.connected && shown.outcome() == AdoptOutcome::Unspecified);
        ensure!(installation.inference.context("with reasons")?.decisions[0].contains("its SAN"));
        ensure!(shown.policy.context("judged")?.policy == "wire");
        ensure!(shown.renewal_at > 0, "when it is renewed is known");
        ensure!(audited(&world.operator, "installation.adopt").await?.is_empty(), "looking is no act");

        let operator = world.operator.clone();
        let asked = tokio::spawn(async move { ask(&operator, ID, false, false).await });
        let adopt = answer(&mut world.session, AdoptOutcome::Adopted, &[]).await?;
        ensure!(adopt == Adopt { request: adopt.request.clone(), installation: ID.into(), release: false });
        ensure!(asked.await??.outcome() == AdoptOutcome::Adopted);
        ensure!(audited(&world.operator, "installation.adopt").await? == ["asked", "done"]);

        // What the host says next is what counts, and then it can be released again.
        let mut now = all();
        now[0].management = Management::Adopted.into();
        world.session.send(ToCoordinator::Inventory(inventory(now))).await?;
        until("it is managed", 20, async || {
            let shown = ask(&world.operator, ID, true, true).await?;
            Ok(shown.installation.is_some_and(|one| one.management() == Management::Adopted).then_some(()))
        })
        .await?;
        let operator = world.operator.clone();
        let asked = tokio::spawn(async move { ask(&operator, ID, false, true).await });
        let adopt = answer(&mut world.session, AdoptOutcome::Released, &[]).await?;
        ensure!(adopt.release && adopt.installation == ID);
        ensure!(asked.await??.outcome() == AdoptOutcome::Released);
        ensure!(audited(&world.operator, "installation.release").await? == ["asked", "done"]);
        Ok(())
    })
}

#[test]
fn what_makes_no_sense_never_reaches_the_host() -> Result<()> {
    runtime().block_on(async {
        let mut world = world().await?;
        for (installation, release, code, said) in [
            ("/srv/nothing.crt", false, Code::NotFound, "reseal host show h1"),
            ("eeeeeeee", false, Code::NotFound, "eeeeeeee"),
            ("/srv/foreign.crt", false, Code::PermissionDenied, "no policy admits www.example.com"),
            ("/srv/stuck.crt", false, Code::FailedPrecondition, "no private key was found"),
            ("/srv/labelled.crt", false, Code::FailedPrecondition, "managed already"),
            ("/srv/labelled.crt", true, Code::FailedPrecondition, "was not adopted"),
            (ID, true, Code::FailedPrecondition, "is not managed"),
        ] {
            let refused = ask(&world.operator, installation, false, release).await.err();
            let refused = refused.with_context(|| format!("{installation} was taken"))?;
            ensure!(refused.code() == code && refused.message().contains(said), "{installation}: {refused}");
        }
        let nobody = AdoptRequest { host: "h9".into(), installation: ID.into(), ..AdoptRequest::default() };
        let refused = world.operator.adopt(nobody).await.err().context("h9 is nobody")?;
        ensure!(refused.code() == Code::NotFound, "{refused}");
        let outcomes = audited(&world.operator, "installation.adopt").await?;
        ensure!(outcomes == ["refused", "refused", "refused"], "{outcomes:?}");

        // Away: said at once. Nothing of the above was ever asked of the host.
        let session = std::mem::replace(&mut world.session, world.puppet.connect().await?);
        drop(session);
        until("the report of its new session", 20, async || {
            let shown = world.operator.clone().show_host(HostRequest { name: "h1".into() }).await?;
            Ok((shown.into_inner().installations.is_empty()).then_some(()))
        })
        .await?;
        world.report().await?;
        let operator = world.operator.clone();
        let asked = tokio::spawn(async move { ask(&operator, ID, false, false).await });
        let first = answer(&mut world.session, AdoptOutcome::Adopted, &[]).await?;
        ensure!(first.installation == ID && asked.await?.is_ok(), "the first one it hears of");
        drop(world.session);
        until("the host is away", 20, async || {
            let shown = ask(&world.operator, ID, true, false).await?;
            Ok((!shown.connected).then_some(()))
        })
        .await?;
        let away = ask(&world.operator, ID, false, false).await.err().context("nobody is there")?;
        ensure!(away.code() == Code::FailedPrecondition && away.message().contains("is away"), "{away}");
        Ok(())
    })
}

#[test]
fn every_answer_and_no_answer_has_a_clear_end() -> Result<()> {
    runtime().block_on(async {
        let mut world = world().await?;
        for (outcome, code, said) in [
            (AdoptOutcome::NotAllowed, Code::PermissionDenied, "adopt = true"),
            (AdoptOutcome::Obstacles, Code::FailedPrecondition, "it has gone"),
            (AdoptOutcome::Failed, Code::FailedPrecondition, "it has gone"),
            (AdoptOutcome::Unknown, Code::NotFound, "it has gone"),
            (AdoptOutcome::Unspecified, Code::FailedPrecondition, "upgrade"),
        ] {
            let operator = world.operator.clone();
            let asked = tokio::spawn(async move { ask(&operator, ID, false, false).await });
            answer(&mut world.session, outcome, &["it has gone\x1b[2J"]).await?;
            let refused = asked.await?.err().with_context(|| format!("{outcome:?} was taken"))?;
            ensure!(refused.code() == code && refused.message().contains(said), "{refused}");
            ensure!(!refused.message().contains('\x1b'), "{refused:?}");
        }
        // Two operators at once: each gets its own answer, in whatever order they come.
        let (one, two) = (world.operator.clone(), world.operator.clone());
        let first = tokio::spawn(async move { ask(&one, ID, false, false).await });
        let one = world.session.next_that(an_adopt).await?;
        let second = tokio::spawn(async move { ask(&two, ID, false, false).await });
        let two = world.session.next_that(an_adopt).await?;
        ensure!(one.request != two.request);
        let said = |asked: &Adopt, outcome: AdoptOutcome| {
            let request = asked.request.clone();
            ToCoordinator::Adopted(Adopted { request, outcome: outcome.into(), reasons: Vec::new() })
        };
        let unasked = Adopt { request: "nobody asked".into(), ..Adopt::default() };
        world.session.send(said(&unasked, AdoptOutcome::Adopted)).await?;
        world.session.send(said(&two, AdoptOutcome::Adopted)).await?;
        world.session.send(said(&one, AdoptOutcome::NotAllowed)).await?;
        ensure!(second.await?.is_ok());
        ensure!(first.await?.err().context("refused")?.code() == Code::PermissionDenied);

        // More than a host can have open are turned away.
        let many: Vec<_> = (0..4)
            .map(|_| {
                let operator = world.operator.clone();
                tokio::spawn(async move { ask(&operator, ID, false, false).await })
            })
            .collect();
        for _ in 0..4 {
            world.session.next_that(an_adopt).await?;
        }
        let busy = ask(&world.operator, ID, false, false).await.err().context("one too many")?;
        ensure!(busy.code() == Code::ResourceExhausted, "{busy}");
        // The session ends before any is answered.
        drop(world.session);
        for asked in many {
            let lost = asked.await?.err().context("nobody answered")?;
            ensure!(lost.code() == Code::Unavailable && lost.message().contains("harmless"), "{lost}");
        }
        let outcomes = audited(&world.operator, "installation.adopt").await?;
        ensure!(outcomes.iter().filter(|outcome| *outcome == "unanswered").count() == 4, "{outcomes:?}");
        Ok(())
    })
}

#[test]
fn a_viewer_may_look_and_the_command_line_asks_first() -> Result<()> {
    runtime().block_on(async {
        let world = world().await?;
        let viewer = world.coordinator.data().with_file_name("viewer.json");
        let file = viewer.display().to_string();
        let status = world
            .coordinator
            .reseal(&["operator", "add", "vera", "--role", "viewer", "--out", &file])
            .status()?;
        ensure!(status.success());
        let looks = world.coordinator.operator_with(&viewer).await?;
        ensure!(ask(&looks, ID, true, false).await.is_ok());
        let refused = ask(&looks, ID, false, false).await.err().context("a viewer adopted")?;
        ensure!(refused.code() == Code::PermissionDenied, "{refused}");

        let run = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
            let output = world.coordinator.reseal(arguments).stdin(std::process::Stdio::null()).output()?;
            let text = [output.stdout, output.stderr].concat();
            Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
        };
        let (code, said) = run(&["adopt", "h1", ID])?;
        ensure!(code == Some(2) && said.contains("--yes"), "{said}");
        let (code, said) = run(&["adopt", "h1", ID, "--dry-run"])?;
        ensure!(code == Some(0) && said.contains("because its SAN has them"), "{said}");
        ensure!(said.contains("wire admits it") && said.contains("Nothing was changed"), "{said}");
        let (code, said) = run(&["adopt", "h1", "/srv/foreign.crt", "--dry-run"])?;
        ensure!(code == Some(5) && said.contains("refuses it"), "{said}");
        let (code, said) = run(&["adopt", "h1", "/srv/stuck.crt", "--dry-run", "--output", "json"])?;
        ensure!(code == Some(1), "{said}");
        let view: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(view["obstacles"][0] == "key: no private key was found", "{view}");
        ensure!(view["management"] == "discovered" && view["outcome"].is_null(), "{view}");
        Ok(())
    })
}
