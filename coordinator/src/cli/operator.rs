//! `reseal operator`: who may use the command line, and with which role.
//!
//! The new operator's key is made here and written to a file; only a request
//! (PKCS#10) goes to the coordinator.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use rcgen::{CertificateParams, KeyPair};
use reseal_proto::v1;
use zeroize::Zeroize as _;

use super::Context;
use super::client::request;
use super::credentials::{Credentials, pem};
use super::exit::{CliError, Exit};
use super::file::NewFile;
use super::output::Column;
use super::output::text::{Piece, Text};
use super::view::OperatorView;
use super::when;

/// People and programs.
#[derive(Subcommand, Debug)]
pub(crate) enum OperatorCommand {
    /// Add an operator: makes a key here, has it certified, writes a credentials file (admin)
    #[command(after_help = "Example:\n  reseal operator add bob --role operator --out bob.json\n\
        Hand the file to bob; RESEAL_CREDENTIALS or --credentials names it.")]
    Add {
        /// Name of the operator, as the audit log will show it
        name: String,
        /// What the operator may do
        #[arg(long, value_enum)]
        role: Role,
        /// Where the credentials go, mode 0600; an existing file is never overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Make an admin on the coordinator's own machine, when no admin can get in any more
    #[command(
        after_help = "Example, with the coordinator stopped:\n  reseal operator recover alice --config /etc/reseal/reseal.toml --out alice.json\n\
        Needs the store and a key-encryption key: whoever has these owns the fleet anyway. It is audited."
    )]
    Recover {
        /// Name of the admin; an operator of that name gets new credentials
        name: String,
        /// The coordinator's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where the credentials go, mode 0600; an existing file is never overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// List the operators. Changes nothing
    List,
    /// Take an operator's access away, at once (admin); at least one admin remains
    Remove {
        /// Name of the operator
        name: String,
    },
}

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// See everything, change nothing
    Viewer,
    /// Also start and control rotations
    Operator,
    /// Everything
    Admin,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

const COLUMNS: [Column<OperatorView>; 4] = [
    ("NAME", |row| Piece::bold(&row.name)),
    ("ROLE", |row| Piece::plain(&row.role)),
    ("ADDED (UTC)", |row| Piece::plain(when::second(row.added_seconds))),
    ("EXPIRES", |row| {
        let left = when::relative(row.expires_seconds, when::now());
        if row.expires_seconds != 0 && row.expires_seconds < when::now() {
            Piece::bad(left)
        } else {
            Piece::plain(left)
        }
    }),
];

/// Runs one of the commands.
pub(super) async fn run(context: &Context, command: OperatorCommand) -> Result<Exit, CliError> {
    if let OperatorCommand::Recover { name, config, out } = command {
        let config = crate::config::Config::load(&config).map_err(anyhow::Error::from)?;
        crate::init::recover_admin(&config, &name, &out).await?;
        super::output::write(&format!("{name} is an admin; the credentials are in {}\n", out.display()))?;
        return Ok(Exit::Done);
    }
    let mut client = context.connect().await?;
    match command {
        OperatorCommand::Recover { .. } => {}
        OperatorCommand::Add { name, role, out } => {
            let file = NewFile::reserve(&out, 0o600)?;
            let failed = |error: rcgen::Error| CliError::Other(error.into());
            let key = KeyPair::generate().map_err(failed)?;
            let csr = CertificateParams::default().serialize_request(&key).map_err(failed)?;
            let message = v1::AddOperatorRequest {
                name: name.clone(),
                role: role.word().into(),
                csr: csr.der().to_vec(),
            };
            let reply = client.rpc.add_operator(request(message)).await?.into_inner();
            let mut key_pem = key.serialize_pem();
            let credentials = Credentials {
                fleet: reply.fleet,
                coordinators: client.credentials.coordinators.clone(),
                operator: name.clone(),
                ca: client.credentials.ca.clone(),
                certificate: reply.chain.iter().map(|der| pem("CERTIFICATE", der)).collect(),
                key: key_pem.clone(),
            };
            key_pem.zeroize();
            credentials.write(file)?;
            let view = serde_json::json!({
                "name": name, "role": role.word(), "credentials": out.display().to_string(),
            });
            context.out.one(&view, &["name", "role", "credentials"], || {
                Text::new().line(format!(
                    "{name} is {} now; the credentials are in {} and nowhere else",
                    role.word(),
                    out.display()
                ))
            })?;
        }
        OperatorCommand::List => {
            let reply = client.rpc.list_operators(request(v1::ListOperatorsRequest {})).await?;
            let rows: Vec<OperatorView> = reply.into_inner().operators.into_iter().map(Into::into).collect();
            let csv = ["name", "role", "added_at", "expires_at"];
            context.out.list(&rows, &COLUMNS, &csv, "no operators")?;
        }
        OperatorCommand::Remove { name } => {
            let message = v1::RemoveOperatorRequest { name: name.clone() };
            client.rpc.remove_operator(request(message)).await?;
            super::done(context, "operator.removed", &name, "operator", "has no access any more")?;
        }
    }
    Ok(Exit::Done)
}
