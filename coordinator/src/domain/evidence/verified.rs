//! What a good evidence file proves, said carefully.

use super::tally::{Read, Tally};
use super::{Bundle, Moment, Residual, RotationRecord, Summary, Verdict};

/// What an evidence file proves, and what had to be trusted for it.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The fleet.
    pub fleet: String,
    /// The rotation, as ordered.
    pub rotation: RotationRecord,
    /// SHA-256 of the control-plane CA certificate: all else follows from it.
    pub anchor: [u8; 32],
    /// Counted from the proofs.
    pub summary: Summary,
    /// Results of a target that a later result replaced.
    pub superseded: u64,
    /// What is not proved.
    pub residual: Residual,
    /// Arrival of the first and the last result, the coordinator's clock.
    pub received: Option<(Moment, Moment)>,
    /// Every target is verified.
    pub replaced: bool,
    /// Replaced, and every relying party named was proved to refuse the compromised issuer.
    pub contained: bool,
    /// What had to be taken on trust, one sentence each.
    pub trusted: Vec<String>,
    /// What a careful reader should know, one sentence each.
    pub warnings: Vec<String>,
}

/// What a file proves whose every signature was checked.
pub(super) fn conclude(
    bundle: &Bundle,
    anchor: [u8; 32],
    batches: &[Read<'_>],
    tally: &Tally<'_>,
    unchained: usize,
) -> Verified {
    let body = &bundle.body;
    let times = || batches.iter().map(|batch| Moment(batch.countersignature.received_at));
    let received = times().min().zip(times().max());
    let summary = tally.summary.clone();
    let replaced = summary.targets > 0 && summary.verified == summary.targets;
    let parties = &body.residual.relying_parties;
    let refuses = parties.iter().filter(|party| party.verdict == Verdict::Refuses).count();
    let unmanaged = body.residual.unmanaged.len();
    let contained = replaced
        && body.rotation.compromised.is_some()
        && !parties.is_empty()
        && refuses == parties.len()
        && unmanaged == 0;
    let mut warnings = Vec::new();
    if unchained > 0 {
        warnings.push(format!(
            "{unchained} endpoint proofs saw the new certificate, but no chain that builds to the anchor of its bundle"
        ));
    }
    if tally.doubted > 0 {
        warnings.push(format!(
            "{} targets are reported better by their agent than the coordinator believes; they count as the worse",
            tally.doubted
        ));
    }
    let weak = summary.grades.file_only + summary.grades.unknown;
    if weak > 0 {
        warnings.push(format!("{weak} verified targets rest on the file alone, or say not on what"));
    }
    if unmanaged > 0 {
        warnings.push(format!(
            "{unmanaged} certificates of the compromised issuer are not managed by Reseal and were not replaced"
        ));
    }
    if body.rotation.compromised.is_some() && !contained {
        warnings.push(match parties.len() {
            0 => "replaced is not contained: no relying party is named here that was proved to refuse the compromised issuer".to_owned(),
            all => format!(
                "replaced is not contained: {refuses} of {all} relying parties named here were proved to refuse the compromised issuer"
            ),
        });
    }
    let trusted = vec![
        format!("the anchor {}: whoever holds that CA's key could have made this file", hex::encode(anchor)),
        "the coordinator's clock, for when each result arrived; the agents' 24-hour identities are judged at that time and may have expired since".to_owned(),
        "the coordinator, for which targets belong to the rotation, for what is listed as residual risk, and for what relying parties do".to_owned(),
        "each agent, for what it saw on its own host; no agent can speak for another".to_owned(),
    ];
    Verified {
        fleet: body.fleet.clone(),
        rotation: body.rotation.clone(),
        anchor,
        summary,
        superseded: tally.superseded,
        residual: body.residual.clone(),
        received,
        replaced,
        contained,
        trusted,
        warnings,
    }
}
