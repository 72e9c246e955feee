//! Beyond each bound there is a clear no, and the coordinator goes on. The table
//! *Bounds* in `docs/DATA_MODEL.md` names these tests.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reseal_proto::channel::{self, Trust};
use reseal_proto::v1::agent_client::AgentClient;
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::enrolment_client::EnrolmentClient;
use reseal_proto::v1::{
    AddOperatorRequest, AgentMessage, ControlRotationRequest, EnrolRequest, ExcludeHostRequest,
    ExportStoreRequest, HostRequest, Installation, InventoryDelta, InviteHostRequest, ListAuthoritiesRequest,
    PlanRequest, Policy, PrepareAuthorityRequest, RotateRequest, RotationAction, RotationRequest,
    RotationState, Selection, StatusRequest, TaintAuthorityRequest, TargetState, Usage,
};
use reseal_tests::wire::{
    Coordinator, Operator, Puppet, Settings, an_ack, an_order, ask, csr, installation, inventory, open_token,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpSocket;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

/// Connections of one address that wait for TLS, and its handshakes at a time.
const CONNECTIONS: usize = 2_048;

async fn started() -> Result<Coordinator> {
    Coordinator::start(Settings { log_level: "warn".into(), ..ask::as_released()? }).await
}

/// The answer was a no of this kind, in words that name what was too much.
fn refused<T>(what: &str, answer: Result<T, tonic::Status>, code: Code, words: &str) -> Result<()> {
    let status = answer.err().with_context(|| format!("{what} was taken"))?;
    ensure!(status.code() == code && status.message().contains(words), "{what}: {status}");
    Ok(())
}

fn rotation(key: u8) -> RotateRequest {
    ask::of_hosts("h1", "", key)
}

#[test]
fn what_an_operator_may_say_is_bounded() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let mut operator = coordinator.operator().await?;
        let no = Code::InvalidArgument;

        let many: Vec<String> = (0..10_001).map(|at| format!("h{at}")).collect();
        let selection = Some(Selection { hosts: many, ..Selection::default() });
        refused(
            "a selection of 10,001 hosts",
            operator.plan(PlanRequest { selection, ..PlanRequest::default() }).await,
            no,
            "10000",
        )?;
        let waves: Vec<String> = (1..=50).map(|at| at.to_string()).chain(["100%".into()]).collect();
        let rotate = RotateRequest { waves: waves.join(","), ..rotation(1) };
        refused("51 waves", operator.rotate(rotate).await, no, "51 waves")?;
        let rotate = RotateRequest { reason: "x".repeat(1_001), ..rotation(1) };
        refused("a reason of 1,001 bytes", operator.rotate(rotate).await, no, "1000 bytes")?;
        let rotate = RotateRequest { deadline_seconds: 90 * 86_400 + 1, ..rotation(1) };
        refused("a deadline of 91 days", operator.rotate(rotate).await, no, "90 days")?;
        let pause = ControlRotationRequest {
            id: "r1".into(),
            action: RotationAction::Pause.into(),
            reason: "x".repeat(1_001),
            ..ControlRotationRequest::default()
        };
        refused("a long reason for a pause", operator.control_rotation(pause).await, no, "1000 bytes")?;
        let taint = TaintAuthorityRequest { name: "b".into(), reason: "x".repeat(1_001) };
        refused("a long reason for a taint", operator.taint_authority(taint).await, no, "1000 bytes")?;

        let invite = InviteHostRequest {
            name: "h1".into(),
            labels: (0..51).map(|at| (format!("l{at}"), "v".to_owned())).collect(),
            ..InviteHostRequest::default()
        };
        refused("51 labels", operator.invite_host(invite).await, no, "at most 50")?;
        let invite = InviteHostRequest {
            name: "h1".into(),
            labels: [("l".to_owned(), "v".repeat(201))].into(),
            ..InviteHostRequest::default()
        };
        refused("a label of 201 characters", operator.invite_host(invite).await, no, "200")?;
        let invite = InviteHostRequest {
            name: "h1".into(),
            lifetime_seconds: 7 * 86_400 + 1,
            ..InviteHostRequest::default()
        };
        refused("a token for 8 days", operator.invite_host(invite).await, no, "7 days")?;
        let policy = Policy {
            name: "long".into(),
            names: (0..501).map(|at| format!("n{at}.test")).collect(),
            lifetime_seconds: 86_400,
            ..Policy::default()
        };
        refused("a policy of 501 names", operator.set_policy(policy).await, no, "500")?;
        let policy = Policy { name: "x".repeat(2 << 20), ..Policy::default() };
        refused("a message of 2 MiB", operator.set_policy(policy).await, Code::OutOfRange, "too large")?;
        operator.status(StatusRequest {}).await.context("it goes on")?;
        Ok(())
    })
}

