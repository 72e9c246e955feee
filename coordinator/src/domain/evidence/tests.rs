//! A whole bundle made with real keys, then every way to tamper with it.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    string::Ia5String,
};
use reseal_proto::facts::{self, sha256};
use reseal_proto::v1::{EndpointProof, EvidencePayload, Grade, TargetProof, TargetState};
use time::OffsetDateTime;

use super::*;

/// When the coordinator takes results in these tests.
const RECEIVED: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

struct Signer {
    key: EcdsaKeyPair,
    der: Vec<u8>,
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }
}

/// A fleet with a control plane, two issuers and an evidence signer.
struct Fleet {
    control: Authority,
    evidence: Signer,
    a: Authority,
    b: Authority,
}

fn params(from: i64, to: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::from_unix_timestamp(from).unwrap();
    params.not_after = OffsetDateTime::from_unix_timestamp(to).unwrap();
    params
}

fn authority(name: &str) -> Authority {
    let mut params = params(RECEIVED - 400 * DAY, RECEIVED + 4000 * DAY);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    Authority { issuer: Issuer::new(params, key), der }
}

fn signer(control: &Authority, uri: &str, from: i64, to: i64) -> Signer {
    let key = KeyPair::generate().unwrap();
    let mut params = params(from, to);
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri.to_owned()).unwrap())];
    let der = params.signed_by(&key, &control.issuer).unwrap().der().to_vec();
    let pkcs8 = key.serialize_der();
    Signer { key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).unwrap(), der }
}

fn agent(fleet: &Fleet, host: &str) -> Signer {
    let uri = format!("spiffe://demo/host/{host}");
    signer(&fleet.control, &uri, RECEIVED - DAY / 2, RECEIVED + DAY / 2)
}

fn leaf(issuer: &Authority, name: &str) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params = params(RECEIVED - DAY, RECEIVED + 90 * DAY);
    params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from(name.to_owned()).unwrap())];
    params.signed_by(&key, &issuer.issuer).unwrap().der().to_vec()
}

impl Fleet {
    fn new() -> Self {
        let control = authority("control plane");
        let evidence =
            signer(&control, "spiffe://demo/coordinator", RECEIVED - 300 * DAY, RECEIVED + 3000 * DAY);
        Self { evidence, a: authority("A"), b: authority("B"), control }
    }

    fn anchor(&self) -> [u8; 32] {
        sha256(&self.control.der)
    }

    fn issuer(&self, name: &str, authority: &Authority) -> IssuerRecord {
        let certificate = facts::parse(&authority.der).unwrap();
        IssuerRecord {
            name: name.into(),
            subject: certificate.subject().to_string(),
            fingerprint: Hex(sha256(&authority.der).to_vec()),
            spki: Hex(sha256(certificate.public_key().raw).to_vec()),
            certificate: Base64(authority.der.clone()),
        }
    }

    /// A signed and countersigned batch of these proofs.
    fn batch(&self, agent: &Signer, payload: &EvidencePayload, leaves: &[Vec<u8>]) -> BatchRecord {
        let bytes = payload.encode_to_vec();
        let signature = agent.sign(&bytes);
        let mut record = BatchRecord {
            host: payload.host.clone(),
            batch: payload.batch.clone(),
            payload: Base64(bytes),
            signature: Base64(signature),
            identity: Base64(agent.der.clone()),
            countersignature: Base64::default(),
            countersignature_signature: Base64::default(),
            leaves: leaves.iter().cloned().map(Base64).collect(),
        };
        self.countersign(&mut record, RECEIVED);
        record
    }

    fn countersign(&self, record: &mut BatchRecord, received_at: i64) {
        let covered = [&record.payload.0[..], &record.signature.0, &record.identity.0].concat();
        let message = v1::Countersignature { digest: sha256(&covered).to_vec(), received_at, epoch: 7 };
        record.countersignature = Base64(message.encode_to_vec());
        record.countersignature_signature = Base64(self.evidence.sign(&record.countersignature.0));
    }

    /// Counts, then signs: the file a coordinator would make of this body.
    fn seal(&self, mut body: Body) -> Vec<u8> {
        body.summary = summarise(&body.batches, &body.residual).unwrap();
        self.seal_as_is(body)
    }

    fn seal_as_is(&self, body: Body) -> Vec<u8> {
        seal(body, |bytes| self.evidence.sign(bytes))
    }
}

