use super::enrol::accept;
use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use reseal_proto::v1::IdentityReply;

struct Control {
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Control {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&key).unwrap().der().clone();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    fn reply(&self, key: &PrivateKey, uri: &str) -> IdentityReply {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let leaf = params.signed_by(key, &self.issuer).unwrap();
        IdentityReply {
            fleet: "f".into(),
            host: "h1".into(),
            chain: vec![leaf.der().to_vec(), self.ca.to_vec()],
            now: 0,
        }
    }
}

/// A store with an identity of host h1 of fleet f in it.
pub(crate) fn enrolled(state_dir: &Path) -> IdentityStore {
    let store = IdentityStore::new(state_dir);
    let mine = key();
    let reply = Control::new().reply(&mine, "spiffe://f/host/h1");
    let identity = accept(reply, mine, vec!["127.0.0.1:1".to_owned()], |_| true).unwrap();
    store.save(Slot::Current, &identity, false).unwrap();
    store
}

fn key() -> PrivateKey {
    PrivateKey::generate(KeyType::EcdsaP256).unwrap()
}

fn again(key: &PrivateKey) -> PrivateKey {
    PrivateKey::from_pkcs8(KeyType::EcdsaP256, &key.to_pkcs8().unwrap()).unwrap()
}

#[test]
fn only_an_answer_for_us_is_taken() {
    let control = Control::new();
    let mine = key();
    let take = |reply: IdentityReply| accept(reply, again(&mine), Vec::new(), |ca| ca == control.ca.as_ref());
    let good = control.reply(&mine, "spiffe://f/host/h1");
    assert_eq!(take(good.clone()).unwrap().host, "h1");

    let other_key = control.reply(&key(), "spiffe://f/host/h1");
    let other_host = control.reply(&mine, "spiffe://f/host/h2");
    let operator = control.reply(&mine, "spiffe://f/operator/h1");
    let other_ca = Control::new().reply(&mine, "spiffe://f/host/h1");
    // The right CA at the end of a chain that it did not sign.
    let mut mixed = other_ca.clone();
    mixed.chain[1] = control.ca.to_vec();
    let empty = IdentityReply { chain: Vec::new(), ..good.clone() };
    let torn =
        IdentityReply { chain: vec![good.chain[0][..50].to_vec(), control.ca.to_vec()], ..good.clone() };
    for bad in [other_key, other_host, operator, other_ca, mixed, empty, torn] {
        assert!(matches!(take(bad), Err(IdentityError::Reply(_))));
    }
}

#[test]
fn comes_back_from_disk_and_is_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    assert!(store.load(Slot::Current).unwrap().is_none());
    let control = Control::new();
    let mine = key();
    let coordinators = vec!["10.0.0.1:7443".to_owned()];
    let identity =
        accept(control.reply(&mine, "spiffe://f/host/h1"), again(&mine), coordinators.clone(), |_| true)
            .unwrap();
    store.save(Slot::Current, &identity, false).unwrap();
    let loaded = store.load(Slot::Current).unwrap().unwrap();
    assert_eq!(loaded.coordinators, coordinators);
    assert_eq!(loaded.key.spki_sha256(), mine.spki_sha256());
    assert_eq!(loaded.chain, identity.chain);
    let mode = std::fs::metadata(dir.path().join(CURRENT)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    store.save(Slot::Next, &identity, false).unwrap();
    store.promote().unwrap();
    assert!(store.load(Slot::Next).unwrap().is_none());
    assert!(store.load(Slot::Current).unwrap().is_some());

    std::fs::write(dir.path().join(CURRENT), "{}").unwrap();
    assert!(matches!(store.load(Slot::Current), Err(IdentityError::Damaged { .. })));
}