#[test]
fn lists_are_bounded() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let mut operator = coordinator.operator().await?;
        let no = Code::ResourceExhausted;
        let policy = |at: usize| Policy {
            name: format!("p{at}"),
            names: vec!["x.test".into()],
            key_types: vec!["ecdsa-p256".into()],
            usages: vec![Usage::Server.into()],
            lifetime_seconds: 86_400,
            ..Policy::default()
        };
        // Two are there already: the default one and the harness's.
        fill(&operator, 998, |mut operator, at| {
            let policy = policy(at);
            async move { operator.set_policy(policy).await.map(drop) }
        })
        .await?;
        refused("policy 1,001", operator.set_policy(policy(998)).await, no, "1000 policies")?;
        let request = csr("", "someone")?.der;
        let add = |at: usize| AddOperatorRequest {
            name: format!("o{at}"),
            role: "viewer".into(),
            csr: request.clone(),
        };
        fill(&operator, 999, |mut operator, at| {
            let add = add(at);
            async move { operator.add_operator(add).await.map(drop) }
        })
        .await?;
        refused("operator 1,001", operator.add_operator(add(999)).await, no, "1000 operators")?;
        operator.add_operator(add(0)).await.context("one that is there gets new credentials")?;

        let mut puppet = Puppet::enrol(&coordinator, "h1", 1).await?;
        let mut session = puppet.connect().await?;
        puppet.serve(&mut session).await?;
        let id = operator.rotate(rotation(1)).await?.into_inner().id;
        let mut watches = Vec::new();
        for at in 0..256 {
            // At most 32 streams on one connection.
            if at % 30 == 0 {
                operator = coordinator.operator().await?;
            }
            watches.push(operator.watch_rotation(RotationRequest { id: id.clone() }).await?);
        }
        let more = coordinator.operator().await?.watch_rotation(RotationRequest { id: id.clone() }).await;
        refused("watcher 257", more, no, "256 rotations are being watched")?;
        watches.clear();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut operator = coordinator.operator().await?;
        while operator.watch_rotation(RotationRequest { id: id.clone() }).await.is_err() {
            ensure!(Instant::now() < deadline, "watchers that went keep their places");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })
}

/// So many calls, some at a time.
async fn fill<F: Future<Output = Result<(), tonic::Status>>>(
    operator: &Operator,
    number: usize,
    call: impl Fn(Operator, usize) -> F,
) -> Result<()> {
    for at in 0..number {
        call(operator.clone(), at).await.with_context(|| format!("number {at}"))?;
    }
    Ok(())
}

#[test]
fn a_greedy_address_does_not_keep_others_out() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let address = coordinator.address().parse()?;
        let greedy = IpAddr::from(Ipv4Addr::new(127, 0, 0, 9));
        // They connect and say nothing.
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            let socket = TcpSocket::new_v4()?;
            socket.bind((greedy, 0).into())?;
            silent.push(socket.connect(address).await?);
        }
        // One more is closed, at once.
        let socket = TcpSocket::new_v4()?;
        socket.bind((greedy, 0).into())?;
        let mut more = socket.connect(address).await?;
        let closed = tokio::time::timeout(Duration::from_secs(5), more.read(&mut [0; 1])).await;
        ensure!(matches!(closed, Ok(Ok(0) | Err(_))), "connection {} was kept", CONNECTIONS + 1);
        // Others come in as ever, long before those are dropped.
        let before = Instant::now();
        let mut operator = coordinator.operator().await?;
        operator.status(StatusRequest {}).await?;
        Puppet::enrol(&coordinator, "h1", 1).await?.connect().await?;
        ensure!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
        drop(silent);
        Ok(())
    })
}

