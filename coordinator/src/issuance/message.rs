//! One message of CSRs on its way to one answer.

use std::collections::{BTreeMap, BTreeSet};

use reseal_proto::error::chain;
use reseal_proto::v1::{self, Stage};

use super::issuer::{Grant, Step};
use super::profile;
use crate::domain::csr::{CsrError, Request};
use crate::domain::policy::{self, Policy};
use crate::store::record::{Batch, Issued, IssuedLeaf};

/// Who asks, and what is known of it.
pub(super) struct Applicant<'a> {
    pub(super) host: &'a str,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) policies: &'a [Policy],
    pub(super) batch: &'a Batch,
    /// Serials that earlier messages of the batch have used.
    pub(super) used: BTreeSet<&'a [u8]>,
}

/// A message: what is granted, and the answer so far.
pub(super) struct Message {
    batch: String,
    answers: Vec<v1::Issued>,
    /// Position in `answers` of each grant.
    places: Vec<usize>,
    leaves: Vec<IssuedLeaf>,
    pub(super) grants: Vec<Grant>,
    /// A serial is new: it has to be on record before it is signed.
    pub(super) needs_intent: bool,
}

impl Message {
    /// Grants what policy and order allow; the rest is refused one by one.
    pub(super) fn judge(
        applicant: &Applicant<'_>,
        batch: &str,
        csrs: &[v1::Csr],
        parsed: &[Result<Request, CsrError>],
    ) -> Self {
        let mut message = Self {
            batch: batch.to_owned(),
            answers: Vec::with_capacity(csrs.len()),
            places: Vec::with_capacity(csrs.len()),
            leaves: Vec::with_capacity(csrs.len()),
            grants: Vec::with_capacity(csrs.len()),
            needs_intent: false,
        };
        for (csr, parsed) in csrs.iter().zip(parsed) {
            let mut answer = v1::Issued { installation: csr.installation.clone(), ..v1::Issued::default() };
            let twice = message.answers.iter().any(|answer| answer.installation == csr.installation);
            let granted = match parsed {
                Ok(_) if twice => {
                    Err(refusal("asked-twice", format!("{} is twice in one message", csr.installation)))
                }
                Ok(request) => {
                    answer.spki_sha256 = request.spki_sha256.to_vec();
                    grant(applicant, csr, request)
                }
                Err(error) => {
                    let why = format!("host {}, {}: {}", applicant.host, csr.installation, chain(error));
                    Err(refusal("bad-csr", why))
                }
            };
            match granted {
                Ok((grant, new_serial)) => {
                    message.needs_intent |= new_serial;
                    message.leaves.push(IssuedLeaf {
                        installation: csr.installation.clone(),
                        serial: grant.serial.clone(),
                        spki_sha256: answer.spki_sha256.clone(),
                        certificate: Vec::new(),
                    });
                    message.places.push(message.answers.len());
                    message.grants.push(grant);
                }
                Err(failure) => answer.refusal = Some(failure),
            }
            message.answers.push(answer);
        }
        message
    }

    /// Is this record of a message with the same keys for the same installations, to the same authority?
    pub(super) fn is_for(&self, known: &Issued, authority: &str) -> bool {
        let same = |a: &IssuedLeaf, b: &IssuedLeaf| {
            a.spki_sha256 == b.spki_sha256 && a.installation == b.installation
        };
        known.authority == authority
            && known.leaves.len() == self.leaves.len()
            && known.leaves.iter().zip(&self.leaves).all(|(known, own)| same(known, own))
    }

    /// Takes what an earlier message with the same keys got ([`Message::is_for`]).
    /// True: all of it was issued. False: only an intent is there, whose serials are
    /// used, so that none is unaccounted for.
    pub(super) fn take_known(&mut self, known: &Issued) -> bool {
        for ((leaf, known), grant) in self.leaves.iter_mut().zip(&known.leaves).zip(&mut self.grants) {
            leaf.serial.clone_from(&known.serial);
            grant.serial.clone_from(&known.serial);
        }
        if known.leaves.iter().any(|leaf| leaf.certificate.is_empty()) {
            return false;
        }
        true
    }

    /// Takes what the issuer did with the grants.
    pub(super) fn take_steps(&mut self, steps: Vec<Step>) {
        for ((step, leaf), at) in steps.into_iter().zip(&mut self.leaves).zip(&self.places) {
            let answer = &mut self.answers[*at];
            match step {
                Step::Issued { certificate } => leaf.certificate = certificate,
                Step::Refused { reason } => answer.refusal = Some(refusal("issuer-refused", reason)),
                Step::Waiting { retry_after, .. } => {
                    let reason = format!("the issuer asks to wait {} seconds", retry_after.as_secs());
                    answer.refusal = Some(refusal("issuer-waiting", reason));
                }
            }
        }
    }

    /// The intent, to be recorded before anything is signed.
    pub(super) fn intent(&self, authority: &str, at: i64) -> Issued {
        Issued { leaves: self.leaves.clone(), authority: authority.to_owned(), at }
    }

    /// The result, to be recorded before it is answered.
    pub(super) fn record(&mut self, authority: &str, at: i64) -> Issued {
        Issued { leaves: std::mem::take(&mut self.leaves), authority: authority.to_owned(), at }
    }

    /// Is any CSR refused?
    pub(super) fn refuses(&self) -> bool {
        self.answers.iter().any(|answer| answer.refusal.is_some())
    }

    /// How many were issued, and why the others were not.
    pub(super) fn outcome(&self) -> (usize, Vec<&str>) {
        let refusals: Vec<&str> = self
            .answers
            .iter()
            .filter_map(|answer| answer.refusal.as_ref())
            .map(|refusal| refusal.reason.as_str())
            .collect();
        (self.answers.len() - refusals.len(), refusals)
    }

    /// The answer; `record` gives the certificates that are not in it yet.
    pub(super) fn answer(mut self, record: Issued, intermediates: &[Vec<u8>]) -> v1::Chains {
        for (leaf, at) in record.leaves.into_iter().zip(&self.places) {
            self.answers[*at].certificate = leaf.certificate;
        }
        v1::Chains { batch: self.batch, issued: self.answers, intermediates: intermediates.to_vec() }
    }
}

/// The grant, and whether its serial is one that is on no record yet.
fn grant(applicant: &Applicant<'_>, csr: &v1::Csr, request: &Request) -> Result<(Grant, bool), v1::Failure> {
    let mut targets = applicant.batch.targets.iter();
    let Some(target) = targets.find(|target| target.installation == csr.installation) else {
        let why = format!("{} is not a target of this batch", csr.installation);
        return Err(refusal("not-ordered", why));
    };
    let usage = csr.usage();
    let wanted = policy::Request {
        host: applicant.host,
        labels: applicant.labels,
        names: &request.names,
        key_type: &request.key_type,
        usage,
    };
    let admission = policy::admit(applicant.policies, &wanted).map_err(|error| {
        refusal("policy-refused", format!("host {}, {}: {error}", applicant.host, csr.installation))
    })?;
    let new_serial = target.serial.is_empty() || applicant.used.contains(&target.serial[..]);
    let grant = Grant {
        names: request.names.clone(),
        spki: request.spki.clone(),
        usage,
        lifetime: admission.lifetime,
        serial: if new_serial { profile::serial().to_vec() } else { target.serial.clone() },
    };
    Ok((grant, new_serial))
}

fn refusal(code: &str, reason: String) -> v1::Failure {
    v1::Failure { stage: Stage::Issue.into(), code: code.into(), reason }
}
