//! `reseal trust`: the trust bundles that hosts load.

use clap::Subcommand;
use reseal_proto::v1;

use super::Context;
use super::client::request;
use super::exit::{CliError, Exit};
use super::output::text::{Piece, Text};
use super::output::{Column, write};
use super::view::{self, BundleCertificateView, BundleView};

/// The one bundle there is so far: the roots above the built-in CA.
const MANAGED_ROOT: &str = "managed-root";

/// Trust bundles.
#[derive(Subcommand, Debug)]
pub(crate) enum TrustCommand {
    /// List the bundles. Changes nothing
    List,
    /// The certificates of a bundle. Changes nothing
    #[command(after_help = "Example:\n  reseal trust show --pem > ca.pem && \
        openssl s_client -connect web-1:443 -CAfile ca.pem")]
    Show {
        /// Name of the bundle
        #[arg(default_value = MANAGED_ROOT)]
        bundle: String,
        /// As PEM, for other programs
        #[arg(long)]
        pem: bool,
    },
}

const COLUMNS: [Column<BundleCertificateView>; 3] = [
    ("SUBJECT", |row| Piece::bold(row.subject.as_deref().unwrap_or("(unreadable)"))),
    ("EXPIRES", |row| Piece::plain(row.not_after.as_deref().unwrap_or("-"))),
    ("FINGERPRINT", |row| Piece::dim(&row.fingerprint)),
];

/// Runs one of the commands.
pub(super) async fn run(context: &Context, command: TrustCommand) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let name = match &command {
        TrustCommand::List => MANAGED_ROOT.to_owned(),
        TrustCommand::Show { bundle, .. } => bundle.clone(),
    };
    let message = v1::ShowTrustRequest { bundle: name };
    let bundle = BundleView::from(client.rpc.show_trust(request(message)).await?.into_inner());
    match command {
        TrustCommand::List => {
            let columns: [Column<BundleView>; 2] = [
                ("BUNDLE", |row| Piece::bold(&row.name)),
                ("CERTIFICATES", |row| {
                    let all = row.certificates.iter().map(|c| view::short(Some(&c.fingerprint)));
                    Piece::plain(all.collect::<Vec<_>>().join(" "))
                }),
            ];
            context.out.list(&[bundle], &columns, &["name"], "no bundles")?;
        }
        TrustCommand::Show { pem: true, .. } => {
            let all: String = bundle.certificates.iter().map(|row| row.pem.as_str()).collect();
            write(&all)?;
        }
        TrustCommand::Show { pem: false, .. } => match context.out.format {
            super::output::Format::Csv => {
                let csv = ["fingerprint", "subject", "not_after"];
                context.out.list(&bundle.certificates, &COLUMNS, &csv, "")?;
            }
            super::output::Format::Table | super::output::Format::Json => {
                context.out.one(&bundle, &[], || {
                    Text::new()
                        .fact_piece("Bundle", Piece::bold(&bundle.name))
                        .line("")
                        .table(&bundle.certificates, &COLUMNS)
                })?;
            }
        },
    }
    Ok(Exit::Done)
}
