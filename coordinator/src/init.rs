//! `reseal init`: a fleet out of nothing.
//!
//! Makes the store, the control-plane CA, the managed root with authorities `a`
//! (active) and `b` (prepared), the default policy and the first admin. The
//! root's key goes into a file to be moved offline and is nowhere else.

use std::path::{Path, PathBuf};

use reseal_proto::facts::sha256;
use reseal_proto::identity::{Identity, Role, check_name};
use zeroize::Zeroizing;

use crate::app::now;
use crate::cli::credentials::{Credentials, pem};
use crate::cli::file::NewFile;
use crate::config::Config;
use crate::domain::csr::Request;
use crate::domain::policy;
use crate::issuance::ceremony;
use crate::issuance::control::ControlPlane;
use crate::issuance::keyring::Keyring;
use crate::issuance::profile::{self, OPERATOR_IDENTITY};
use crate::store::record::{Authority, AuthorityState, Fleet, Operator};
use crate::store::{AuditDraft, Commit, Store, StoreError, keys};

/// What to make.
pub struct Options {
    /// Where, and with which key-encryption key.
    pub config: Config,
    /// The fleet's name: the trust domain of every identity.
    pub fleet: String,
    /// Name of the first admin.
    pub admin: String,
    /// Where its credentials go.
    pub admin_out: PathBuf,
    /// Where the root key goes; under the data directory when not said.
    pub root_key_out: Option<PathBuf>,
}

/// What was made.
pub struct Summary {
    /// The fleet's name.
    pub fleet: String,
    /// SHA-256 of the control-plane CA certificate, hex: the anchor of evidence.
    pub anchor: String,
    /// "builtin/a (active)" ...
    pub authorities: Vec<String>,
    /// The admin's credentials.
    pub admin_out: PathBuf,
    /// The root key, to be moved offline.
    pub root_key_out: PathBuf,
}

/// Makes a fleet; refuses to touch one that is there.
pub async fn run(options: Options) -> anyhow::Result<Summary> {
    let Options { config, fleet, admin, admin_out, root_key_out } = options;
    check_name("fleet", &fleet)?;
    check_name("operator", &admin)?;
    let root_key_out = root_key_out.unwrap_or_else(|| config.data_dir.join("offline").join("root.key"));
    anyhow::ensure!(
        !root_key_out.exists(),
        "{} exists already: move it away, or choose another place with --root-key-out",
        root_key_out.display()
    );
    let admin_file = NewFile::reserve(&admin_out, 0o600)?;
    if let Some(first) = config.kek_files.first()
        && !first.exists()
    {
        Keyring::create_file(first)?;
    }
    let keyring = Keyring::load(&config.kek_files)?;
    let store = match Store::create(&config.data_dir, &config.name) {
        // An init that was killed leaves a store without a fleet: it is as good as none.
        Err(StoreError::NotEmpty { .. }) => {
            let store = Store::open(&config.data_dir, &config.name)?;
            let fleet = store.get::<Fleet>(keys::FLEET).await?;
            anyhow::ensure!(
                fleet.is_none(),
                "{} holds a fleet already: choose another data_dir, or serve this one",
                config.data_dir.display()
            );
            store
        }
        made => made?,
    };
    let Made { commit, control_ca, managed_root, root_pkcs8, admin_certificate, admin_key, authorities } =
        make(&fleet, &admin, &keyring, now())?;
    // The files first: a fleet whose root key is nowhere would be worse than none.
    ceremony::write_root(&root_key_out, &fleet, &managed_root, &root_pkcs8, &keyring)?;
    let credentials = Credentials {
        fleet: fleet.clone(),
        coordinators: config.advertise.clone(),
        operator: admin.clone(),
        ca: pem("CERTIFICATE", &control_ca),
        certificate: pem("CERTIFICATE", &admin_certificate),
        key: admin_key.serialize_pem(),
    };
    credentials.write(admin_file)?;
    store.commit(commit).await?;
    Ok(Summary { fleet, anchor: hex::encode(sha256(&control_ca)), authorities, admin_out, root_key_out })
}

/// A fleet, not on record yet.
pub(crate) struct Made {
    /// Records it.
    pub(crate) commit: Commit,
    /// The control-plane CA's certificate, DER.
    pub(crate) control_ca: Vec<u8>,
    /// The managed root's certificate, DER.
    pub(crate) managed_root: Vec<u8>,
    /// Its key, PKCS#8 DER: nowhere else.
    pub(crate) root_pkcs8: Zeroizing<Vec<u8>>,
    /// Of the first admin, DER.
    pub(crate) admin_certificate: Vec<u8>,
    /// Its key.
    pub(crate) admin_key: rcgen::KeyPair,
    /// "builtin/a (active)" ...
    pub(crate) authorities: Vec<String>,
}

