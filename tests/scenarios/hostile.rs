//! A malicious agent, and strangers without number. What they send is refused, counted and
//! audited within bounds, and the others are served meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reseal_proto::channel::{self, Trust};
use reseal_proto::v1::agent_client::AgentClient;
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::enrolment_client::EnrolmentClient;
use reseal_proto::v1::{
    AgentMessage, BatchResult, CsrBatch, EnrolRequest, Order, Progress, RotationState, TargetState,
};
use reseal_tests::invariants::nothing_stuck;
use reseal_tests::wire::ask::{audit, code, in_state, of_hosts, one_host, runtime, settings, show, until};
use reseal_tests::wire::{Coordinator, Identity, Puppet, Session, an_ack, an_order, chains, csr, open_token};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// A host that behaves is served within this, whatever others do.
const SERVED: Duration = Duration::from_secs(20);

/// A rotation of a host that behaves, from the command to its end.
async fn rotate_good(
    coordinator: &Coordinator,
    good: &mut Puppet,
    session: &mut Session,
    key: u8,
) -> Result<()> {
    let whole = async {
        let mut operator = coordinator.operator().await?;
        let id = operator.rotate(of_hosts(&good.identity.host, "100%", key)).await?.into_inner().id;
        good.serve(session).await?;
        in_state(&operator, &id, RotationState::Completed).await.map(drop)
    };
    tokio::time::timeout(SERVED, whole).await.context("a host that behaves was not served in time")?
}

#[test]
fn ten_thousand_requests_get_a_handful_of_certificates() -> Result<()> {
    const MESSAGES: usize = 200;
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut good = Puppet::enrol(&coordinator, "good", 1).await?;
        let mut healthy = good.connect().await?;
        good.serve(&mut healthy).await?;
        let bad = Puppet::enrol(&coordinator, "bad", 50).await?;
        let mut stream = bad.connect().await?;
        let order = stream.next_that(an_order).await?;
        ensure!(order.installations.len() == 50, "{order:?}");
        let before = audit(&mut coordinator.operator().await?).await?.len();

        let begun = std::time::Instant::now();
        // New keys each time, for what it was really ordered to renew.
        let flood = tokio::spawn(async move {
            let mut issued = 0;
            for _ in 0..MESSAGES {
                let csrs = bad.request(&order)?;
                let message = CsrBatch { batch: order.batch.clone(), csrs, ..CsrBatch::default() };
                stream.send(ToCoordinator::Csrs(message)).await?;
                let answers = stream.next_that(chains).await?.issued;
                issued += answers.iter().filter(|answer| answer.refusal.is_none()).count();
            }
            anyhow::Ok(issued)
        });
        rotate_good(&coordinator, &mut good, &mut healthy, 1).await?;
        let issued = flood.await??;
        ensure!(issued <= 32 * 50, "{issued} certificates were issued to one host in one batch");
        ensure!(issued >= 50, "not even the first message was answered");

        // Counted: all of them. Audited: with the reason, and not without end.
        let refused = coordinator.metric("reseal_certificates_total{result=\"failed\"}")?;
        ensure!(
            refused == (MESSAGES * 50 - issued) as u64,
            "{refused} refusals are counted, {issued} issued"
        );
        let entries = audit(&mut coordinator.operator().await?).await?;
        let refusals = entries.iter().filter(|(action, outcome, detail)| {
            action == "certificates.issue" && outcome == "refused" && detail.contains("50 refused")
        });
        ensure!(refusals.count() > 0, "no refusal is audited: {:?}", &entries[before..]);
        let most = 32 + 10 * (begun.elapsed().as_secs() as usize + 2) + 20;
        ensure!(entries.len() - before <= most, "{} audit entries", entries.len() - before);
        Ok(())
    })
}

