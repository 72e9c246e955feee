//! Up the ladder: makes consumers load a certificate, and looks after each step.
//!
//! Gentle steps first, of all consumers side by side with one look at all of
//! their endpoints; only a consumer whose endpoints do not show the
//! certificate in time is brought to its next step. Restarts come last, one
//! consumer at a time, and on the way forward never after another one failed.
//! A consumer that shows the certificate already is not restarted.

use reseal_proto::v1::EndpointProof;
use tokio::time::Instant;
use tracing::{Instrument, info};

use super::{Shown, Target, TargetError, endpoints_of};
use crate::discover::{Consumer, Reload};
use crate::reload::{ReloadError, none_could_be_made};
use crate::verify::{self, Expected, VerifyError};

/// Of the time for verification, what one step may take while there are others.
const SHARE: u32 = 3;
/// Of what was tried, for people; characters.
const TOLD: usize = 300;

/// Where a certificate goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A new one: the first consumer that fails ends it.
    Forward,
    /// The one before comes back: every consumer is helped as far as possible.
    Back,
}

/// A consumer and how far it is.
struct Climber {
    /// Its name: the engine may give it another id meanwhile.
    container: String,
    steps: Vec<Reload>,
    next: usize,
    /// A step was made.
    stepped: bool,
    /// It shows the certificate, or nothing more can be done or seen.
    settled: bool,
    failures: Vec<(Reload, ReloadError)>,
    /// In words, for evidence and errors.
    tried: Vec<String>,
}

impl Climber {
    fn new(consumer: &Consumer) -> Self {
        Self {
            container: consumer.container.clone(),
            steps: consumer.reload.0.clone(),
            next: 0,
            stepped: false,
            settled: false,
            failures: Vec::new(),
            tried: Vec::new(),
        }
    }

    fn next_step(&self) -> Option<&Reload> {
        self.steps.get(self.next)
    }

    fn next_gentle(&self) -> Option<Reload> {
        self.next_step().filter(|step| step.is_gentle()).cloned()
    }

    /// It has been told, or needs no telling: what it serves can be looked at.
    fn is_due(&self) -> bool {
        self.stepped || self.steps.is_empty()
    }

    fn is<'a>(&self, consumers: &'a [Consumer]) -> Option<&'a Consumer> {
        consumers.iter().find(|consumer| consumer.running && consumer.container == self.container)
    }

    /// "signal HUP: …; exec …: …", not longer than people read.
    fn told(&self) -> String {
        self.tried.join("; ").chars().take(TOLD).collect()
    }
}

/// All of them, on their way to one certificate.
struct Climb<'a> {
    expected: Expected<'a>,
    way: Way,
    climbers: Vec<Climber>,
    /// On the way back: the first failure, told when all are helped.
    failed: Option<TargetError>,
}

impl Climb<'_> {
    /// Ends the way forward; on the way back it is remembered.
    fn fail(&mut self, error: TargetError) -> Result<(), TargetError> {
        match self.way {
            Way::Forward => Err(error),
            Way::Back => {
                self.failed = self.failed.take().or(Some(error));
                Ok(())
            }
        }
    }

    /// Likewise, and nothing more is tried with this one.
    fn give_up(&mut self, at: usize, error: TargetError) -> Result<(), TargetError> {
        self.climbers[at].settled = true;
        self.fail(error)
    }

    fn unsettled(&self) -> impl Iterator<Item = &Climber> {
        self.climbers.iter().filter(|climber| climber.is_due() && !climber.settled)
    }

    /// Those whose endpoints can be expected to show it: who has been told. One that nobody
    /// climbs for, because it is new, must show it, too.
    fn due(&self, consumers: &[Consumer]) -> Vec<Consumer> {
        let waits = |one: &Consumer| {
            self.climbers.iter().any(|climber| climber.container == one.container && !climber.is_due())
        };
        consumers.iter().filter(|one| one.running && !waits(one)).cloned().collect()
    }
}

/// What a look at several consumers showed.
struct Sight {
    proofs: Vec<EndpointProof>,
    /// Who does not show the certificate, by name, with the first reason.
    blind: Vec<(String, VerifyError)>,
}

