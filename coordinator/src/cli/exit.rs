//! How a command ends: the exit codes scripts rely on, and errors for a person.
//!
//! One enum and one table, shown by `reseal --help`. An error is printed once,
//! at the edge, with what to do next; a gRPC status maps to an exit code here
//! and nowhere else.

use std::fmt::Write as _;

use reseal_proto::channel::ChannelError;
use reseal_proto::facts::printable;
use tonic::Code;

/// The end of a command. The numbers are binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, and what had to be verified is verified.
    Done = 0,
    /// It did not work.
    Error = 1,
    /// The command line, or what it asks for, makes no sense.
    Usage = 2,
    /// A rotation stands still because too much failed.
    Halted = 3,
    /// A rotation has stragglers, unserved or excluded targets left.
    Stragglers = 4,
    /// Policy, role or approval says no.
    Refused = 5,
    /// Every target is replaced, but a relying party still accepts the
    /// compromised issuer, or was not tested, or certificates of it are left
    /// that nobody looks after.
    NotContained = 6,
}

/// The table of [`Exit`], for `--help` and the documentation.
pub(crate) const TABLE: &str = "\
Exit codes:
  0  done, and verified where there is something to verify
  1  error
  2  usage: the command line or a value in it makes no sense
  3  the rotation is halted: too many targets failed
  4  stragglers, unserved or excluded targets remain
  5  refused by policy, role or approval
  6  replaced but not contained: a relying party still accepts the
     compromised issuer, or was not tested; or certificates of it are
     not managed by Reseal";

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A value on the command line or in a file cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// Said no by itself, without the coordinator.
    #[error("{message}")]
    Failed {
        /// What, on which object, why.
        message: String,
        /// What to do next.
        next: String,
    },
    /// No coordinator answered.
    #[error("no coordinator of the fleet answers")]
    Unreachable(#[source] ChannelError),
    /// The coordinator said no.
    #[error("{}", rpc_message(.0))]
    Rpc(Box<tonic::Status>),
    /// Standard output cannot take more, such as a pager that was closed.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

impl CliError {
    /// An error with the next step.
    pub(crate) fn failed(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), next: next.into() }
    }

    /// The exit code of this error.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Rpc(status) => exit_of(status.code()),
            Self::Failed { .. } | Self::Unreachable(_) | Self::Output(_) | Self::Other(_) => Exit::Error,
        }
    }

    /// What to do next; empty when the message says it.
    fn next(&self) -> String {
        match self {
            Self::Usage(_) => "`--help` after the command explains it".into(),
            Self::Failed { next, .. } => next.clone(),
            Self::Unreachable(_) => {
                "check that `reseal serve` runs, and the addresses in the credentials file".into()
            }
            Self::Rpc(status) => next_of(status.code()).into(),
            Self::Output(_) | Self::Other(_) => String::new(),
        }
    }

    /// The whole error for a terminal: the chain once, then the next step.
    pub(crate) fn for_person(&self) -> String {
        let mut text = format!("error: {}", lines(&self.to_string()));
        let mut said = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let message = error.to_string();
            // Some libraries repeat their source in their own message.
            if !said.contains(&message) {
                let _ = write!(text, ": {}", lines(&message));
                said = message;
            }
            cause = error.source();
        }
        let next = self.next();
        if !next.is_empty() {
            let _ = write!(text, "\n  next: {}", printable(&next));
        }
        text
    }
}

/// The exit code a gRPC status means.
pub(crate) fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Done,
        Code::PermissionDenied => Exit::Refused,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => Exit::Error,
    }
}

fn next_of(code: Code) -> &'static str {
    match code {
        Code::PermissionDenied => "`reseal status` shows who you are and your role; an admin can change it",
        Code::Unauthenticated => {
            "the credentials are not accepted any more: an admin makes new ones with `reseal operator add`"
        }
        Code::Unavailable | Code::DeadlineExceeded => {
            "try again in a moment; if it stays so, the coordinator's log says why. Rotations go on by themselves"
        }
        Code::Aborted => "somebody changed the same thing at the same time: look, then try again",
        Code::ResourceExhausted => "do what it says, or ask for less at once",
        Code::Unimplemented => "the coordinator is older than this program: upgrade it",
        Code::Internal | Code::Unknown | Code::DataLoss => {
            "the coordinator's log says more; nothing is lost by trying again"
        }
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange => "",
    }
}

/// Without control characters; line breaks stay, indented.
fn lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n  ")
}

fn rpc_message(status: &tonic::Status) -> String {
    if status.message().is_empty() {
        format!("the coordinator answered {:?} without a word", status.code())
    } else {
        status.message().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_binding_numbers() {
        let all = [
            Exit::Done,
            Exit::Error,
            Exit::Usage,
            Exit::Halted,
            Exit::Stragglers,
            Exit::Refused,
            Exit::NotContained,
        ];
        for (number, exit) in all.into_iter().enumerate() {
            assert_eq!(exit as usize, number);
            assert!(TABLE.contains(&format!("\n  {number}  ")), "{number} is not in the table");
        }
    }

    #[test]
    fn a_status_maps_to_its_exit() {
        let of = |status: tonic::Status| CliError::from(status).exit();
        assert_eq!(of(tonic::Status::permission_denied("no")), Exit::Refused);
        assert_eq!(of(tonic::Status::invalid_argument("no")), Exit::Usage);
        assert_eq!(of(tonic::Status::failed_precondition("no")), Exit::Error);
        assert_eq!(of(tonic::Status::unavailable("no")), Exit::Error);
        assert_eq!(CliError::Usage("x".into()).exit(), Exit::Usage);
    }

    #[test]
    fn the_chain_is_said_once_and_without_escapes() {
        let error = CliError::Other(anyhow::anyhow!("disk\x1b[2J full").context("cannot write file x"));
        let text = error.for_person();
        assert_eq!(text, "error: cannot write file x: disk\u{fffd}[2J full");
        let text = CliError::from(tonic::Status::permission_denied("role viewer may not")).for_person();
        assert!(text.starts_with("error: role viewer may not\n  next: `reseal status`"), "{text}");
    }
}
