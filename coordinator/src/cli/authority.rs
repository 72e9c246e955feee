//! `reseal authority`: the CA certificates and keys of the built-in CA.
//!
//! `prepare` is the ceremony: the coordinator makes the key and a request, the
//! managed root's key, which is offline, signs it here.

use std::path::PathBuf;

use clap::Subcommand;
use reseal_proto::{facts, v1};

use super::Context;
use super::client::request;
use super::exit::{CliError, Exit};
use super::output::text::{Piece, Text};
use super::output::{Column, Format};
use super::view::{self, AuthorityView};
use super::when;
use crate::issuance::ceremony;

/// CA certificates and keys.
#[derive(Subcommand, Debug)]
pub(crate) enum AuthorityCommand {
    /// List authorities and the root above them. Changes nothing
    List,
    /// Make a new authority: key at the coordinator, signature here, by the offline root (admin)
    #[command(after_help = "Example, with the root's key on a stick:\n  \
        reseal authority prepare c --root-key /media/stick/root.key --kek /media/stick/kek\n\
        The root's key is read here, used once and sent nowhere.")]
    Prepare {
        /// Name of the new authority, such as c
        name: String,
        /// The managed root's wrapped key, as `reseal init` wrote it
        #[arg(long, value_name = "FILE")]
        root_key: PathBuf,
        /// The key-encryption key that unwraps it; may be repeated
        #[arg(long = "kek", value_name = "FILE", required = true)]
        keks: Vec<PathBuf>,
    },
    /// Issue from this authority from now on; the one before becomes old (admin)
    Activate {
        /// Name of a prepared authority
        name: String,
    },
    /// Never issue from this authority's key again (admin). Does not rotate by itself
    #[command(after_help = "Example:\n  reseal authority taint a --reason \"key found on a laptop\"\n\
        `reseal rotate --compromised-issuer a` taints and replaces in one step.")]
    Taint {
        /// Name of the authority
        name: String,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
}

const COLUMNS: [Column<AuthorityView>; 6] = [
    ("AUTHORITY", |row| Piece::bold(&row.name)),
    ("STATE", |row| match row.state.as_str() {
        "active" => Piece::good("active"),
        "tainted" | "revoked" => Piece::bad(&row.state),
        "pending-signature" => Piece::warn(&row.state),
        state => Piece::plain(state),
    }),
    ("CERTS", |row| match row.unmanaged {
        0 => Piece::plain(row.installations),
        number => Piece::plain(format!("{}, {number} not managed", row.installations)),
    }),
    ("EXPIRES", |row| {
        if row.not_after_seconds == 0 {
            Piece::plain("-")
        } else {
            Piece::plain(when::relative(row.not_after_seconds, when::now()))
        }
    }),
    ("FINGERPRINT", |row| Piece::dim(view::short(row.fingerprint.as_deref()))),
    ("SUBJECT", |row| {
        Piece::plain(match &row.reason {
            Some(reason) => format!("{} ({reason})", row.subject),
            None => row.subject.clone(),
        })
    }),
];

const CSV: [&str; 10] = [
    "name",
    "state",
    "subject",
    "fingerprint",
    "subject_key_id",
    "spki_sha256",
    "not_after",
    "installations",
    "unmanaged",
    "reason",
];

/// Runs one of the commands.
pub(super) async fn run(context: &Context, command: AuthorityCommand) -> Result<Exit, CliError> {
    match command {
        AuthorityCommand::List => list(context).await?,
        AuthorityCommand::Prepare { name, root_key, keks } => {
            let mut client = context.connect().await?;
            let message = v1::PrepareAuthorityRequest { name: name.clone() };
            let csr = client.rpc.prepare_authority(request(message)).await?.into_inner().csr;
            let certificate =
                ceremony::sign_authority(&name, &csr, &root_key, &keks, when::now()).map_err(|error| {
                    CliError::Other(anyhow::Error::new(error).context(format!(
                        "the root did not sign authority {name:?}; its key waits, run the same command again"
                    )))
                })?;
            let fingerprint = hex::encode(facts::sha256(&certificate));
            let message = v1::InstallAuthorityRequest { name: name.clone(), certificate };
            client.rpc.install_authority(request(message)).await?;
            let view = serde_json::json!({"name": name, "state": "prepared", "fingerprint": fingerprint});
            context.out.one(&view, &["name", "state", "fingerprint"], || {
                Text::new()
                    .line(format!("authority {name} is prepared, fingerprint {fingerprint}"))
                    .line("take the root's key offline again")
            })?;
        }
        AuthorityCommand::Activate { name } => {
            let mut client = context.connect().await?;
            let message = v1::AuthorityRequest { name: name.clone() };
            client.rpc.activate_authority(request(message)).await?;
            super::done(context, "authority.activated", &name, "authority", "issues from now on")?;
        }
        AuthorityCommand::Taint { name, reason } => {
            let mut client = context.connect().await?;
            let message = v1::TaintAuthorityRequest { name: name.clone(), reason };
            client.rpc.taint_authority(request(message)).await?;
            let next = format!(
                "issues nothing any more; what it issued is still in use: `reseal plan --compromised-issuer {name}`"
            );
            super::done(context, "authority.tainted", &name, "authority", &next)?;
        }
    }
    Ok(Exit::Done)
}

async fn list(context: &Context) -> Result<(), CliError> {
    let mut client = context.connect().await?;
    let reply = client.rpc.list_authorities(request(v1::ListAuthoritiesRequest {})).await?.into_inner();
    let rows: Vec<AuthorityView> = reply.authorities.into_iter().map(Into::into).collect();
    let root = reply.root.map(AuthorityView::from);
    match context.out.format {
        Format::Json => {
            let view = serde_json::json!({"authorities": rows, "root": root});
            context.out.one(&view, &[], Text::new)
        }
        Format::Csv => context.out.list(&rows, &COLUMNS, &CSV, ""),
        Format::Table => {
            let mut text = Text::new().table(&rows, &COLUMNS);
            if let Some(root) = root {
                text = text.line("").line(format!(
                    "Root: {}, {}, fingerprint {}",
                    root.subject,
                    when::relative(root.not_after_seconds, when::now()),
                    root.fingerprint.as_deref().unwrap_or("-"),
                ));
            }
            context.out.text(text)
        }
    }
}