impl Target<'_> {
    /// Makes every consumer load the certificate and sees it on every endpoint. The
    /// consumers as they are then.
    pub(super) async fn load(
        &self,
        expected: Expected<'_>,
        way: Way,
        shown: &mut Shown,
    ) -> Result<Vec<Consumer>, TargetError> {
        let mut consumers = self.consumers().await?;
        shown.seen.extend(consumers.iter().map(|consumer| consumer.container_id.clone()));
        let climbers = consumers.iter().filter(|consumer| consumer.running).map(Climber::new).collect();
        let mut climb = Climb { expected, way, climbers, failed: None };
        crate::fail_point("agent.before_reload");
        self.check_all(&consumers, &mut climb).instrument(self.span("reload")).await?;
        loop {
            self.gentle_steps(&consumers, &mut climb, shown).instrument(self.span("reload")).await?;
            crate::fail_point("agent.after_reload");
            // What reloads may get another address.
            consumers = self.consumers().await?;
            if self.look(&consumers, &mut climb, shown).await? {
                break;
            }
        }
        let restarts: Vec<usize> =
            (0..climb.climbers.len()).filter(|at| !climb.climbers[*at].settled).collect();
        for at in &restarts {
            if let Err(error) = self.restart(&mut climb.climbers[*at], expected, shown).await {
                climb.fail(error)?;
            }
        }
        if !restarts.is_empty() {
            // Everything once more, as it is in the end.
            consumers = self.consumers().await?;
            let running: Vec<Consumer> = consumers.iter().filter(|one| one.running).cloned().collect();
            let seen = self.see(&running, expected, self.deadline()).await;
            shown.endpoints = seen.proofs;
            if let Some((_, error)) = seen.blind.into_iter().next() {
                climb.fail(TargetError::Verify(error))?;
            }
        }
        match climb.failed {
            Some(error) => Err(error),
            None => Ok(consumers),
        }
    }

    /// A configuration that any of them would refuse is noticed before the first reload.
    async fn check_all(&self, consumers: &[Consumer], climb: &mut Climb<'_>) -> Result<(), TargetError> {
        for at in 0..climb.climbers.len() {
            let Some(consumer) = climb.climbers[at].is(consumers) else { continue };
            let checked = {
                let _no_window = self.tools.windows.read().await;
                self.tools.reloader.check(self.tools.discovery.engine(), consumer).await
            };
            if let Err(error) = checked {
                climb.give_up(at, TargetError::Reload(error))?;
            }
        }
        Ok(())
    }

    /// The next gentle step of each that is not there yet; what cannot be made is passed over.
    async fn gentle_steps(
        &self,
        consumers: &[Consumer],
        climb: &mut Climb<'_>,
        shown: &mut Shown,
    ) -> Result<(), TargetError> {
        for at in 0..climb.climbers.len() {
            let climber = &mut climb.climbers[at];
            if climber.settled {
                continue;
            }
            let Some(consumer) = climber.is(consumers) else {
                climber.settled = true;
                continue;
            };
            let mut last = None;
            while let Some(step) = climber.next_gentle() {
                climber.next += 1;
                match self.step(climber, consumer, &step, shown).await {
                    Ok(()) => break,
                    Err(error) if error.is_final() => {
                        last = Some(error);
                        break;
                    }
                    Err(error) => climber.failures.push((step, error)),
                }
            }
            if last.is_none() && !climber.stepped && climber.next_step().is_none() {
                last = none_could_be_made(&climber.container, std::mem::take(&mut climber.failures));
            }
            if let Some(error) = last {
                climb.give_up(at, TargetError::Reload(error))?;
            }
        }
        Ok(())
    }

    /// Makes one step and remembers it in words.
    async fn step(
        &self,
        climber: &mut Climber,
        consumer: &Consumer,
        step: &Reload,
        shown: &mut Shown,
    ) -> Result<(), ReloadError> {
        let made = {
            // Not while files are being written in place, whosever they are.
            let _no_window = self.tools.windows.read().await;
            self.tools.reloader.step(self.tools.discovery.engine(), consumer, step).await
        };
        match made {
            Ok(mut made) => {
                if !climber.tried.is_empty() {
                    made.proof.method = format!("{step} (after {})", climber.told());
                }
                shown.reloads.push(made.proof);
                climber.stepped = true;
                let said = if made.output.is_empty() { "did not help" } else { made.output.as_str() };
                climber.tried.push(format!("{step}: {said}"));
                Ok(())
            }
            Err(error) => {
                let error_chain = crate::chain_of(&error).to_string();
                info!(container = climber.container, %step, error = %error_chain, "step not made");
                climber.tried.push(format!("{step}: {error_chain}"));
                Err(error)
            }
        }
    }

    /// Looks at all who have been told. True: nobody needs another gentle step.
    async fn look(
        &self,
        consumers: &[Consumer],
        climb: &mut Climb<'_>,
        shown: &mut Shown,
    ) -> Result<bool, TargetError> {
        let due = climb.due(consumers);
        let gentle_left = climb.unsettled().any(|climber| climber.next_gentle().is_some());
        let can_climb = climb.unsettled().filter(|climber| climber.next_step().is_some()).count();
        // Who has no other step gets the whole time, unless others wait for theirs.
        let hurry = gentle_left || can_climb > 0 && can_climb == due.len();
        let full = self.tools.config.verify_timeout;
        let deadline = Instant::now() + if hurry { full / SHARE } else { full };
        let Sight { proofs, mut blind } = self.see(&due, climb.expected, deadline).await;
        shown.endpoints = proofs;
        for climber in climb.climbers.iter_mut().filter(|climber| climber.is_due()) {
            climber.settled |= blind.iter().all(|(container, _)| *container != climber.container);
        }
        let climbs = climb.unsettled().any(|climber| climber.next_gentle().is_some());
        // Who has another step climbs; what is left is at its end, or came in between.
        blind.retain(|(container, _)| {
            climb.unsettled().all(|climber| climber.container != *container || climber.next_step().is_none())
        });
        if climbs || hurry && !blind.is_empty() {
            return Ok(false);
        }
        let Some((container, error)) = blind.into_iter().next() else { return Ok(true) };
        let climber = climb.climbers.iter().find(|climber| climber.container == container);
        let error = not_served(consumers, climber, error);
        climb.fail(error)?;
        for climber in climb.climbers.iter_mut().filter(|climber| climber.is_due()) {
            climber.settled |= climber.next_step().is_none();
        }
        Ok(true)
    }

    /// The last resort, unless it shows the certificate by now.
    async fn restart(
        &self,
        climber: &mut Climber,
        expected: Expected<'_>,
        shown: &mut Shown,
    ) -> Result<(), TargetError> {
        let Some(step @ Reload::Restart) = climber.next_step().cloned() else { return Ok(()) };
        let consumers = self.consumers().await?;
        let Some(consumer) = climber.is(&consumers) else { return Ok(()) };
        let one = std::slice::from_ref(consumer);
        if !consumer.endpoints.is_empty() && self.see(one, expected, Instant::now()).await.blind.is_empty() {
            return Ok(());
        }
        climber.next += 1;
        let made = self.step(climber, consumer, &step, shown).instrument(self.span("reload")).await;
        made.map_err(TargetError::Reload)?;
        climber.settled = true;
        let consumers = self.consumers().await?;
        let one: Vec<Consumer> = climber.is(&consumers).cloned().into_iter().collect();
        let seen = self.see(&one, expected, self.deadline()).await;
        shown.endpoints.extend(seen.proofs);
        match seen.blind.into_iter().next() {
            Some((_, error)) => Err(not_served(&consumers, Some(climber), error)),
            None => Ok(()),
        }
    }

    /// Looks at the endpoints of each, side by side. A proof may name another address than
    /// the endpoint did, so who shows the certificate is asked one by one.
    async fn see(&self, consumers: &[Consumer], expected: Expected<'_>, deadline: Instant) -> Sight {
        crate::fail_point("agent.before_verify");
        let looks = consumers.iter().map(|consumer| async move {
            let endpoints = endpoints_of(std::slice::from_ref(consumer));
            (consumer.container.clone(), verify::endpoints(&endpoints, expected, deadline).await)
        });
        let looks = futures_util::future::join_all(looks).instrument(self.span("verify")).await;
        crate::fail_point("agent.after_verify");
        let mut sight = Sight { proofs: Vec::new(), blind: Vec::new() };
        for (container, (proofs, result)) in looks {
            sight.proofs.extend(proofs);
            sight.blind.extend(result.err().map(|error| (container, error)));
        }
        // Two on the host's network may have one address.
        sight.proofs.sort_by(|a, b| (&a.address, &a.sni).cmp(&(&b.address, &b.sni)));
        sight.proofs.dedup_by(|a, b| a.address == b.address && a.sni == b.sni && a.vantage == b.vantage);
        sight
    }
}

/// Why it is not served: nobody told the program, or nothing that it was told helped.
fn not_served(consumers: &[Consumer], climber: Option<&Climber>, error: VerifyError) -> TargetError {
    let silent = consumers.iter().find(|consumer| consumer.running && consumer.reload.is_empty());
    match (climber, silent) {
        (Some(climber), _) if climber.tried.len() > 1 => TargetError::NoStepHelped {
            container: climber.container.clone(),
            tried: climber.told(),
            source: Box::new(error),
        },
        (_, Some(consumer)) => {
            TargetError::NotReloaded { container: consumer.container.clone(), source: Box::new(error) }
        }
        (_, None) => TargetError::Verify(error),
    }
}