fn proof(installation: &str, leaf: &[u8]) -> TargetProof {
    let after = sha256(leaf).to_vec();
    TargetProof {
        installation: installation.into(),
        label: "web/site".into(),
        before: vec![1; 32],
        after: after.clone(),
        state: TargetState::Verified.into(),
        grade: Grade::Probe.into(),
        endpoints: vec![EndpointProof {
            address: "10.0.0.1:443".into(),
            sni: "www.example.test".into(),
            vantage: "host".into(),
            handshakes: 3,
            served: after,
            versions: vec!["TLSv1.3".into()],
            chain_valid: true,
            at: RECEIVED - 2,
        }],
        ..Default::default()
    }
}

fn payload(host: &str, batch: &str, targets: Vec<TargetProof>) -> EvidencePayload {
    EvidencePayload {
        format: 1,
        fleet: "demo".into(),
        host: host.into(),
        rotation: "r7".into(),
        batch: batch.into(),
        epoch: 7,
        started_at: RECEIVED - 10,
        finished_at: RECEIVED - 1,
        agent_version: "0.1.0".into(),
        targets,
    }
}

fn target(host: &str, installation: &str) -> TargetRecord {
    TargetRecord {
        host: host.into(),
        installation: installation.into(),
        label: "web/site".into(),
        reason: None,
    }
}

/// Two hosts verified, one straggler, one relying party untested.
fn body(fleet: &Fleet) -> Body {
    let batches = ["web-1", "web-2"].map(|host| {
        let (one, two) = (leaf(&fleet.b, "www.example.test"), leaf(&fleet.b, "api.example.test"));
        let proofs = vec![proof("/tls/site.crt", &one), proof("/tls/api.crt", &two)];
        fleet.batch(&agent(fleet, host), &payload(host, "r7.0", proofs), &[one, two])
    });
    let mut body = Body {
        fleet: "demo".into(),
        rotation: RotationRecord {
            id: "r7".into(),
            reason: "key found on a laptop".into(),
            operator: "alice".into(),
            selection: SelectionRecord {
                compromised_issuer: "builtin/a".into(),
                host_labels: [("env".to_owned(), "prod".to_owned())].into(),
                ..Default::default()
            },
            compromised: Some(fleet.issuer("builtin/a", &fleet.a)),
            to_issuer: fleet.issuer("builtin/b", &fleet.b),
            state: "trailing".into(),
            created_at: Moment(RECEIVED - 60),
            ended_at: None,
            as_of: Moment(RECEIVED + 60),
            waves: vec![1, 3],
            max_failures: "2%".into(),
        },
        summary: Summary::default(),
        residual: Residual {
            stragglers: vec![target("web-3", "/tls/site.crt")],
            relying_parties: vec![RelyingPartyRecord {
                host: "web-1".into(),
                container: "api".into(),
                bundle: "managed-root".into(),
                verdict: Verdict::Untested,
            }],
            ..Default::default()
        },
        control_ca: Base64(fleet.control.der.clone()),
        evidence_certificate: Base64(fleet.evidence.der.clone()),
        batches: batches.into(),
    };
    body.summary = summarise(&body.batches, &body.residual).unwrap();
    body
}

