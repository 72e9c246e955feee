//! Why a target failed, and at which step.

use reseal_proto::v1::{Failure, Stage};

use crate::chain;
use crate::discover::docker::DockerError;
use crate::install::InstallError;
use crate::key::KeyError;
use crate::reload::ReloadError;
use crate::verify::VerifyError;

/// What a target that only waits for the right time says.
pub const CLOCK_SKEW: &str = "clock-skew";
/// Likewise, while nobody knows whether this host's clock is right.
pub const CLOCK_UNKNOWN: &str = "clock-unknown";

/// Why a target failed; every variant knows its stage.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not declared by this host.
    #[error("{0} is not an installation of this host: no container declares it (any more)")]
    Unknown(String),
    /// No key or CSR.
    #[error("no certificate request")]
    Key(#[source] KeyError),
    /// The coordinator says no.
    #[error("{}", .0.reason)]
    Refused(Failure),
    /// Another target went first on this host, and its new certificate did not work.
    #[error("not attempted: {0} went first on this host and failed; see its reason")]
    Canary(String),
    /// It says nothing.
    #[error("the coordinator did not answer the certificate request in time")]
    NoAnswer,
    /// The certificate is not the one that was asked for.
    #[error("the certificate was not installed")]
    Chain(#[source] chain::ChainError),
    /// Files.
    #[error("the new certificate cannot be put in place")]
    Install(#[source] InstallError),
    /// Containers cannot be looked at.
    #[error("the consumers cannot be looked at")]
    Docker(#[source] DockerError),
    /// A reload.
    #[error("a consumer did not reload")]
    Reload(#[source] ReloadError),
    /// An endpoint.
    #[error("the new certificate is not served")]
    Verify(#[source] VerifyError),
    /// Likewise, and nobody had told the program.
    #[error(
        "the new certificate is not served, and container {container} has no reload method: declare reseal.cert.NAME.reload"
    )]
    NotReloaded {
        /// Its name.
        container: String,
        /// What is served.
        #[source]
        source: Box<VerifyError>,
    },
    /// Likewise, after several steps.
    #[error(
        "the new certificate is not served; container {container} was told in every way it has ({tried})"
    )]
    NoStepHelped {
        /// Its name.
        container: String,
        /// Each step and what came of it.
        tried: String,
        /// What is served.
        #[source]
        source: Box<VerifyError>,
    },
    /// Everything is well but the time.
    #[error("the new certificate is in use, but {}", crate::clock::told(*.0))]
    Clock(i64),
    /// Likewise, and nobody knows the time.
    #[error(
        "the new certificate is in use, but no coordinator has said what time it is since this agent started: the proof is completed when one has"
    )]
    NoTime,
}

impl TargetError {
    fn stage(&self) -> Stage {
        match self {
            Self::Unknown(_) | Self::Key(_) | Self::Canary(_) => Stage::Request,
            Self::Refused(_) | Self::NoAnswer => Stage::Issue,
            Self::Chain(_) => Stage::Validate,
            Self::Install(_) => Stage::Install,
            Self::Docker(_) | Self::Reload(_) => Stage::Reload,
            Self::Verify(_)
            | Self::Clock(_)
            | Self::NoTime
            | Self::NotReloaded { .. }
            | Self::NoStepHelped { .. } => Stage::Verify,
        }
    }

    fn code(&self) -> &str {
        match self {
            Self::Unknown(_) => "unknown-installation",
            Self::Key(_) => "key-failed",
            // The coordinator's own word for it.
            Self::Refused(refusal) => &refusal.code,
            Self::Canary(_) => "canary-failed",
            Self::NoAnswer => "no-answer",
            Self::Chain(error) => error.code(),
            Self::Install(error) => error.code(),
            Self::Docker(_) => "docker-failed",
            Self::Reload(error) => error.code(),
            Self::Verify(error) => error.code(),
            Self::Clock(_) => CLOCK_SKEW,
            Self::NoTime => CLOCK_UNKNOWN,
            Self::NotReloaded { source, .. } | Self::NoStepHelped { source, .. } => source.code(),
        }
    }

    /// As evidence carries it.
    pub fn failure(&self) -> Failure {
        Failure {
            stage: self.stage().into(),
            code: self.code().to_owned(),
            reason: crate::chain_of(self).to_string(),
        }
    }
}
