//! Rotations as operators see them.

use std::collections::BTreeMap;

use reseal_proto::v1::{self, AuthorityInfo, Rotation, TargetRow, TargetState, WaveProgress};
use tonic::Status;

use super::OperatorService;
use crate::domain::{remedy, rotation, target};
use crate::grpc::convert::{authority_info, status};
use crate::store::keys;
use crate::store::outline::BatchOutline;
use crate::store::record::{Authority, Batch, OutcomeWave, Target};
use crate::view::{BatchView, RotationView, rotation_number};

/// Rows of each kind at most.
const ROWS: usize = 100;
/// Batches that are looked through for them at most.
const SUSPECTS: usize = 4 * ROWS;
/// Batches read at once.
const PAGE: usize = 256;
/// Rotations in a list at most.
const LISTED: usize = 1000;

impl OperatorService {
    /// A rotation, with its worst rows; relying parties, and which certificates nobody looks
    /// after, only when `whole`.
    pub(super) async fn rotation(&self, id: &str, whole: bool) -> Result<Rotation, Status> {
        let not_found = || {
            Status::not_found(format!(
                "no rotation {:?}; see `reseal rotation list`",
                id.chars().take(40).collect::<String>()
            ))
        };
        let number = rotation_number(id).ok_or_else(not_found)?;
        let (mut shown, open) = {
            let state = self.view.read();
            let view =
                state.rotations.get(&number).filter(|view| view.revision != 0).ok_or_else(not_found)?;
            let suspects = view.batches.iter().filter(|(_, batch)| is_suspect(batch)).take(SUSPECTS);
            let suspects: Vec<_> =
                suspects.map(|((host, batch), _)| (host.to_string(), batch.to_string())).collect();
            (summary(id, view, (self.now)()), view.is_open().then_some(suspects))
        };
        let suspects = match open {
            Some(suspects) => suspects,
            None => self.suspects_on_record(&shown).await?,
        };
        let record = self.rotation_record(id).await?.value;
        if !record.compromised.is_empty() {
            shown.compromised = self.authority(&record.compromised).await?;
            shown.unmanaged = shown.compromised.as_ref().map_or(0, |issuer| issuer.unmanaged);
        }
        shown.to_issuer = self.authority(&record.to_issuer).await?;
        shown.excluded_hosts = record.excluded;
        self.add_rows(&mut shown, suspects).await?;
        if whole && !record.compromised.is_empty() {
            shown.relying_parties = self.relying_parties().await?;
            shown.unmanaged_certificates = self.unmanaged_of(&record.compromised, ROWS).await?.rows;
        }
        Ok(shown)
    }

    /// Every rotation, newest first, without rows.
    pub(super) fn rotations(&self) -> Vec<Rotation> {
        let state = self.view.read();
        let now = (self.now)();
        let mut unmanaged = BTreeMap::<&str, u32>::new();
        let shown = newest(&state.rotations).map(|(number, view)| {
            let issuer = view.record.compromised.as_str();
            let unmanaged = *unmanaged.entry(issuer).or_insert_with(|| state.issued_by(issuer).unmanaged);
            Rotation { unmanaged, ..summary(&format!("r{number}"), view, now) }
        });
        shown.collect()
    }

    /// May `watch` stop here?
    pub(super) fn is_at_rest(&self, shown: &Rotation) -> bool {
        let state = shown.state();
        let working: u32 = shown
            .targets
            .iter()
            .filter(|(state, _)| {
                let state = i32::try_from(**state).ok().and_then(|state| TargetState::try_from(state).ok());
                state.is_some_and(|state| !target::is_end(state) && state != TargetState::Straggler)
            })
            .map(|(_, number)| number)
            .sum();
        rotation::is_end(state)
            || state == rotation::State::Halted
            || (state == rotation::State::Trailing && working == 0)
    }

    pub(super) async fn authority(&self, name: &str) -> Result<Option<AuthorityInfo>, Status> {
        let record =
            self.store.get::<Authority>(&keys::authority(name)).await.map_err(|error| status(&error))?;
        let issued = self.view.read().issued_by(name);
        Ok(record.map(|record| authority_info(name, &record.value, issued)))
    }

