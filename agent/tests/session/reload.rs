//! Up the ladder of a consumer: signal, exec, restart, and no further than needed.

use reseal_proto::v1::{Grade, Stage, TargetProof, TargetState};

use super::support::World;
use super::{inventory, renew, result};

/// An agent with services that share one certificate, each with its reload label.
async fn sharing(services: &[(&str, &str)]) -> (World, String) {
    let mut world = World::enrolled().await;
    let mount = world.mount("tls");
    let mut id = String::new();
    for (name, reload) in services {
        let same = [("reseal.cert.site.names", "a.example.test"), ("reseal.cert.site.reload", reload)];
        id = world.engine.create(name, &mount, &same).await;
    }
    world.start();
    inventory(&mut world).await;
    let first = renew(&mut world, "n1", &id).await;
    assert_eq!(first.state(), TargetState::Unserved, "{first:?}");
    for (name, _) in services {
        world.engine.start_container(name);
    }
    result(&mut world, true).await;
    (world, id)
}

fn methods(proof: &TargetProof) -> Vec<String> {
    proof.reloads.iter().map(|reload| format!("{}: {}", reload.container, reload.method)).collect()
}

#[tokio::test]
async fn the_first_step_that_helps_is_the_last() {
    let (mut world, id) = sharing(&[("web", "signal:HUP,exec:program reload,restart")]).await;
    world.engine.change("web", |web| web.obeys_exec = true);
    let proof = renew(&mut world, "r1.0", &id).await;
    assert_eq!((proof.state(), proof.grade()), (TargetState::Verified, Grade::Probe), "{proof:?}");
    assert_eq!(methods(&proof), ["web: signal HUP"]);

    world.engine.change("web", |web| web.obeys = false);
    let proof = renew(&mut world, "r2.0", &id).await;
    assert_eq!((proof.state(), proof.grade()), (TargetState::Verified, Grade::Probe), "{proof:?}");
    let steps = ["web: signal HUP", "web: exec program reload (after signal HUP: did not help)"];
    assert_eq!(methods(&proof), steps);
    assert_eq!(world.engine.calls("/restart"), 0, "nothing needed it");

    world.engine.change("web", |web| web.obeys_exec = false);
    let proof = renew(&mut world, "r3.0", &id).await;
    assert_eq!(proof.state(), TargetState::Verified, "{proof:?}");
    assert_eq!(world.engine.calls("/restart"), 1);
    let last = methods(&proof).pop().unwrap();
    // What the command had said is there, for whoever wonders why it did not help.
    assert!(last.contains("restart (after signal HUP") && last.contains("what the check says"), "{last}");
    assert_eq!(world.engine.forbidden_calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_signal_that_nobody_catches_is_not_sent() {
    let (mut world, id) = sharing(&[("web", "signal:WINCH,exec:program reload")]).await;
    world.engine.change("web", |web| web.obeys_exec = true);
    let proof = renew(&mut world, "r1.0", &id).await;
    assert_eq!(proof.state(), TargetState::Verified, "{proof:?}");
    assert_eq!(world.engine.calls("/kill"), 0);
    let said = methods(&proof);
    assert!(said.len() == 1 && said[0].contains("does not catch SIGWINCH"), "{said:?}");
}

#[tokio::test]
async fn without_the_label_nothing_is_restarted_and_every_step_is_named() {
    let (mut world, id) = sharing(&[("web", "signal:HUP,exec:program reload")]).await;
    world.engine.change("web", |web| web.obeys = false);
    // The way back is a reload of its own, and that fails likewise: the file is back all the same.
    let proof = renew(&mut world, "r1.0", &id).await;
    assert_eq!(proof.state(), TargetState::RolledBack, "{proof:?}");
    let failure = proof.failure.unwrap();
    assert_eq!((failure.stage(), failure.code.as_str()), (Stage::Verify, "served-differs"));
    assert!(failure.reason.contains("signal HUP: did not help; exec program reload"), "{}", failure.reason);
    assert_eq!(world.engine.calls("/restart"), 0);
}

#[tokio::test]
async fn restarts_come_last_one_by_one_and_end_at_the_first_that_fails() {
    let services = [("a", "restart"), ("b", "restart"), ("c", "signal:HUP")];
    let (mut world, id) = sharing(&services).await;
    let proof = renew(&mut world, "r1.0", &id).await;
    assert_eq!((proof.state(), proof.endpoints.len()), (TargetState::Verified, 3), "{proof:?}");
    assert_eq!(methods(&proof), ["c: signal HUP", "a: restart", "b: restart"]);

    world.engine.change("a", |a| a.obeys_restart = false);
    let proof = renew(&mut world, "r2.0", &id).await;
    assert_eq!((proof.state(), proof.grade()), (TargetState::RolledBack, Grade::Probe), "{proof:?}");
    // Only c was told of both; b was never restarted, and on the way back nobody needed it.
    assert_eq!(methods(&proof), ["c: signal HUP", "a: restart", "c: signal HUP"]);
    assert_eq!(world.engine.calls("containers/b/restart"), 1);

    // A gentle one that fails: nothing is restarted at all.
    world.engine.change("a", |a| a.obeys_restart = true);
    world.engine.change("c", |c| c.obeys = false);
    let before = world.engine.calls("/restart");
    let proof = renew(&mut world, "r3.0", &id).await;
    assert_eq!(proof.state(), TargetState::RolledBack, "{proof:?}");
    assert_eq!(world.engine.calls("/restart"), before);
}

/// The engine may say what it likes: a process that is not in the container's control
/// group is not signalled.
#[tokio::test]
async fn a_process_of_somebody_else_is_not_signalled() {
    let mut world = World::enrolled().await;
    world.signals_of_its_own();
    let mount = world.mount("tls");
    let id = world.engine.create("web", &mount, &[]).await;
    world.start();
    inventory(&mut world).await;
    renew(&mut world, "n1", &id).await;
    world.engine.start_container("web");
    result(&mut world, true).await;
    let proof = renew(&mut world, "r1.0", &id).await;
    assert_eq!(proof.state(), TargetState::RolledBack, "{proof:?}");
    let failure = proof.failure.unwrap();
    assert_eq!((failure.stage(), failure.code.as_str()), (Stage::Reload, "process-foreign"));
}
