//! Who may join: the host that was invited, once, in time, at the fleet that invited it.
//! Everybody else is refused, and leaves a trace in the audit log.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_proto::token;
use reseal_proto::v1::JoinToken;
use reseal_tests::fleet::{Fleet, Host};
use reseal_tests::process::{run, turn, wait_until};
use reseal_tests::product::{Agent, Binaries, Coordinator};

/// Enrols with a fresh state directory: another machine that got hold of a token.
fn stranger(host: &Host, agent: &Agent, name: &str, token: &str) -> Result<()> {
    let state = host.directory().join(name).display().to_string();
    run(&mut agent.command(host, &["enrol", token, "--state-dir", &state])).map(drop)
}

fn changed(text: &str, change: impl FnOnce(&mut JoinToken)) -> Result<String> {
    let mut token = token::decode(text)?;
    change(&mut token);
    Ok(token::encode(&token))
}

#[test]
fn only_the_invited_host_joins_and_only_once() -> Result<()> {
    let _turn = turn()?;
    let fleet = Fleet::start(&["one"])?;
    let one = fleet.host("one")?;
    let mut coordinator = Coordinator::init(&fleet, Binaries::built()?)?;
    coordinator.start(&[])?;
    let mut agent = Agent::new(one, coordinator.binaries())?;
    let refusals = |wanted: usize| -> Result<()> {
        let entries = coordinator.audited("host.enrol")?;
        let refused = entries.iter().filter(|entry| entry["outcome"] == "refused").count();
        ensure!(refused == wanted, "{refused} refusals are audited, not {wanted}: {entries:?}");
        Ok(())
    };

    // Not a token, a damaged one, one for another command line: refused on the host itself.
    let good = coordinator.invite("one")?;
    let mut cut = good.clone();
    cut.truncate(good.len() - 3);
    for text in ["", "reseal1_", "reseal1_AAAA", "hello", cut.as_str()] {
        let said = stranger(one, &agent, "s0", text).unwrap_err().to_string();
        ensure!(!said.contains("panicked"), "{text:?}: {said}");
    }
    refusals(0)?;

    // Forged: the right id, another secret. Foreign: an id of some other fleet.
    let forged = changed(&good, |token| token.secret = "0".repeat(token.secret.len()))?;
    let said = stranger(one, &agent, "s1", &forged).unwrap_err().to_string();
    ensure!(said.contains("unknown, used, expired"), "{said}");
    refusals(1)?;
    let foreign = changed(&good, |token| token.id = "0".repeat(token.id.len()))?;
    assert!(stranger(one, &agent, "s2", &foreign).is_err());
    refusals(2)?;
    // Renaming the host in a token does not help: the coordinator has its own record.
    // A token for another coordinator is not even sent: the CA's pin does not fit.
    let elsewhere = changed(&good, |token| token.ca_pin = vec![7; 32])?;
    assert!(stranger(one, &agent, "s3", &elsewhere).is_err());
    refusals(2)?;

    // None of that used it up.
    agent.enrol(one, &good)?;
    agent.start(one, &[])?;
    wait_until("a session", Duration::from_secs(20), || {
        let status = coordinator.json(&["status"])?;
        ensure!(status["hosts_connected"] == 1, "{status}");
        Ok(())
    })?;
    assert!(stranger(one, &agent, "s4", &good).is_err(), "a used token was taken again");
    refusals(3)?;

    // Expired.
    let reply = coordinator.json(&["host", "invite", "two", "--lifetime", "1s"])?;
    let short = reply["token"].as_str().context("a token")?.to_owned();
    let ends = token::decode(&short)?.expires_at;
    wait_until("the end of the token", Duration::from_secs(20), || {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        ensure!(i64::try_from(now)? > ends + 1, "it is still good");
        Ok(())
    })?;
    let said = stranger(one, &agent, "s5", &short).unwrap_err().to_string();
    ensure!(said.contains("expired"), "{said}");
    refusals(4)?;
    let entries = coordinator.audited("host.enrol")?;
    let detail = entries.last().and_then(|entry| entry["detail"].as_str()).unwrap_or_default();
    ensure!(detail.contains("expired token for host two"), "the audit log says: {detail}");
    // No secret in what was said or logged.
    for text in [&good, &forged, &short] {
        let secret = token::decode(text)?.secret;
        for log in [coordinator.log(), one.directory().join("agent.log")] {
            let log = std::fs::read_to_string(log)?;
            ensure!(!log.contains(&secret) && !log.contains(text.as_str()), "a token is logged");
        }
        ensure!(!said.contains(&secret), "{said}");
    }

    // Banned: cut off at once, on the open stream, and not let in again.
    coordinator.text(&["host", "ban", "one", "--reason", "scenario"])?;
    wait_until("the end of the session", Duration::from_secs(10), || {
        let status = coordinator.json(&["status"])?;
        ensure!(status["hosts_connected"] == 0, "{status}");
        Ok(())
    })?;
    let hosts = coordinator.json(&["host", "list"])?;
    let one = reseal_tests::product::find(&hosts, "name", "one").context("host one")?;
    assert_eq!(one["state"], "banned");
    Ok(())
}