#[test]
fn what_the_disk_does_not_take_lives_in_memory_until_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path();
    let control = Control::new();
    let identity = |key: &PrivateKey| {
        accept(control.reply(key, "spiffe://f/host/h1"), again(key), Vec::new(), |_| true).unwrap()
    };
    let (old, new) = (key(), key());
    let store = IdentityStore::new(state);
    store.save(Slot::Current, &identity(&old), false).unwrap();
    // Where a temporary file would go lies something else: every write fails, for root too.
    let block = || [CURRENT, NEXT, PROBE].map(|name| state.join(format!(".{name}.new")));
    block().iter().for_each(|path| std::fs::create_dir(path).unwrap());
    assert!(store.writable().is_err());
    assert!(store.save(Slot::Next, &identity(&new), false).is_err());
    assert!(store.load(Slot::Next).unwrap().is_none(), "not used: a restart would lock the host out");
    store.save(Slot::Next, &identity(&new), true).unwrap();
    let clone = store.clone();
    assert_eq!(clone.load(Slot::Next).unwrap().unwrap().key.spki_sha256(), new.spki_sha256());
    clone.promote().unwrap();
    assert!(store.load(Slot::Next).unwrap().is_none());
    assert_eq!(store.load(Slot::Current).unwrap().unwrap().key.spki_sha256(), new.spki_sha256());
    let of_disk = || IdentityStore::new(state).load(Slot::Current).unwrap().unwrap().key.spki_sha256();
    assert_eq!(of_disk(), old.spki_sha256());
    store.write_again();
    assert_eq!(store.load(Slot::Current).unwrap().unwrap().key.spki_sha256(), new.spki_sha256());
    block().iter().for_each(|path| std::fs::remove_dir(path).unwrap());
    store.write_again();
    assert_eq!(of_disk(), new.spki_sha256());
    // What somebody stores meanwhile counts: the host was invited again.
    block().iter().for_each(|path| std::fs::create_dir(path).unwrap());
    store.save(Slot::Current, &identity(&new), true).unwrap();
    block().iter().for_each(|path| std::fs::remove_dir(path).unwrap());
    let invited = key();
    IdentityStore::new(state).save(Slot::Current, &identity(&invited), false).unwrap();
    assert_eq!(store.load(Slot::Current).unwrap().unwrap().key.spki_sha256(), invited.spki_sha256());
    store.write_again();
    assert_eq!(of_disk(), invited.spki_sha256());
    assert!(store.writable().is_ok() && !state.join(PROBE).exists());
    assert_eq!(format!("{store:?}"), format!("IdentityStore({})", state.display()));
}

#[test]
fn an_expired_identity_names_the_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    assert!(matches!(store.usable(0), Err(IdentityError::NotEnrolled)));
    let control = Control::new();
    let mine = key();
    let reply = control.reply(&mine, "spiffe://f/host/h1");
    let identity = accept(reply, mine, Vec::new(), |_| true).unwrap();
    store.save(Slot::Current, &identity, false).unwrap();
    assert!(store.usable(identity.not_after - 1).is_ok());
    let error = store.usable(identity.not_after).unwrap_err().to_string();
    assert!(error.contains("reseal host invite h1"), "{error}");
}

#[test]
fn the_enrolment_key_stays_with_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    let first = store.enrolment_key("t1").unwrap();
    assert_eq!(store.enrolment_key("t1").unwrap().spki_sha256(), first.spki_sha256());
    assert_ne!(store.enrolment_key("t2").unwrap().spki_sha256(), first.spki_sha256());
}

#[test]
fn is_renewed_after_about_two_thirds() {
    let control = Control::new();
    let mine = key();
    let reply = control.reply(&mine, "spiffe://f/host/h1");
    let mut identity = accept(reply, mine, Vec::new(), |_| true).unwrap();
    (identity.not_before, identity.not_after) = (1000, 1000 + 86_400);
    assert_eq!(identity.renew_at(0.0), 1000 + 57_600);
    assert_eq!(identity.renew_at(1.0), 1000 + 48_960);
}

#[tokio::test]
async fn a_damaged_token_is_never_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    let error = store.enrol("reseal1_SECRETSECRET", 0).await.unwrap_err();
    let text = crate::chain_of(&error).to_string();
    assert!(!text.contains("SECRETSECRET"), "{text}");
}
