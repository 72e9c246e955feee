//! Back from an export: what was shut out after it does not come back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reseal_proto::v1::{
    AddOperatorRequest, BanHostRequest, HostRequest, RemoveOperatorRequest, RotationRequest, RotationState,
    StatusRequest,
};
use reseal_tests::process::run;
use reseal_tests::wire::ask::{as_released, audit, code, of_hosts, runtime};
use reseal_tests::wire::{Coordinator, Identity, Puppet, csr, open_token};
use tonic::Code;

#[test]
fn nobody_who_was_shut_out_comes_back_with_an_export() -> Result<()> {
    runtime().block_on(async {
        let mut coordinator = Coordinator::start(as_released()?).await?;
        let mut operator = coordinator.operator().await?;
        let mut good = Puppet::enrol(&coordinator, "good", 1).await?;
        let mut session = good.connect().await?;
        good.serve(&mut session).await?;
        let stolen = Puppet::enrol(&coordinator, "stolen", 1).await?;
        let request = csr("", "bob")?;
        let bob = AddOperatorRequest { name: "bob".into(), role: "admin".into(), csr: request.der };
        operator.add_operator(bob).await?;
        let token = open_token(&coordinator.invite("late", 3600).await?)?;
        let id = operator.rotate(of_hosts("good", "", 1)).await?.into_inner().id;
        let epoch = operator.status(StatusRequest {}).await?.into_inner().epoch;

        let home = coordinator.data().parent().context("it has a home")?.to_owned();
        let path = |name: &str| home.join(name).to_string_lossy().into_owned();
        let (file, config) = (path("export"), path("reseal.toml"));
        run(&mut coordinator.reseal(&["store", "export", "--file", &file]))?;

        // Afterwards: a ban, a removal, a token that is used up. Then the machine is lost.
        let ban = BanHostRequest { name: "stolen".into(), reason: "image found for sale".into() };
        operator.ban_host(ban).await?;
        operator.remove_operator(RemoveOperatorRequest { name: "bob".into() }).await?;
        let key = rcgen::KeyPair::generate()?;
        Identity::enrol_with(token.clone(), &key, None).await?;
        coordinator.kill();
        std::fs::rename(coordinator.data(), home.join("lost"))?;
        run(&mut coordinator.reseal(&["store", "import", "--file", &file, "--config", &config]))?;

        // Nothing listens before somebody has looked.
        coordinator.run(&[])?;
        coordinator.wait_for_end(Duration::from_secs(20)).context("it served an unconfirmed store")?;
        ensure!(coordinator.log().contains("confirm-restore"), "{}", coordinator.log());
        let mut look =
            coordinator.reseal(&["store", "confirm-restore", "--config", &config, "--output", "json"]);
        let review: serde_json::Value = serde_json::from_str(&run(&mut look)?)?;
        let names = |list: &str| -> Vec<String> {
            let rows = review[list].as_array().cloned().unwrap_or_default();
            rows.iter().filter_map(|row| row["name"].as_str().map(str::to_owned)).collect()
        };
        ensure!(names("hosts") == ["good", "late", "stolen"], "{review}");
        ensure!(names("operators") == ["alice", "bob"], "{review}");
        ensure!(names("rotations") == [id.clone()], "{review}");
        ensure!(!names("policies").is_empty(), "{review}");
        let detail = review["operators"][1]["detail"].as_str().unwrap_or_default();
        ensure!(detail.contains("key ") && detail.len() > 64, "{review}");
        run(&mut coordinator.reseal(&[
            "store",
            "confirm-restore",
            "--config",
            &config,
            "--ban",
            "stolen",
            "--remove-operator",
            "bob",
            "--yes",
        ]))?;
        coordinator.run(&[])?;

        let mut operator = coordinator.operator().await?;
        let after = operator.status(StatusRequest {}).await?.into_inner();
        ensure!(after.epoch > epoch + 1000, "{} after {epoch}", after.epoch);
        let refused = stolen.connect().await.err().context("a banned host came back")?;
        ensure!(code(&refused) == Some(Code::PermissionDenied), "{refused:#}");
        for key in [&key, &rcgen::KeyPair::generate()?] {
            let refused = Identity::enrol_with(token.clone(), key, None).await.err();
            let refused = refused.context("a used token works again")?;
            ensure!(code(&refused) == Some(Code::PermissionDenied), "{refused:#}");
        }
        let operators =
            operator.list_operators(reseal_proto::v1::ListOperatorsRequest {}).await?.into_inner();
        ensure!(operators.operators.iter().all(|operator| operator.name != "bob"), "{operators:?}");
        let rotation = operator.show_rotation(RotationRequest { id }).await?.into_inner();
        ensure!(rotation.state() == RotationState::Paused, "{rotation:?}");

        // The good one just goes on.
        let session = good.connect().await.context("an agent that was not shut out")?;
        drop(session);
        let host = operator.show_host(HostRequest { name: "good".into() }).await?.into_inner();
        ensure!(host.host.is_some_and(|host| host.state == "enrolled"));
        Ok(())
    })
}

#[test]
fn a_coordinator_from_the_past_says_so() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(as_released()?).await?;
        let mut operator = coordinator.operator().await?;
        let agent = Puppet::enrol(&coordinator, "h1", 1).await?;
        let epoch = operator.status(StatusRequest {}).await?.into_inner().epoch;
        for _ in 0..5 {
            let mut session = agent.identity.connect_at(epoch + 1).await?;
            let refused = session.next().await.err().context("it welcomed a host from the future")?;
            ensure!(code(&refused) == Some(Code::FailedPrecondition), "{refused:#}");
            ensure!(format!("{refused:#}").contains("store import"), "{refused:#}");
        }
        ensure!(coordinator.log().contains("older copy"), "{}", coordinator.log());
        let entries = audit(&mut operator).await?;
        let refused = entries
            .iter()
            .filter(|(action, outcome, _)| action == "host.session" && outcome == "refused")
            .count();
        // Twice a minute, and a minute may have passed in between.
        ensure!((2..=4).contains(&refused), "{refused} of 5 are audited");
        // One that knows no later epoch is welcome.
        agent.connect().await?;
        Ok(())
    })
}