#[test]
fn a_flood_of_bad_enrolments_is_counted_and_slows_nobody() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let mut operator = coordinator.operator().await?;
        let mut good = Puppet::enrol(&coordinator, "good", 1).await?;
        let mut session = good.connect().await?;
        let token = open_token(&coordinator.invite("h1", 0).await?)?;
        let request = |csr: Vec<u8>| EnrolRequest {
            token_id: token.id.clone(),
            secret: "guess".into(),
            csr,
            agent_version: "wire".into(),
        };
        let client = async || -> Result<EnrolmentClient<tonic::transport::Channel>> {
            let config = channel::client_config(Trust::Pin(token.ca_pin[..].try_into()?), None)?;
            Ok(EnrolmentClient::new(channel::connect(&coordinator.address(), config).await?))
        };
        let der = csr("", "h1")?.der;
        refused(
            "a CSR of 40 KiB",
            client().await?.enrol(request(vec![0; 40 << 10])).await,
            Code::OutOfRange,
            "too large",
        )?;
        let mut flood = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (mut client, request) = (client().await?, request(der.clone()));
            flood.spawn(async move {
                let mut refused = 0;
                for _ in 0..100 {
                    let answer = client.enrol(request.clone()).await;
                    refused +=
                        usize::from(answer.is_err_and(|status| status.code() == Code::PermissionDenied));
                }
                refused
            });
        }
        // Meanwhile a host gets its certificate.
        good.serve(&mut session).await.context("the flood kept a good host waiting")?;
        let refused: usize = flood.join_all().await.into_iter().sum();
        ensure!(refused == 2_000, "{refused} of 2000 were refused");
        let entries = ask::audit(&mut operator).await?;
        let audited = entries
            .iter()
            .filter(|(action, outcome, _)| action == "host.enrol" && outcome == "refused")
            .count();
        ensure!((1..1_000).contains(&audited), "{audited} of 2000 are audited");
        Ok(())
    })
}

#[test]
fn a_removed_host_leaves_nothing_and_comes_back_clean() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let mut operator = coordinator.operator().await?;
        let big = Puppet::enrol(&coordinator, "h1", 0).await?;
        let mut session = big.connect().await?;
        // More chunks than one commit may delete: what is so long gets a chunk of its own.
        let long = |at: usize| Installation {
            names: vec!["n".repeat(39_000)],
            ..installation(&format!("/srv/{at:03}"), "x.wire.test", None)
        };
        let first = inventory((0..40).map(long).collect());
        let second = inventory((40..80).map(long).collect());
        let second = InventoryDelta { base_digest: first.digest.clone(), ..second };
        session.send(ToCoordinator::Inventory(first)).await?;
        session.send(ToCoordinator::Inventory(second)).await?;
        let request = || HostRequest { name: "h1".into() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while operator.show_host(request()).await?.into_inner().installations.len() < 80 {
            ensure!(Instant::now() < deadline, "80 installations are not on record");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A renewal is open, and will never be done.
        session.next_that(an_order).await?;
        operator.remove_host(request()).await?;
        refused("a host that is gone", operator.show_host(request()).await, Code::NotFound, "h1")?;
        ensure!(session.next_that(an_order).await.is_err(), "its session goes on");

        let mut again = Puppet::enrol(&coordinator, "h1", 1).await?;
        let mut session = again.connect().await?;
        again.serve(&mut session).await.context("the new host waits for the old one's renewal")?;
        let shown = operator.show_host(request()).await?.into_inner();
        ensure!(shown.installations.len() == 1, "{} installations", shown.installations.len());
        Ok(())
    })
}

#[test]
fn authorities_are_bounded() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let mut operator = coordinator.operator().await?;
        let there =
            operator.list_authorities(ListAuthoritiesRequest {}).await?.into_inner().authorities.len();
        let prepare = |at: usize| PrepareAuthorityRequest { name: format!("n{at}") };
        fill(&operator, 200 - there, |mut operator, at| async move {
            operator.prepare_authority(prepare(at)).await.map(drop)
        })
        .await?;
        let more = operator.prepare_authority(prepare(200)).await;
        refused("authority 201", more, Code::ResourceExhausted, "200 authorities")?;
        operator
            .prepare_authority(prepare(0))
            .await
            .context("one that is there begins its ceremony again")?;
        Ok(())
    })
}