/// The whole chain of an error, for `contains`.
fn why(result: Result<Verified, EvidenceError>) -> String {
    let error = result.expect_err("this must not verify");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[track_caller]
fn refused(fleet: &Fleet, bytes: &[u8], because: &str) {
    let text = why(verify(bytes, fleet.anchor()));
    assert!(text.contains(because), "wanted {because:?}, got {text:?}");
}

#[test]
fn a_good_file_says_what_it_proves() {
    let fleet = Fleet::new();
    // The identities expired half a day after the results; nothing here asks what time it is.
    let verified = verify(&fleet.seal(body(&fleet)), fleet.anchor()).unwrap();
    let summary = &verified.summary;
    assert_eq!((summary.targets, summary.verified, summary.stragglers), (5, 4, 1));
    assert_eq!((summary.hosts, summary.batches, summary.endpoints), (3, 2, 4));
    assert_eq!((summary.handshakes, summary.grades.probe), (12, 4));
    assert!(!verified.replaced && !verified.contained, "a straggler is left");
    assert_eq!(verified.received, Some((Moment(RECEIVED), Moment(RECEIVED))));
    assert!(verified.trusted[0].contains(&hex::encode(fleet.anchor())));
    assert!(verified.warnings.iter().any(|line| line.contains("replaced is not contained")));
}

#[test]
fn replaced_and_contained_need_everything() {
    let fleet = Fleet::new();
    let mut all = body(&fleet);
    all.residual.stragglers.clear();
    let verified = verify(&fleet.seal(all.clone()), fleet.anchor()).unwrap();
    assert!(verified.replaced && !verified.contained, "nobody tested the relying party");
    all.residual.relying_parties[0].verdict = Verdict::Refuses;
    let verified = verify(&fleet.seal(all.clone()), fleet.anchor()).unwrap();
    assert!(verified.replaced && verified.contained);
    all.residual.unmanaged.push(target("db-1", "/srv/legacy.crt"));
    let file = fleet.seal(all.clone());
    let verified = verify(&file, fleet.anchor()).unwrap();
    assert!(verified.replaced && !verified.contained, "one is left that nobody looks after");
    assert!(verified.warnings[0].starts_with("1 certificates of the compromised issuer"));
    assert_eq!(verified.summary.targets, 4, "it is no target");
    all.residual.unmanaged.clear();
    assert!(!String::from_utf8(fleet.seal(all.clone())).unwrap().contains("unmanaged"));
    all.residual.relying_parties.clear();
    let verified = verify(&fleet.seal(all), fleet.anchor()).unwrap();
    assert!(!verified.contained, "nobody listed is nobody proved");
}

#[test]
fn every_changed_byte_fails() {
    let fleet = Fleet::new();
    let good = fleet.seal(body(&fleet));
    assert!(verify(&good, fleet.anchor()).is_ok());
    let mut bytes = good.clone();
    for at in 0..bytes.len() {
        // The bit of letter case, too: it is what JSON, hex and base64 might forgive.
        for bit in [0x01, 0x20] {
            bytes[at] ^= bit;
            assert!(verify(&bytes, fleet.anchor()).is_err(), "byte {at} ^ {bit:#x}");
            bytes[at] ^= bit;
        }
    }
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        assert!(verify(&good[..cut], fleet.anchor()).is_err(), "cut at {cut}");
    }
    for (at, extra) in [(0, " "), (1, "\n"), (good.len(), "\n"), (good.len(), " ")] {
        let mut longer = good.clone();
        longer.splice(at..at, extra.bytes());
        assert!(verify(&longer, fleet.anchor()).is_err(), "{extra:?} at {at}");
    }
}

#[test]
fn the_same_values_spelled_otherwise_fail() {
    let fleet = Fleet::new();
    let good = String::from_utf8(fleet.seal(body(&fleet))).unwrap();
    let value: serde_json::Value = serde_json::from_str(&good).unwrap();
    refused(&fleet, serde_json::to_string(&value).unwrap().as_bytes(), "not as it was written");
    refused(&fleet, good.replacen("\"demo\"", "\"d\\u0065mo\"", 1).as_bytes(), "not as it was written");
    // The moment itself: base64 may end in a Z, too.
    let (before, moment) = good.split_once("\"created_at\": \"").unwrap();
    let otherwise = format!("{before}\"created_at\": \"{}", moment.replacen('Z', "+00:00", 1));
    refused(&fleet, otherwise.as_bytes(), "not as it was written");
    refused(&fleet, good.replacen("{", "{\n  \"more\": 1,", 1).as_bytes(), "not an evidence file");
    refused(&fleet, good.replacen("evidence/1", "evidence/2", 1).as_bytes(), "format");
}

#[test]
fn the_other_form_of_the_signature_fails() {
    let fleet = Fleet::new();
    let mut bundle: Bundle = serde_json::from_slice(&fleet.seal(body(&fleet))).unwrap();
    bundle.signature.0 = signature::tests::mirrored(&bundle.signature.0);
    refused(&fleet, &file_bytes(&bundle), "signature of the evidence file");
}

#[test]
fn a_foreign_anchor_fails() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let text = why(verify(&fleet.seal(body(&fleet)), other.anchor()));
    assert!(text.contains("not to the anchor"), "{text}");
    // The attacker's own CA, with the true CA's fingerprint claimed for it.
    let mut forged = body(&fleet);
    forged.evidence_certificate = Base64(other.evidence.der.clone());
    refused(&fleet, &other.seal(forged), "evidence certificate is not good: it is not signed by");
}

#[test]
fn only_a_coordinator_may_sign() {
    let fleet = Fleet::new();
    let agent = agent(&fleet, "web-1");
    let mut forged = body(&fleet);
    forged.evidence_certificate = Base64(agent.der.clone());
    refused(&fleet, &seal(forged, |bytes| agent.sign(bytes)), "belongs to spiffe://demo/host/web-1");
    refused(&fleet, &seal(body(&fleet), |bytes| agent.sign(bytes)), "signature of the evidence file");
}