/// Makes every key and certificate of a fleet.
pub(crate) fn make(fleet: &str, admin: &str, keyring: &Keyring, now: i64) -> anyhow::Result<Made> {
    let control_key = profile::new_key();
    let control_ca = profile::control_ca(fleet, &control_key, now)?;
    let control = profile::ca("control-plane CA", &control_ca, &Zeroizing::new(control_key.serialize_der()))?;
    let evidence_key = profile::new_key();
    let identity = |role| Identity { fleet: fleet.to_owned(), role };
    let evidence_certificate = profile::evidence(&identity(Role::Coordinator), &evidence_key, &control, now)?;

    let root_key = profile::new_key();
    let managed_root = profile::managed_root(fleet, &root_key, now)?;
    let root_pkcs8 = Zeroizing::new(root_key.serialize_der());
    let root = profile::ca("managed root", &managed_root, &root_pkcs8)?;

    let admin_key = profile::new_key();
    let admin_spki = profile::spki_of(&admin_key);
    let admin_certificate = profile::client(
        &identity(Role::Operator(admin.to_owned())),
        &admin_spki,
        OPERATOR_IDENTITY,
        &control,
        now,
    )?;

    let wrap = |key: &rcgen::KeyPair| Some(keyring.wrap(&Zeroizing::new(key.serialize_der())));
    let mut commit = Commit::new()
        .absent(keys::FLEET)
        .put(
            keys::FLEET,
            &Fleet {
                name: fleet.to_owned(),
                control_ca: control_ca.clone(),
                control_key: wrap(&control_key),
                managed_root: managed_root.clone(),
                created_at: now,
                evidence_certificate,
                evidence_key: wrap(&evidence_key),
            },
        )
        .put(
            keys::operator(admin),
            &Operator {
                role: "admin".into(),
                spki_sha256: sha256(&admin_spki).to_vec(),
                added_at: now,
                expires_at: now + OPERATOR_IDENTITY,
            },
        )
        .put(keys::policy("default"), &policy::default_policy())
        .audit(AuditDraft {
            at: now,
            actor: "coordinator".into(),
            action: "fleet.init".into(),
            object: format!("fleet/{fleet}"),
            outcome: "done".into(),
            detail: format!("first admin {admin}"),
        });
    let mut authorities = Vec::new();
    for (slot, state) in [("a", AuthorityState::Active), ("b", AuthorityState::Prepared)] {
        let key = profile::new_key();
        let name = profile::authority_name(fleet, slot);
        let certificate = profile::intermediate(&name, &profile::spki_of(&key), &root, now)?;
        commit = commit.put(
            keys::authority(slot),
            &Authority {
                state: state.into(),
                certificate,
                key: wrap(&key),
                created_at: now,
                ..Authority::default()
            },
        );
        authorities.push(format!("builtin/{slot} ({})", crate::domain::authority::word(state)));
    }
    Ok(Made { commit, control_ca, managed_root, root_pkcs8, admin_certificate, admin_key, authorities })
}

/// Makes an admin from the store of a stopped coordinator: the way back when every
/// admin's certificate has expired or is lost.
pub async fn recover_admin(config: &Config, admin: &str, out: &Path) -> anyhow::Result<()> {
    check_name("operator", admin)?;
    let file = NewFile::reserve(out, 0o600)?;
    let keyring = Keyring::load(&config.kek_files)?;
    let store = Store::open(&config.data_dir, &config.name)?;
    let control = ControlPlane::load(&store, &keyring).await?;
    let now = now();
    let key = profile::new_key();
    let request = Request::from_der(&ceremony::authority_csr(&key)?)?;
    let certificate = control.certify(Role::Operator(admin.to_owned()), &request, OPERATOR_IDENTITY, now)?;
    let [leaf, ca] = &certificate.chain[..] else {
        anyhow::bail!("the control-plane CA gave no chain");
    };
    let record = Operator {
        role: "admin".into(),
        spki_sha256: certificate.spki_sha256.clone(),
        added_at: now,
        expires_at: certificate.expires_at,
    };
    let credentials = Credentials {
        fleet: control.fleet.clone(),
        coordinators: config.advertise.clone(),
        operator: admin.to_owned(),
        ca: pem("CERTIFICATE", ca),
        certificate: pem("CERTIFICATE", leaf),
        key: key.serialize_pem(),
    };
    credentials.write(file)?;
    let draft = AuditDraft {
        at: now,
        actor: "coordinator".into(),
        action: "operator.recover".into(),
        object: format!("operator/{admin}"),
        outcome: "done".into(),
        detail: "on the coordinator's machine".into(),
    };
    store.commit(Commit::new().put(keys::operator(admin), &record).audit(draft)).await?;
    Ok(())
}
