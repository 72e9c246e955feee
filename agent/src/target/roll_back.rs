//! A target failed: what becomes of it.
//!
//! Before the switch there is nothing to undo. After it the generation before
//! comes back, its consumers reload and its endpoints must show it again;
//! unless the order says to hold, or there was nothing before.

use reseal_proto::v1::{Failure, Grade, OnFailure, ReloadProof, TargetState};
use tracing::{Instrument, warn};

use super::ladder::Way;
use super::{Shown, Target, TargetError};
use crate::journal::Phase;
use crate::verify::Expected;

impl Target<'_> {
    /// Failed before the switch: everything is as it was.
    pub async fn failed(&self, error: TargetError) {
        warn!(error = %crate::chain_of(&error), installation = %self.installation.id, "target failed");
        let entry = self.journal.entry(self.at).await;
        let generation = entry.generation.clone();
        if !generation.is_empty() {
            let discarded = self.files(move |files| files.discard(&generation)).await;
            if let Err(error) = discarded {
                warn!(error = %crate::chain_of(&error), "an unused generation could not be removed");
            }
        }
        let before = entry.before.clone();
        let failure = Some(error.failure());
        self.done(entry, TargetState::Failed, Grade::FileOnly, failure, before, Shown::default()).await;
    }

    /// Failed after the switch: hold, or bring back what worked.
    pub(super) async fn undo(&self, error: TargetError, shown: Shown) {
        warn!(error = %crate::chain_of(&error), installation = %self.installation.id, "target failed after the switch");
        let entry = self.journal.entry(self.at).await;
        let mut failure = error.failure();
        let hold = self.on_failure == OnFailure::Hold;
        if hold || entry.previous.is_none() {
            if !hold {
                failure.reason.push_str("; there was no earlier certificate to return to: the new one stays");
            }
            let after = entry.new.clone();
            return self.done(entry, TargetState::Held, Grade::FileOnly, Some(failure), after, shown).await;
        }
        let noted = failure.clone();
        self.update(|entry| {
            entry.phase = Phase::RollingBack.into();
            entry.failure = Some(noted);
        })
        .await;
        self.roll_back(failure, shown.reloads).await;
    }

    /// After a crash in the middle of a roll-back.
    pub async fn resume_roll_back(&self) {
        let failure = self.journal.entry(self.at).await.failure.unwrap_or_default();
        self.roll_back(failure, Vec::new()).await;
    }

    async fn roll_back(&self, mut failure: Failure, reloads: Vec<ReloadProof>) {
        let entry = self.journal.entry(self.at).await;
        let mut shown = Shown { reloads, ..Shown::default() };
        let previous = entry.previous.clone().unwrap_or_default();
        crate::fail_point("agent.before_roll_back");
        let alone = self.alone().await;
        let switched =
            self.files(move |files| files.restore(&previous)).instrument(self.span("install")).await;
        if let Err(error) = switched {
            failure.reason.push_str(&format!(
                "; the earlier certificate could not be brought back: {}",
                crate::chain_of(&error)
            ));
            let after = entry.new.clone();
            return self.done(entry, TargetState::Held, Grade::FileOnly, Some(failure), after, shown).await;
        }
        drop(alone);
        crate::fail_point("agent.after_roll_back");
        let mut grade = Grade::FileOnly;
        match self.prove_old(&entry.before, &mut shown).await {
            Ok(()) if !shown.endpoints.is_empty() => grade = Grade::Probe,
            Ok(()) => {}
            Err(error) => failure.reason.push_str(&format!(
                "; the earlier certificate is back on disk, but: {}",
                crate::chain_of(&error)
            )),
        }
        let generation = entry.generation.clone();
        if let Err(error) = self.files(move |files| files.discard(&generation)).await {
            warn!(error = %crate::chain_of(&error), "the failed generation could not be removed");
        }
        let before = entry.before.clone();
        self.done(entry, TargetState::RolledBack, grade, Some(failure), before, shown).await;
    }

    async fn prove_old(&self, before: &[u8], shown: &mut Shown) -> Result<(), TargetError> {
        let Ok(fingerprint) = before.try_into() else {
            // There is nothing to look for, and what is there was never ours.
            let consumers = self.consumers().await?;
            let _no_window = self.tools.windows.read().await;
            let (reloads, result) =
                self.tools.reloader.reload(self.tools.discovery.engine(), &consumers).await;
            shown.reloads.extend(reloads);
            return result.map_err(TargetError::Reload);
        };
        // Old certificates may well not build to today's anchors.
        self.load(Expected::just(fingerprint), Way::Back, shown).await.map(drop)
    }
}