    /// Those of a rotation that has ended: its batches are in no projection.
    async fn suspects_on_record(&self, shown: &Rotation) -> Result<Vec<(String, String)>, Status> {
        let state = |state: &u32| i32::try_from(*state).ok().and_then(|s| TargetState::try_from(s).ok());
        let mut suspects = Vec::new();
        if !shown.targets.keys().filter_map(state).any(is_worth_a_row) {
            return Ok(suspects);
        }
        let prefix = keys::batches_in(&shown.id);
        let mut after: Option<String> = None;
        loop {
            let page = self.store.page::<BatchOutline>(&prefix, after.as_deref(), PAGE).await;
            let page = page.map_err(|error| status(&error))?;
            for (key, batch) in &page {
                if let Some((host, name)) = keys::host_and_batch(key)
                    && is_suspect(&BatchView::of(&batch.value))
                {
                    suspects.push((host.to_owned(), name.to_owned()));
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE && suspects.len() < SUSPECTS => {
                    after = Some(last.clone());
                }
                _ => return Ok(suspects),
            }
        }
    }

    async fn add_rows(&self, shown: &mut Rotation, suspects: Vec<(String, String)>) -> Result<(), Status> {
        for (host, batch) in suspects {
            let Some(record) =
                self.store.get::<Batch>(&keys::batch(&host, &batch)).await.map_err(|error| status(&error))?
            else {
                continue;
            };
            for target in record.value.targets.iter().filter(|target| !target.superseded) {
                let state = target.state();
                let rows = if target::is_failure(state) {
                    &mut shown.failures
                } else if state == TargetState::Straggler {
                    &mut shown.stragglers
                } else if state == TargetState::Unserved {
                    &mut shown.unserved
                } else if state == TargetState::Excluded {
                    &mut shown.excluded
                } else {
                    continue;
                };
                if rows.len() < ROWS {
                    rows.push(TargetRow {
                        host: host.clone(),
                        installation: target.installation.clone(),
                        label: target.label.clone(),
                        state: state.into(),
                        failure: target.failure.clone(),
                        next: remedy::next(code(target), &host, &shown.id),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Those of a list, newest first.
fn newest(all: &BTreeMap<u64, RotationView>) -> impl Iterator<Item = (&u64, &RotationView)> {
    all.iter().rev().filter(|(_, view)| view.revision != 0).take(LISTED)
}

/// The row of the remedies that is about this target.
pub(super) fn code(target: &Target) -> &str {
    match target.state() {
        TargetState::Straggler => "straggler",
        TargetState::Unserved if target.overtaken => "overtaken",
        TargetState::Unserved => target.failure.as_ref().map_or("unserved", |failure| failure.code.as_str()),
        _ => target.failure.as_ref().map_or("", |failure| failure.code.as_str()),
    }
}

/// Has a batch something to tell?
fn is_suspect(batch: &BatchView) -> bool {
    batch.counts.iter().any(|(state, _)| is_worth_a_row(state))
}

fn is_worth_a_row(state: TargetState) -> bool {
    target::is_failure(state)
        || matches!(state, TargetState::Straggler | TargetState::Unserved | TargetState::Excluded)
}

fn summary(id: &str, view: &RotationView, now: i64) -> Rotation {
    let record = &view.record;
    let shown = view.shown();
    let (done, all) =
        shown.waves.iter().fold((0, 0), |(done, all), wave| (done + wave.done, all + wave.targets));
    let numbered = |at: usize| u32::try_from(at + 1).unwrap_or(u32::MAX);
    let progress = |wave: &OutcomeWave| WaveProgress {
        targets: wave.targets,
        done: wave.done,
        failed: wave.failed,
        ..WaveProgress::default()
    };
    let mut waves: BTreeMap<u32, WaveProgress> =
        shown.waves.iter().enumerate().map(|(at, wave)| (numbered(at), progress(wave))).collect();
    let mut before = 0;
    for (at, cumulative) in record.waves.iter().enumerate() {
        let wave = waves.entry(numbered(at)).or_default();
        wave.hosts = cumulative.saturating_sub(before);
        before = *cumulative;
    }
    let elapsed = now.saturating_sub(record.created_at).max(1);
    let eta_seconds = match done {
        0 => -1,
        done if done == all || rotation::is_end(view.state) => 0,
        done => elapsed.saturating_mul(i64::from(all - done)) / i64::from(done),
    };
    Rotation {
        id: id.to_owned(),
        state: record.state,
        reason: record.reason.clone(),
        operator: record.operator.clone(),
        selection: record.selection.clone(),
        created_at: record.created_at,
        ended_at: record.ended_at,
        deadline_at: record.deadline_at,
        wave: record.wave,
        waves: waves.into_values().collect(),
        targets: shown.targets,
        hosts: shown.hosts,
        containers: record.containers,
        endpoints: record.endpoints,
        note: record.note.clone(),
        eta_seconds,
        green_at: record.green_at,
        max_failures: match record.max_failures {
            0 => format!("{}%", f64::from(record.max_failures_basis_points) / 100.0),
            number => number.to_string(),
        },
        on_failure: record.on_failure,
        verified_by_handshake: shown.probed,
        ..v1::Rotation::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_the_thousand_newest() {
        let shown = |number| {
            let mut view = RotationView::unrevealed();
            view.revision = number;
            (number, view)
        };
        let mut all: BTreeMap<u64, RotationView> = (1..=1_001).map(shown).collect();
        // One that is not revealed takes no place.
        all.insert(1_002, RotationView::unrevealed());
        let listed: Vec<u64> = newest(&all).map(|(number, _)| *number).collect();
        assert_eq!(listed, (2..=1_001).rev().collect::<Vec<u64>>());
    }
}