#[test]
fn forged_batches_fail() {
    let fleet = Fleet::new();
    let one = leaf(&fleet.b, "www.example.test");
    let of = |host: &str, batch: &str| payload(host, batch, vec![proof("/tls/site.crt", &one)]);
    let with = |record: BatchRecord| {
        let mut body = body(&fleet);
        body.batches[0] = record;
        fleet.seal(body)
    };
    let leaves = [one.clone()];
    let (web1, web2) = (agent(&fleet, "web-1"), agent(&fleet, "web-2"));

    let good = fleet.batch(&web1, &of("web-1", "r7.0"), &leaves);
    assert!(verify(&with(good.clone()), fleet.anchor()).is_ok(), "the frame of this test is good");

    refused(
        &fleet,
        &with(fleet.batch(&web2, &of("web-1", "r7.0"), &leaves)),
        "belongs to spiffe://demo/host/web-2",
    );
    let mut renamed = fleet.batch(&web2, &of("web-2", "r7.1"), &leaves);
    renamed.host = "web-1".into();
    refused(&fleet, &with(renamed), "belongs to spiffe://demo/host/web-2");
    let mut other_payload = fleet.batch(&web1, &of("web-2", "r7.0"), &leaves);
    other_payload.host = "web-1".into();
    refused(&fleet, &with(other_payload), "says another host");
    let mut other_batch = good.clone();
    other_batch.batch = "r7.1".into();
    refused(&fleet, &with(other_batch), "says another batch");
    let foreign = EvidencePayload { rotation: "r6".into(), ..of("web-1", "r7.0") };
    refused(&fleet, &with(fleet.batch(&web1, &foreign, &leaves)), "says another rotation");
    let foreign = EvidencePayload { fleet: "prod".into(), ..of("web-1", "r7.0") };
    refused(&fleet, &with(fleet.batch(&web1, &foreign, &leaves)), "says another fleet");
    let ahead = EvidencePayload { epoch: 8, ..of("web-1", "r7.0") };
    refused(&fleet, &with(fleet.batch(&web1, &ahead, &leaves)), "says another epoch");

    let mut resigned = good.clone();
    resigned.signature = Base64(web2.sign(&resigned.payload.0));
    fleet.countersign(&mut resigned, RECEIVED);
    refused(&fleet, &with(resigned), "signature of the agent of batch r7.0");
    let mut swapped = good.clone();
    swapped.payload =
        Base64(EvidencePayload { finished_at: RECEIVED, ..of("web-1", "r7.0") }.encode_to_vec());
    refused(&fleet, &with(swapped), "the countersigned result");
    let mut uncountersigned = good;
    uncountersigned.countersignature_signature = Base64(web1.sign(&uncountersigned.countersignature.0));
    refused(&fleet, &with(uncountersigned), "the countersignature");
}

#[test]
fn an_identity_that_had_expired_fails() {
    let fleet = Fleet::new();
    let mut late = body(&fleet);
    fleet.countersign(&mut late.batches[0], RECEIVED + DAY);
    late.rotation.as_of = Moment(RECEIVED + 2 * DAY);
    refused(&fleet, &fleet.seal(late), "was not valid at");
    let mut early = body(&fleet);
    fleet.countersign(&mut early.batches[0], RECEIVED - DAY);
    refused(&fleet, &fleet.seal(early), "was not valid at");
}

#[test]
fn an_evidence_certificate_that_was_not_yet_valid_fails() {
    let mut fleet = Fleet::new();
    fleet.evidence =
        signer(&fleet.control, "spiffe://demo/coordinator", RECEIVED + 10, RECEIVED + 3000 * DAY);
    refused(&fleet, &fleet.seal(body(&fleet)), "the evidence certificate is not good: it was not valid at");
}

