use std::time::Duration;

use super::*;
use crate::discover::Layout;
use crate::key::{KeyType, PrivateKey};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A root with one intermediate, both made by rcgen.
pub(crate) struct Authority {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf shall be.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) names: Vec<String>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    /// Days from 2020-01-01.
    pub(crate) valid: (u16, u16),
}

impl Leaf {
    pub(crate) fn server(names: &[&str]) -> Self {
        Self {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
            valid: (0, 36_500),
        }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let ca = |name: &str, depth| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let root_key = KeyPair::generate().unwrap();
        let root_params = ca(&format!("{name} root"), 1);
        let root = root_params.self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate().unwrap();
        let params = ca(&format!("{name} intermediate"), 0);
        let intermediate = params.signed_by(&key, &root_issuer).unwrap();
        Self {
            root: root.der().clone(),
            intermediate: intermediate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Leaf first.
    pub(crate) fn issue(&self, key: &impl rcgen::PublicKeyData, leaf: &Leaf) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::new(leaf.names.clone()).unwrap();
        params.extended_key_usages.clone_from(&leaf.usages);
        let day = |n: u16| rcgen::date_time_ymd(2020, 1, 1) + Duration::from_secs(u64::from(n) * 86_400);
        params.not_before = day(leaf.valid.0);
        params.not_after = day(leaf.valid.1);
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        vec![certificate.der().clone(), self.intermediate.clone()]
    }
}

pub(crate) fn wanted(names: &[&str]) -> Wanted {
    Wanted {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        layout: Layout::Pair,
        alias: None,
        usage: Usage::Server,
        key_type: KeyType::EcdsaP256,
        issuer: "builtin".into(),
        owner: None,
        mode: None,
    }
}

fn moment() -> UnixTime {
    // 2026, far from both ends of what the tests issue.
    UnixTime::since_unix_epoch(Duration::from_secs(1_780_000_000))
}

struct Case {
    authority: Authority,
    key: PrivateKey,
}

impl Case {
    fn new() -> Self {
        Self { authority: Authority::new("a"), key: PrivateKey::generate(KeyType::EcdsaP256).unwrap() }
    }

    fn check(&self, chain: &[CertificateDer<'_>], wanted: &Wanted) -> Result<(), &'static str> {
        let anchors = [self.authority.root.clone()];
        validate(chain, wanted, &self.key.spki_sha256(), &anchors, moment())
            .map(drop)
            .map_err(|error| error.code())
    }
}

#[test]
fn a_good_chain_passes() {
    let case = Case::new();
    let names = ["a.test", "10.0.0.5", "*.w.test"];
    let chain = case.authority.issue(&case.key, &Leaf::server(&names));
    assert_eq!(case.check(&chain, &wanted(&names)), Ok(()));
}

#[test]
fn each_mistake_is_found_and_named() {
    let case = Case::new();
    let good = Leaf::server(&["a.test"]);
    let issue = |leaf: &Leaf| case.authority.issue(&case.key, leaf);
    let want = wanted(&["a.test"]);

    let other = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let foreign_key = case.authority.issue(&other, &good);
    assert_eq!(case.check(&foreign_key, &want), Err("key-mismatch"));

    let names = wanted(&["a.test", "b.test"]);
    assert_eq!(case.check(&issue(&good), &names), Err("name-mismatch"));

    let kind = Wanted { key_type: KeyType::EcdsaP384, ..want.clone() };
    assert_eq!(case.check(&issue(&good), &kind), Err("key-type-mismatch"));

    let client = Wanted { usage: Usage::Both, ..want.clone() };
    assert_eq!(case.check(&issue(&good), &client), Err("chain-invalid"));

    for valid in [(0, 100), (30_000, 36_500)] {
        let dated = Leaf { valid, ..good.clone() };
        assert_eq!(case.check(&issue(&dated), &want), Err("chain-invalid"));
    }

    let mut chain = issue(&good);
    chain.insert(1, Authority::new("b").intermediate);
    assert_eq!(case.check(&chain, &want), Err("chain-order"));

    assert_eq!(case.check(&issue(&good)[..1], &want), Err("chain-invalid"));
    assert_eq!(case.check(&[], &want), Err("certificate-unreadable"));
    let torn = CertificateDer::from(issue(&good)[0][..100].to_vec());
    assert_eq!(case.check(&[torn], &want), Err("certificate-unreadable"));

    let stranger = Authority::new("a").issue(&case.key, &good);
    assert_eq!(case.check(&stranger, &want), Err("chain-invalid"));
}

#[test]
fn without_an_anchor_nothing_is_good() {
    let case = Case::new();
    let chain = case.authority.issue(&case.key, &Leaf::server(&["a.test"]));
    let found = validate(&chain, &wanted(&["a.test"]), &case.key.spki_sha256(), &[], moment());
    assert_eq!(found.unwrap_err().code(), "no-anchor");
}

#[test]
fn a_served_chain_is_judged_for_its_name() {
    let case = Case::new();
    let chain = case.authority.issue(&case.key, &Leaf::server(&["a.test", "10.0.0.5"]));
    let anchors = [case.authority.root.clone()];
    let judge = |name: &str| {
        let name = ServerName::try_from(name).unwrap();
        accepted(&chain, &name, &anchors, moment()).map_err(|error| error.code())
    };
    assert_eq!(judge("a.test"), Ok(()));
    assert_eq!(judge("10.0.0.5"), Ok(()));
    assert_eq!(judge("b.test"), Err("name-mismatch"));
}

#[test]
fn what_has_not_begun_by_the_own_clock_waits() {
    let found = CertificateFacts { not_before: 1_000_000, ..CertificateFacts::default() };
    assert!(begun(&found, 1_000_000 - MOST_SKEW).is_ok());
    let early = begun(&found, 1_000_000 - 7200).unwrap_err();
    assert_eq!(early.code(), "chain-invalid");
    assert!(early.to_string().contains("7200 s from now by this host's clock"), "{early}");
}