#[test]
fn evidence_that_is_replayed_changes_nothing() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let (mut operator, mut puppet, mut session) = one_host(&coordinator, 1).await?;
        let first = operator.rotate(of_hosts("h1", "100%", 1)).await?.into_inner().id;
        let order = session.next_that(an_order).await?;
        puppet.obtain(&mut session, &order).await?;
        let old = puppet.identity.sign(&puppet.payload(&order, TargetState::Verified)?)?;
        report(&mut session, old.clone()).await?;
        in_state(&operator, &first, RotationState::Completed).await?;
        let file = |id: &str| coordinator.json(&["rotation", "evidence", id, "--file", "-"]);
        let before = file(&first)?["body"]["batches"].clone();

        // Word for word, once more: taken, and nothing changes.
        let second = operator.rotate(of_hosts("h1", "100%", 2)).await?.into_inner().id;
        let next = session.next_that(an_order).await?;
        report(&mut session, old.clone()).await?;
        ensure!(file(&first)?["body"]["batches"] == before, "a repeated result changed the record");
        open(&coordinator, &second).await?;

        // The old signature under the new batch's name.
        let renamed = BatchResult { batch: next.batch.clone(), ..old.clone() };
        let error = report(&mut session, renamed).await.err().context("it was taken")?;
        ensure!(code(&error) == Some(Code::InvalidArgument), "{error:#}");
        open(&coordinator, &second).await?;
        let why = format!("result of batch {} from host h1", next.batch);
        let refused = until("an audit entry", 10, || {
            let (mut operator, why) = (operator.clone(), why.clone());
            async move {
                let entries = audit(&mut operator).await?;
                Ok(entries.into_iter().find(|(_, outcome, said)| outcome == "refused" && said.contains(&why)))
            }
        });
        refused.await.context("a forged result is not audited")?;
        ensure!(coordinator.metric("reseal_sessions_refused_total")? == 1, "it is not counted");

        // Signed anew by the host itself: the certificate is that of another batch.
        let mut session = puppet.connect().await?;
        let next = session.next_that(an_order).await?;
        let stale = puppet.identity.sign(&puppet.payload(&next, TargetState::Verified)?)?;
        report(&mut session, stale).await?;
        let halted = in_state(&operator, &second, RotationState::Halted).await?;
        let reason = halted.failures.first().and_then(|row| row.failure.clone()).unwrap_or_default();
        ensure!(reason.code == "not-issued", "{halted:?}");
        nothing_stuck(&|words: &[&str]| coordinator.json(words))
    })
}

async fn report(session: &mut Session, result: BatchResult) -> Result<()> {
    session.send(ToCoordinator::Result(result)).await?;
    session.next_that(an_ack).await.map(drop)
}

async fn open(coordinator: &Coordinator, id: &str) -> Result<()> {
    let shown = show(&mut coordinator.operator().await?, id).await?;
    let verified = shown.targets.get(&(TargetState::Verified as u32)).copied().unwrap_or_default();
    ensure!(shown.state() == RotationState::Running && verified == 0, "{shown:?}");
    Ok(())
}

#[test]
fn streams_without_end_and_connections_without_a_word_slow_nobody() -> Result<()> {
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let mut good = Puppet::enrol(&coordinator, "good", 2).await?;
        let mut healthy = good.connect().await?;
        good.serve(&mut healthy).await?;
        let bad = Puppet::enrol(&coordinator, "bad", 0).await?;

        // Connections that never say a word, and streams that never say Hello.
        // From an address of their own: whoever shares it waits with them.
        let mut silent = Vec::new();
        for _ in 0..400 {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind("127.0.0.66:0".parse()?)?;
            silent.push(socket.connect(coordinator.address().parse()?).await?.into_std()?);
        }
        for stream in &silent {
            stream.set_nonblocking(false)?;
        }
        let mut mute = Vec::new();
        for _ in 0..4 {
            mute.extend(mute_streams(&coordinator, &bad.identity).await?);
        }
        // Streams that never end, from hosts that never read: hints, inventories, requests.
        let mut endless = Vec::new();
        for at in 0..3_usize {
            let host = format!("endless{at}");
            let puppet = Puppet::enrol(&coordinator, &host, 40).await?;
            let session = puppet.connect().await?;
            endless.push(tokio::spawn(without_end(puppet, session, at)));
        }
        for key in 1..4 {
            rotate_good(&coordinator, &mut good, &mut healthy, key).await?;
        }
        let list = tokio::time::timeout(SERVED, audit(&mut coordinator.operator().await?)).await;
        ensure!(!list.context("an operator was not served in time")??.is_empty(), "no audit log");
        for task in endless {
            task.abort();
            if let Ok(Err(error)) = task.await {
                // Cut off for it: that is as good.
                ensure!(code(&error).is_some() || error.to_string().contains("stream"), "{error:#}");
            }
        }

        // Each of them is let go: the silent ones by their time, without a restart.
        let mut ended = 0;
        for stream in silent {
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            let mut byte = [0];
            ended += usize::from(matches!(std::io::Read::read(&mut &stream, &mut byte), Ok(0)));
        }
        ensure!(ended == 400, "{ended} of 400 silent connections were ended");
        for stream in &mut mute {
            let said = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
            let refusal =
                said.context("a stream without Hello stays open")?.err().context("it was welcomed")?;
            ensure!(refusal.code() == Code::DeadlineExceeded, "{refusal}");
        }
        rotate_good(&coordinator, &mut good, &mut healthy, 9).await?;
        until("only the host that behaves", 60, async || {
            Ok((coordinator.metric("reseal_agent_sessions")? == 1).then_some(()))
        })
        .await
    })
}

