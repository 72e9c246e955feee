//! What programs get: the JSON fields of every command, stable and documented.
//!
//! One struct per thing, in the words of the vocabulary. Fingerprints and
//! serials are lower-case hex, times RFC 3339 in UTC, absent means null. Wire
//! messages are turned into these here and nowhere else; tables are made of
//! these too.

mod admin;
mod adopt;
mod fleet;
mod rotation;

pub(crate) use admin::*;
pub(crate) use adopt::*;
pub(crate) use fleet::*;
pub(crate) use rotation::*;

use reseal_proto::v1;

/// Lower-case hex; `None` when there are no bytes.
pub(crate) fn hex(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| ::hex::encode(bytes))
}

/// The first 16 digits, enough for a person to tell two apart.
pub(crate) fn short(hex: Option<&str>) -> &str {
    hex.map_or("-", |text| text.get(..16).unwrap_or(text))
}

/// The first few, and how many more.
pub(crate) fn few<T: AsRef<str>>(all: &[T], shown: usize) -> String {
    let mut text = all.iter().take(shown).map(AsRef::as_ref).collect::<Vec<&str>>().join(" ");
    if all.len() > shown {
        text.push_str(&format!(" +{}", all.len() - shown));
    }
    text
}

/// `None` for an empty text.
pub(crate) fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The stable word of a usage.
pub(crate) fn usage(usage: v1::Usage) -> &'static str {
    match usage {
        v1::Usage::Unspecified => "unspecified",
        v1::Usage::Server => "server",
        v1::Usage::Client => "client",
        v1::Usage::Both => "both",
    }
}

/// The stable word of who looks after an installation.
pub(crate) fn management(management: v1::Management) -> &'static str {
    match management {
        v1::Management::Labels => "labels",
        v1::Management::Configuration => "configuration",
        v1::Management::Adopted => "adopted",
        v1::Management::Discovered => "discovered",
    }
}

/// The stable word of where an installation was found.
pub(crate) fn origin(origin: v1::Origin) -> &'static str {
    match origin {
        v1::Origin::File => "file",
        v1::Origin::Image => "image",
        v1::Origin::Endpoint => "endpoint",
    }
}

/// The stable word of a target's state.
pub(crate) fn target_state(state: v1::TargetState) -> &'static str {
    match state {
        v1::TargetState::Unspecified => "unknown",
        v1::TargetState::Pending => "pending",
        v1::TargetState::Ordered => "ordered",
        v1::TargetState::Requested => "requested",
        v1::TargetState::Issued => "issued",
        v1::TargetState::Installed => "installed",
        v1::TargetState::Reloaded => "reloaded",
        v1::TargetState::Verified => "verified",
        v1::TargetState::Unserved => "unserved",
        v1::TargetState::Failed => "failed",
        v1::TargetState::RolledBack => "rolled-back",
        v1::TargetState::Held => "held",
        v1::TargetState::Straggler => "straggler",
        v1::TargetState::Excluded => "excluded",
    }
}

/// The stable word of a rotation's state.
pub(crate) fn rotation_state(state: v1::RotationState) -> &'static str {
    match state {
        v1::RotationState::Unspecified => "unknown",
        v1::RotationState::Draft => "draft",
        v1::RotationState::AwaitingApproval => "awaiting-approval",
        v1::RotationState::Running => "running",
        v1::RotationState::Paused => "paused",
        v1::RotationState::Halted => "halted",
        v1::RotationState::Trailing => "trailing",
        v1::RotationState::Completed => "completed",
        v1::RotationState::Expired => "expired",
        v1::RotationState::Aborted => "aborted",
    }
}

/// The stable word of the step at which a target failed.
pub(crate) fn stage(stage: v1::Stage) -> &'static str {
    match stage {
        v1::Stage::Unspecified => "unknown",
        v1::Stage::Request => "request",
        v1::Stage::Issue => "issue",
        v1::Stage::Validate => "validate",
        v1::Stage::Install => "install",
        v1::Stage::Reload => "reload",
        v1::Stage::Verify => "verify",
    }
}

/// The stable word of what happens to a failed target.
pub(crate) fn on_failure(choice: v1::OnFailure) -> &'static str {
    match choice {
        v1::OnFailure::Unspecified => "unspecified",
        v1::OnFailure::Rollback => "rollback",
        v1::OnFailure::Hold => "hold",
    }
}
