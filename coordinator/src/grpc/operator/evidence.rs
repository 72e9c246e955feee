//! The evidence file of a rotation, assembled from what is on record.

use reseal_proto::facts;
use reseal_proto::v1::TargetState;
use tonic::Status;

use super::OperatorService;
use crate::domain::evidence::{
    self, Base64, BatchRecord, Body, Hex, IssuerRecord, Moment, RelyingPartyRecord, Residual, RotationRecord,
    SelectionRecord, TargetRecord, Verdict,
};
use crate::domain::{rotation, target};
use crate::grpc::convert::{chain, status};
use crate::store::keys;
use crate::store::record::{Authority, Batch, Issued, Target};

impl OperatorService {
    /// The whole file, signed.
    pub(super) async fn evidence_file(&self, id: &str) -> Result<Vec<u8>, Status> {
        let record = self.rotation_record(id).await?.value;
        let shown = self.rotation(id, true).await?;
        let (batches, mut residual) = self.proofs(id).await?;
        residual.relying_parties = shown
            .relying_parties
            .iter()
            .map(|party| RelyingPartyRecord {
                host: party.host.clone(),
                container: party.container.clone(),
                bundle: party.bundle.clone(),
                verdict: match party.verdict.as_str() {
                    "accepts" => Verdict::Accepts,
                    "refuses" => Verdict::Refuses,
                    _ => Verdict::Untested,
                },
            })
            .collect();
        residual.unmanaged = self
            .unmanaged_of(&record.compromised, usize::MAX)
            .await?
            .rows
            .into_iter()
            .map(|row| TargetRecord {
                host: row.host,
                installation: row.installation,
                label: row.label,
                reason: Some(row.next),
            })
            .collect();
        let compromised = match record.compromised.as_str() {
            "" => None,
            name => Some(self.issuer_record(name).await?),
        };
        let rotation = RotationRecord {
            id: id.to_owned(),
            reason: record.reason.clone(),
            operator: record.operator.clone(),
            selection: record.selection.as_ref().map(SelectionRecord::from).unwrap_or_default(),
            compromised,
            to_issuer: self.issuer_record(&record.to_issuer).await?,
            state: rotation::word(record.state()).to_owned(),
            created_at: Moment(record.created_at),
            ended_at: (record.ended_at != 0).then_some(Moment(record.ended_at)),
            as_of: Moment((self.now)()),
            waves: record.waves.clone(),
            max_failures: shown.max_failures,
        };
        let summary = evidence::summarise(&batches, &residual).map_err(|error| {
            Status::internal(format!("the evidence of rotation {id} does not add up: {}", chain(&error)))
        })?;
        let body = Body {
            fleet: self.control.fleet.clone(),
            rotation,
            summary,
            residual,
            control_ca: Base64(self.control.ca_certificate.clone()),
            evidence_certificate: Base64(self.control.evidence_certificate.clone()),
            batches,
        };
        Ok(evidence::seal(body, |bytes| self.control.sign_evidence(bytes)))
    }

    async fn issuer_record(&self, name: &str) -> Result<IssuerRecord, Status> {
        let authority =
            self.store.get::<Authority>(&keys::authority(name)).await.map_err(|error| status(&error))?;
        let certificate = authority.map(|authority| authority.value.certificate).unwrap_or_default();
        let facts = facts::of_chain(&certificate, [])
            .map_err(|error| Status::internal(format!("authority {name} on record: {}", chain(&error))))?;
        Ok(IssuerRecord {
            name: format!("builtin/{name}"),
            subject: facts.subject,
            fingerprint: Hex(facts.fingerprint),
            spki: Hex(facts.spki_sha256),
            certificate: Base64(certificate),
        })
    }

    /// What the hosts proved, and what is not proved.
    async fn proofs(&self, id: &str) -> Result<(Vec<BatchRecord>, Residual), Status> {
        let mut records = Vec::new();
        let mut residual = Residual::default();
        let batches = self.store.range::<Batch>(&keys::batches_in(id)).await;
        for (key, batch) in batches.map_err(|error| status(&error))? {
            let Some((host, name)) = keys::host_and_batch(&key) else { continue };
            let (host, name, batch) = (host.to_owned(), name.to_owned(), batch.value);
            for target in batch.targets.iter().filter(|target| !target.superseded) {
                let list = match target.state() {
                    TargetState::Verified => continue,
                    TargetState::Unserved => &mut residual.unserved,
                    TargetState::Straggler => &mut residual.stragglers,
                    TargetState::Excluded => &mut residual.excluded,
                    state if target::is_failure(state) => &mut residual.failed,
                    _ => &mut residual.pending,
                };
                list.push(TargetRecord {
                    host: host.clone(),
                    installation: target.installation.clone(),
                    label: target.label.clone(),
                    reason: reason(target),
                });
            }
            // Without a payload it was failed here, not by its agent.
            if batch.finished_at == 0 || batch.payload.is_empty() {
                continue;
            }
            let issued = self
                .store
                .range::<Issued>(&keys::issued_of(&host, &name))
                .await
                .map_err(|error| status(&error))?;
            let leaves = issued.into_iter().flat_map(|(_, issued)| issued.value.leaves);
            records.push((
                batch.finished_at,
                BatchRecord {
                    host,
                    batch: name,
                    payload: Base64(batch.payload),
                    signature: Base64(batch.signature),
                    identity: Base64(batch.identity),
                    countersignature: Base64(batch.countersignature),
                    countersignature_signature: Base64(batch.countersignature_signature),
                    leaves: leaves
                        .filter(|leaf| !leaf.certificate.is_empty())
                        .map(|leaf| Base64(leaf.certificate))
                        .collect(),
                },
            ));
        }
        records.sort_by(|(at, a), (other, b)| {
            a.host.cmp(&b.host).then(at.cmp(other)).then_with(|| a.batch.cmp(&b.batch))
        });
        Ok((records.into_iter().map(|(_, record)| record).collect(), residual))
    }
}

/// Why it is not proved, when there is more to say than its list does.
fn reason(target: &Target) -> Option<String> {
    match &target.failure {
        Some(failure) => Some(failure.reason.clone()),
        None if target.overtaken_by.is_empty() => None,
        None => Some(format!("renewed by {} before it could be proved", target.overtaken_by)),
    }
}
