//! What the agent answers when it is asked to adopt or to release, whole: over a session,
//! from its own look at its host. That it is done in the end is seen on real containers.

use crate::support::World;
use reseal_proto::v1::{Adopt, AdoptOutcome, Adopted, agent_message::Body, coordinator_message};

/// Asks, and waits for the answer to this very question.
async fn ask(world: &mut World, request: &str, installation: &str, release: bool) -> Adopted {
    let adopt = Adopt { request: request.into(), installation: installation.into(), release };
    world.coordinator.send(coordinator_message::Body::Adopt(adopt)).await;
    world
        .next("answer", |body| match body {
            Body::Adopted(adopted) if adopted.request == request => Some(adopted),
            _ => None,
        })
        .await
}

/// A certificate that somebody made by hand, in a directory that a container mounts.
fn by_hand(directory: &std::path::Path, name: &str) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(directory.join("site.crt"), certificate.pem()).unwrap();
    std::fs::write(directory.join("site.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn the_host_says_no_whenever_it_must() {
    let mut world = World::enrolled().await;
    let (labelled, bare) = (world.mount("labelled"), world.mount("bare"));
    let managed = world.engine.create("web", &labelled, &[]).await;
    by_hand(&bare, "app.example.test");
    let found = world.engine.create("app", &bare, &[("reseal.enable", "false")]).await;
    world.engine.start_container("app");
    world.start();
    world
        .next("inventory with what was discovered", |body| match body {
            Body::Inventory(delta) => {
                delta.upserted.iter().any(|one| one.id == found && one.inference.is_some()).then_some(())
            }
            _ => None,
        })
        .await;

    let refused = ask(&mut world, "1", &found, false).await;
    assert_eq!(refused.outcome(), AdoptOutcome::NotAllowed, "{refused:?}");

    // Allowed from the next look on, without a restart.
    let file = world.config.file.clone().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("adopt = true\n{text}")).unwrap();
    let refused = ask(&mut world, "2", &found, false).await;
    assert_eq!(refused.outcome(), AdoptOutcome::Obstacles, "{refused:?}");
    assert!(refused.reasons.iter().any(|line| line.starts_with("reload: the program of app")), "{refused:?}");

    for (request, installation, release, outcome) in [
        ("3", managed.as_str(), false, AdoptOutcome::Declared),
        ("4", managed.as_str(), true, AdoptOutcome::Declared),
        ("5", "/etc/shadow", false, AdoptOutcome::Unknown),
        ("6", "/etc/shadow", true, AdoptOutcome::Unknown),
        ("7", &"x".repeat(700), false, AdoptOutcome::Unknown),
    ] {
        let refused = ask(&mut world, request, installation, release).await;
        assert_eq!(refused.outcome(), outcome, "{refused:?}");
        assert!(!refused.reasons.is_empty());
    }
    // Whoever asks without end is told so, and nothing of it was ever kept.
    let mut often = None;
    for number in 8..40 {
        let answer = ask(&mut world, &number.to_string(), "/nothing", false).await;
        if answer.outcome() == AdoptOutcome::Failed {
            often = Some((number, answer));
            break;
        }
    }
    let (number, answer) = often.expect("it is bounded");
    assert_eq!(number, 31, "{answer:?}");
    assert!(answer.reasons[0].contains("within a minute"), "{answer:?}");
    assert!(!world.config.state_dir.join("adopted.json").exists());
}