type Mute = tonic::Streaming<reseal_proto::v1::CoordinatorMessage>;

/// As many streams on one connection as it takes.
async fn mute_streams(coordinator: &Coordinator, identity: &Identity) -> Result<Vec<Mute>> {
    let channel = channel::connect(&coordinator.address(), identity.tls()?).await?;
    let mut open = Vec::new();
    for _ in 0..32 {
        let (sender, receiver) = mpsc::channel::<AgentMessage>(1);
        // It is never used, and never dropped.
        std::mem::forget(sender);
        open.push(
            AgentClient::new(channel.clone()).session(ReceiverStream::new(receiver)).await?.into_inner(),
        );
    }
    Ok(open)
}

/// Sends as fast as it can, and reads nothing.
async fn without_end(puppet: Puppet, session: Session, kind: usize) -> Result<()> {
    loop {
        let message = match kind {
            0 => ToCoordinator::Progress(Progress { batch: "r1.0".into(), ..Progress::default() }),
            1 => puppet.inventory()?,
            _ => {
                let order = Order { batch: "none".into(), ..Order::default() };
                let csrs = vec![csr("/srv/0/site.crt", "x.wire.test")?; 50];
                ToCoordinator::Csrs(CsrBatch { batch: order.batch, csrs, ..CsrBatch::default() })
            }
        };
        session.send(message).await?;
    }
}

#[test]
fn a_flood_of_bad_tokens_is_counted_and_keeps_nobody_out() -> Result<()> {
    const CALLERS: usize = 20;
    const CALLS: usize = 150;
    runtime().block_on(async {
        let coordinator = Coordinator::start(settings()?).await?;
        let good = open_token(&coordinator.invite("good", 0).await?)?;
        let mut forged = open_token(&coordinator.invite("victim", 0).await?)?;
        forged.secret = "0".repeat(forged.secret.len());
        let pin = forged.ca_pin[..].try_into()?;
        let request = EnrolRequest {
            token_id: forged.id,
            secret: forged.secret,
            csr: csr("", "x.wire.test")?.der,
            agent_version: "wire".into(),
        };
        let begun = std::time::Instant::now();
        let flood: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (address, request) = (coordinator.address(), request.clone());
                tokio::spawn(async move {
                    let config = channel::client_config(Trust::Pin(pin), None)?;
                    let mut client = EnrolmentClient::new(channel::connect(&address, config).await?);
                    for _ in 0..CALLS {
                        let refusal = client.enrol(request.clone()).await.err().context("it was let in")?;
                        ensure!(refusal.code() == Code::PermissionDenied, "{refusal}");
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let key = rcgen::KeyPair::generate()?;
        let enrolled = tokio::time::timeout(SERVED, Identity::enrol_with(good, &key, None)).await;
        enrolled.context("a host that was invited did not get in in time")??;
        for caller in flood {
            caller.await??;
        }
        let counted = coordinator.metric("reseal_enrolments_refused_total")?;
        ensure!(counted == (CALLERS * CALLS) as u64, "{counted} refusals are counted");
        let entries = audit(&mut coordinator.operator().await?).await?;
        let audited = entries.iter().filter(|(action, outcome, detail)| {
            action == "host.enrol" && outcome == "refused" && detail.contains("forged token for host victim")
        });
        // Ten a second, and the log says no more.
        let (audited, seconds) = (audited.count() as u64, begun.elapsed().as_secs() + 2);
        ensure!((1..=seconds * 10).contains(&audited), "{audited} are audited in {seconds} s");
        Ok(())
    })
}