#[test]
fn a_verified_target_must_be_proved() {
    let fleet = Fleet::new();
    let agent = agent(&fleet, "web-1");
    let (one, under_a) = (leaf(&fleet.b, "www.example.test"), leaf(&fleet.a, "www.example.test"));
    let with = |proof: TargetProof, leaves: &[Vec<u8>]| {
        let mut body = body(&fleet);
        body.batches[0] = fleet.batch(&agent, &payload("web-1", "r7.0", vec![proof]), leaves);
        fleet.seal(body)
    };
    let leaves = [one.clone()];
    let good = proof("/tls/site.crt", &one);
    assert!(verify(&with(good.clone(), &leaves), fleet.anchor()).is_ok());

    refused(&fleet, &with(good.clone(), &[]), "none of the certificates issued");
    refused(&fleet, &with(good.clone(), &[one.clone(), under_a.clone()]), "not signed by the new issuer");
    refused(&fleet, &with(proof("/tls/site.crt", &under_a), &[under_a]), "not signed by the new issuer");
    let mut stale = good.clone();
    stale.endpoints[0].served = vec![1; 32];
    refused(&fleet, &with(stale, &leaves), "10.0.0.1:443 served 0101");
    let mut silent = good.clone();
    silent.endpoints[0].handshakes = 0;
    refused(&fleet, &with(silent, &leaves), "nobody shook hands");
    let nothing = TargetProof { after: Vec::new(), ..good.clone() };
    refused(&fleet, &with(nothing, &leaves), "no SHA-256 fingerprint");

    let mut unprobed = good;
    unprobed.endpoints.clear();
    let verified = verify(&with(unprobed, &leaves), fleet.anchor()).unwrap();
    assert_eq!(verified.summary.grades.unknown, 1, "a probe without an endpoint is no probe");
}

#[test]
fn the_new_issuer_must_be_another_key() {
    let fleet = Fleet::new();
    let mut same = body(&fleet);
    same.rotation.compromised = Some(fleet.issuer("builtin/a", &fleet.b));
    refused(&fleet, &fleet.seal(same), "has the key of the compromised issuer");
    let mut described = body(&fleet);
    described.rotation.to_issuer.spki = Hex(vec![9; 32]);
    refused(&fleet, &fleet.seal(described), "described otherwise");
}

#[test]
fn numbers_and_lists_must_match_the_proofs() {
    let fleet = Fleet::new();
    let mut wrong = body(&fleet);
    wrong.summary.verified += 1;
    refused(&fleet, &fleet.seal_as_is(wrong), "not what its proofs add up to");

    let mut twice = body(&fleet);
    twice.batches.push(twice.batches[0].clone());
    refused(&fleet, &fleet.seal_as_is(twice), "is in the file twice");

    let mut residual = body(&fleet);
    residual.residual.failed.push(target("web-3", "/tls/site.crt"));
    refused(&fleet, &fleet.seal_as_is(residual), "listed twice as residual risk");

    // A failed target that nobody names, or that is named as less.
    let failed = TargetProof {
        installation: "/tls/x.crt".into(),
        state: TargetState::RolledBack.into(),
        ..Default::default()
    };
    let mut hidden = body(&fleet);
    hidden.batches[0] = fleet.batch(&agent(&fleet, "web-1"), &payload("web-1", "r7.0", vec![failed]), &[]);
    refused(&fleet, &fleet.seal_as_is(hidden.clone()), "is failed but is not listed");
    hidden.residual.unserved.push(target("web-1", "/tls/x.crt"));
    refused(&fleet, &fleet.seal_as_is(hidden.clone()), "better than its proof");
    hidden.residual.unserved.clear();
    hidden.residual.failed.push(target("web-1", "/tls/x.crt"));
    assert_eq!(verify(&fleet.seal(hidden), fleet.anchor()).unwrap().summary.failed, 1);
}

#[test]
fn the_lists_may_rate_worse_and_the_newest_result_counts() {
    let fleet = Fleet::new();
    let one = leaf(&fleet.b, "www.example.test");
    let web1 = agent(&fleet, "web-1");
    let failed = TargetProof {
        installation: "/tls/site.crt".into(),
        state: TargetState::Failed.into(),
        ..Default::default()
    };
    let first = fleet.batch(&web1, &payload("web-1", "r7.0", vec![failed]), &[]);
    // Neither the order in the file matters nor a clock that was put back by an hour in
    // between, on the host or here.
    let mut early = payload("web-1", "r7.1", vec![proof("/tls/site.crt", &one)]);
    early.started_at -= 3600;
    let mut second = fleet.batch(&web1, &early, &[one]);
    fleet.countersign(&mut second, RECEIVED - 5);
    let mut retried = body(&fleet);
    retried.batches = vec![second, first];
    retried.residual.stragglers.clear();
    let verified = verify(&fleet.seal(retried.clone()), fleet.anchor()).unwrap();
    assert_eq!((verified.summary.verified, verified.superseded), (1, 1));
    assert!(verified.replaced);

    // The coordinator does not believe it: then it counts as failed, and is said.
    retried.residual.failed.push(target("web-1", "/tls/site.crt"));
    let verified = verify(&fleet.seal(retried), fleet.anchor()).unwrap();
    assert_eq!((verified.summary.verified, verified.summary.failed), (0, 1));
    assert!(verified.warnings.iter().any(|line| line.contains("count as the worse")));
}