#[test]
fn rotations_and_their_rows_are_bounded() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let mut operator = coordinator.operator().await?;
        let mut puppet = Puppet::enrol(&coordinator, "h1", 101).await?;
        let mut session = puppet.connect().await?;
        while puppet.held.iter().any(|held| held.2.is_none()) {
            puppet.serve(&mut session).await?;
        }
        // The host is away: what is ordered now stays open.
        drop(session);
        let id = operator.rotate(rotation(1)).await?.into_inner().id;
        let exclude = ExcludeHostRequest { rotation: id.clone(), host: "h1".into(), reason: "test".into() };
        operator.exclude_host(exclude).await?;
        let excluded = ask::until("101 excluded targets", 20, || {
            let (mut operator, id) = (operator.clone(), id.clone());
            async move {
                let shown = ask::show(&mut operator, &id).await?;
                let number = shown.targets.get(&(TargetState::Excluded as u32)).copied();
                Ok((number == Some(101)).then_some(shown))
            }
        })
        .await?;
        ensure!(excluded.excluded.len() == 100, "{} rows", excluded.excluded.len());
        let abort = |id: &str| ControlRotationRequest {
            id: id.into(),
            action: RotationAction::Abort.into(),
            reason: "test".into(),
            ..ControlRotationRequest::default()
        };
        operator.control_rotation(abort(&id)).await?;
        ask::in_state(&operator, &id, RotationState::Aborted).await?;

        let one = |at: usize| RotateRequest {
            selection: Some(Selection { names: vec![format!("s{at}.h1.wire.test")], ..Selection::default() }),
            ..rotation(u8::try_from(at + 2).unwrap_or_default())
        };
        fill(&operator, 100, |mut operator, at| async move { operator.rotate(one(at)).await.map(drop) })
            .await?;
        refused("rotation 101", operator.rotate(one(100)).await, Code::ResourceExhausted, "100 rotations")?;
        let same = operator.rotate(one(0)).await.context("one that is there is found again")?.into_inner().id;
        operator.control_rotation(abort(&same)).await?;
        ask::in_state(&operator, &same, RotationState::Aborted).await?;
        operator.rotate(one(100)).await.context("one has ended, and there is no room")?;
        Ok(())
    })
}

#[test]
fn excluded_hosts_are_bounded() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let (mut operator, _puppet, session) = ask::one_host(&coordinator, 1).await?;
        drop(session);
        // Every host may join a rotation away from an issuer.
        let id = operator.rotate(ask::from_a("100%")).await?.into_inner().id;
        let exclude = |at: usize| ExcludeHostRequest {
            rotation: id.clone(),
            host: format!("x{at}"),
            reason: "test".into(),
        };
        for at in 0..=100 {
            let name = format!("x{at}");
            operator.invite_host(InviteHostRequest { name, ..InviteHostRequest::default() }).await?;
        }
        fill(&operator, 100, |mut operator, at| {
            let exclude = exclude(at);
            async move { operator.exclude_host(exclude).await.map(drop) }
        })
        .await?;
        let more = operator.exclude_host(exclude(100)).await;
        refused("host 101", more, Code::ResourceExhausted, "100 excluded hosts")?;
        operator.exclude_host(exclude(0)).await.context("one that is excluded is so still")?;
        Ok(())
    })
}

#[test]
fn connections_without_a_certificate_are_bounded() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let token = open_token(&coordinator.invite("h1", 0).await?)?;
        let config = channel::client_config(Trust::Pin(token.ca_pin[..].try_into()?), None)?;
        let address = coordinator.address();
        let guess = async |channel: &Channel| {
            let request = EnrolRequest { secret: "guess".into(), ..EnrolRequest::default() };
            let answer = EnrolmentClient::new(channel.clone()).enrol(request).await;
            answer.err().map(|status| status.code())
        };
        let mut strangers = Vec::new();
        for at in 0..1_024 {
            let stranger = channel::connect(&address, config.clone()).await?;
            // Each has its place: it is heard.
            let said = guess(&stranger).await;
            ensure!(said == Some(Code::PermissionDenied), "stranger {at}: {said:?}");
            strangers.push(stranger);
        }
        if let Ok(more) = channel::connect(&address, config.clone()).await {
            let said = guess(&more).await;
            ensure!(
                said.is_some_and(|code| code != Code::PermissionDenied),
                "stranger 1,025 is heard: {said:?}"
            );
        }
        // Whoever has a certificate comes in as ever.
        coordinator.operator().await?.status(StatusRequest {}).await?;
        strangers.pop();
        ask::until("room for another stranger", 20, || async {
            let Ok(again) = channel::connect(&address, config.clone()).await else { return Ok(None) };
            Ok((guess(&again).await == Some(Code::PermissionDenied)).then_some(()))
        })
        .await
    })
}

#[test]
fn streams_and_exports_are_bounded() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let (mut operator, _puppet, session) = ask::one_host(&coordinator, 1).await?;
        drop(session);
        let id = operator.rotate(rotation(1)).await?.into_inner().id;
        let request = || RotationRequest { id: id.clone() };
        let mut watches = Vec::new();
        for _ in 0..32 {
            watches.push(operator.watch_rotation(request()).await?);
        }
        let mut waiting = Box::pin(async { operator.clone().status(StatusRequest {}).await });
        let early = tokio::time::timeout(Duration::from_secs(1), &mut waiting).await;
        ensure!(early.is_err(), "stream 33 of a connection did not wait: {early:?}");
        coordinator.operator().await?.status(StatusRequest {}).await.context("another connection")?;
        watches.pop();
        tokio::time::timeout(Duration::from_secs(20), waiting).await.context("a place is free")??;
        drop(watches);

        // A store that is larger than what may be on its way to one who does not read.
        let big = Puppet::enrol(&coordinator, "big", 0).await?;
        let session = big.connect().await?;
        let long = |at: usize| Installation {
            names: vec!["n".repeat(39_000)],
            ..installation(&format!("/srv/{at:03}"), "x.wire.test", None)
        };
        let first = inventory((0..40).map(long).collect());
        let second = inventory((40..80).map(long).collect());
        let second = InventoryDelta { base_digest: first.digest.clone(), ..second };
        session.send(ToCoordinator::Inventory(first)).await?;
        session.send(ToCoordinator::Inventory(second)).await?;
        ask::until("80 installations on record", 20, || {
            let mut operator = operator.clone();
            async move {
                let shown = operator.show_host(HostRequest { name: "big".into() }).await?.into_inner();
                Ok((shown.installations.len() == 80).then_some(()))
            }
        })
        .await?;
        let mut exports = Vec::new();
        for _ in 0..4 {
            let mut operator = coordinator.operator().await?;
            exports.push(operator.export_store(ExportStoreRequest {}).await?.into_inner());
        }
        let more = operator.export_store(ExportStoreRequest {}).await;
        refused("export 5", more, Code::ResourceExhausted, "4 exports")?;
        let mut first = exports.swap_remove(0);
        while first.message().await?.is_some() {}
        ask::until("a place for another export", 20, || {
            let mut operator = operator.clone();
            async move { Ok(operator.export_store(ExportStoreRequest {}).await.ok()) }
        })
        .await?;
        Ok(())
    })
}

#[test]
fn a_stream_without_hello_ends() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let puppet = Puppet::enrol(&coordinator, "h1", 1).await?;
        let channel = channel::connect(&coordinator.address(), puppet.identity.tls()?).await?;
        let (_silent, messages) = tokio::sync::mpsc::channel::<AgentMessage>(1);
        let before = Instant::now();
        let mut stream = AgentClient::new(channel).session(ReceiverStream::new(messages)).await?.into_inner();
        let said = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
        refused("silence", said.context("it is still open")?, Code::DeadlineExceeded, "no Hello")?;
        ensure!(before.elapsed() >= Duration::from_secs(9), "after {:?}", before.elapsed());
        Ok(())
    })
}

#[test]
fn a_result_may_be_signed_by_the_identity_before() -> Result<()> {
    ask::runtime().block_on(async {
        let coordinator = started().await?;
        let mut puppet = Puppet::enrol(&coordinator, "h1", 1).await?;
        let mut session = puppet.connect().await?;
        let order = session.next_that(an_order).await?;
        puppet.obtain(&mut session, &order).await?;
        let result = puppet.identity.sign(&puppet.payload(&order, TargetState::Verified)?)?;
        puppet.identity = puppet.identity.renew().await?;
        let mut session = puppet.connect().await?;
        session.send(ToCoordinator::Result(result)).await?;
        let taken = session.next_that(an_ack).await?;
        ensure!(taken == order.batch, "{taken}");
        ensure!(coordinator.metric("reseal_targets_total{state=\"verified\"}")? == 1, "it does not count");
        Ok(())
    })
}
