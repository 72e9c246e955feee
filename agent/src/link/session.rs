//! One session, from Hello to the error that ends it.
//!
//! What is said and in which order: results before inventory, so that a result
//! carries the inventory that shows it; inventory only when it changed. Part of
//! [`super::Link`], which calls it and nobody else.

use std::time::Duration;

use reseal_proto::channel::{self, Trust};
use reseal_proto::v1::{
    Adopt, BatchResult, CoordinatorMessage, Order, Welcome, agent_message, coordinator_message,
};
use tokio::time::Instant;
use tonic::transport::Channel;
use tracing::{debug, error, info, warn};

use super::hello::{Opened, failed, open};
use super::orders::{MOST_WAITING, Offered};
use super::told::Told;
use super::{Handle, INVENTORY_SETTLE, LOOK, Link, LinkError, PROTOCOL, RENEW_RETRY};
use crate::app;
use crate::discover::finding;
use crate::evidence;
use crate::identity::{Identity, Slot};
use crate::inventory::Report;
use crate::outbox::Known;

/// The finding of an agent at its bound.
const TOO_MANY_ORDERS: &str = "too-many-orders";

impl Link {
    pub(super) async fn speak(
        &mut self,
        address: &str,
        slot: Slot,
        identity: Identity,
    ) -> Result<std::convert::Infallible, LinkError> {
        let credentials = identity.credentials().map_err(LinkError::Identity)?;
        let tls = channel::client_config(Trust::Anchor(identity.ca.clone()), Some(credentials))
            .map_err(LinkError::Channel)?;
        let channel = channel::connect(address, tls).await.map_err(LinkError::Channel)?;
        let Opened { sender, mut stream, first } =
            open(channel.clone(), address, &self.shared.session).await?;
        let closed = || LinkError::Closed(address.to_owned());
        let failed = failed(address);
        self.welcome(address, slot, first)?;
        self.mind_clock().await;
        self.number += 1;
        let handle = Handle { number: self.number, sender };
        info!(coordinator = address, host = %identity.host, epoch = self.shared.session.epoch(), "session up");
        self.live.send_replace(Some(handle.clone()));

        let mut line = Line { handle, identity: &identity, told: Told::default() };
        let mut host = self.shared.discovery.watch();
        let mut results = self.shared.outbox.changes();
        let renew_at = identity.renew_at(app::random());
        tokio::pin! {
            let look = tokio::time::sleep(self.until(renew_at, identity.not_after));
            // What happened before the session is told at once.
            let inventory = tokio::time::sleep(INVENTORY_SETTLE);
        }
        let mut inventory_due = true;
        let mut whole_wanted = false;
        for batch in self.shared.outbox.waiting() {
            self.tell_result(&mut line, &batch, false).await.map_err(|()| closed())?;
        }
        loop {
            tokio::select! {
                biased;
                received = stream.message() => {
                    let received = received.map_err(failed)?.ok_or_else(closed)?;
                    match self.receive(received)? {
                        Reply::Nothing => {}
                        Reply::Inventory => {
                            // Before the first look at the host there is nothing to tell; it is told then.
                            whole_wanted = !self.tell_inventory(&line.handle, true).await.map_err(|()| closed())?;
                            inventory_due = whole_wanted;
                        }
                        Reply::TurnedAway(batch) => self.full(&batch).await,
                        Reply::Result(batch) => {
                            self.tell_result(&mut line, &batch, true).await.map_err(|()| closed())?;
                        }
                        Reply::Adopt(adopt) => {
                            // It looks at the host once more; the session goes on meanwhile.
                            let (adopter, handle) = (self.shared.adopter.clone(), line.handle.clone());
                            tokio::spawn(async move {
                                let adopted = adopter.answer(adopt).await;
                                let _ = handle.send(agent_message::Body::Adopted(adopted)).await;
                            });
                        }
                        Reply::Acknowledged(batch) => {
                            if let Some(payload) = line.told.acknowledged(&batch) {
                                self.acknowledge(&batch, &payload);
                            }
                        }
                    }
                }
                changed = results.changed() => {
                    changed.map_err(|_| closed())?;
                    for batch in self.shared.outbox.waiting() {
                        self.tell_result(&mut line, &batch, false).await.map_err(|()| closed())?;
                    }
                }
                changed = host.changed() => {
                    changed.map_err(|_| closed())?;
                    if !inventory_due || whole_wanted {
                        inventory_due = true;
                        inventory.as_mut().reset(Instant::now() + INVENTORY_SETTLE);
                    }
                }
                () = &mut inventory, if inventory_due => {
                    inventory_due = false;
                    if self.tell_inventory(&line.handle, whole_wanted).await.map_err(|()| closed())? {
                        whole_wanted = false;
                    }
                }
                () = self.shared.orders.room_again() => {
                    self.shared.discovery.note(TOO_MANY_ORDERS, "host", None).await;
                    return Err(LinkError::Room);
                }
                () = &mut look => {
                    self.mind_clock().await;
                    self.mind_identity(&channel, &identity, renew_at).await?;
                    look.as_mut().reset(Instant::now() + self.until(renew_at, identity.not_after));
                }
            }
        }
    }

    /// Until the identity is due or ends, but not longer than the clock may go unseen.
    fn until(&self, renew_at: i64, not_after: i64) -> Duration {
        let now = self.shared.clock.now();
        let allowed = self.renewed.map_or(Duration::ZERO, |at| RENEW_RETRY.saturating_sub(at.elapsed()));
        let due = left(now, renew_at).max(allowed);
        due.min(left(now, not_after).max(Duration::from_secs(1))).min(LOOK)
    }

    /// Renews what is due; ends a session whose identity has ended.
    async fn mind_identity(
        &mut self,
        channel: &Channel,
        identity: &Identity,
        renew_at: i64,
    ) -> Result<(), LinkError> {
        self.shared.identities.write_again();
        let now = self.shared.clock.now();
        let just_asked = self.renewed.is_some_and(|at| at.elapsed() < RENEW_RETRY);
        if now >= renew_at && !just_asked {
            self.renewed = Some(Instant::now());
            match self.shared.identities.renew(channel.clone(), identity, now).await {
                Ok(()) => {
                    crate::fail_point("agent.after_identity_stored");
                    return Err(LinkError::Renewed);
                }
                Err(error) => {
                    warn!(error = %crate::chain_of(&error), "the identity could not be renewed; it is tried again");
                }
            }
        }
        if now >= identity.not_after {
            return Err(LinkError::Expired { host: identity.host.clone(), source: None });
        }
        Ok(())
    }

    fn welcome(&mut self, address: &str, slot: Slot, first: CoordinatorMessage) -> Result<(), LinkError> {
        let Some(coordinator_message::Body::Welcome(welcome)) = first.body else {
            return Err(LinkError::NoWelcome(address.to_owned()));
        };
        if welcome.protocol != PROTOCOL {
            return Err(LinkError::Protocol { address: address.to_owned(), theirs: welcome.protocol });
        }
        let ours = self.shared.session.epoch_of(&welcome.fleet);
        if welcome.epoch < ours {
            return Err(LinkError::Epoch { address: address.to_owned(), theirs: welcome.epoch, ours });
        }
        let Welcome { fleet, epoch, anchors, bundles, now, .. } = welcome;
        self.shared.clock.measure(now);
        // A full disk must not keep this host out of an emergency: what cannot
        // be written is known to this process all the same.
        if let Err(error) = self.shared.session.welcome(&fleet, epoch, anchors, bundles) {
            error!(error = %crate::chain_of(&error), "cannot remember the session");
        }
        if let Err(error) = self.shared.outbox.of_fleet(&fleet) {
            error!(error = %crate::chain_of(&error), "cannot forget the batches of another fleet on disk");
        }
        if slot == Slot::Next {
            crate::fail_point("agent.before_promote");
            self.shared.identities.promote().map_err(LinkError::Identity)?;
            crate::fail_point("agent.after_promote");
        }
        self.welcomed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Takes one message in; says what is wanted in return.
    fn receive(&self, received: CoordinatorMessage) -> Result<Reply, LinkError> {
        use coordinator_message::Body;
        match received.body {
            Some(Body::Order(order)) => {
                if order.epoch < self.shared.session.epoch() {
                    warn!(batch = %order.batch, epoch = order.epoch, "order of an older epoch refused");
                } else {
                    return self.order(order);
                }
            }
            Some(Body::Chains(chains)) => {
                // Full: the runner asks again, it has not been waiting for these.
                if self.chains.try_send(chains).is_err() {
                    warn!("certificates that nobody waits for were dropped");
                }
            }
            Some(Body::ResultAck(ack)) => return Ok(Reply::Acknowledged(ack.batch)),
            Some(Body::InventoryWanted(_)) => return Ok(Reply::Inventory),
            Some(Body::Adopt(adopt)) => return Ok(Reply::Adopt(adopt)),
            Some(Body::Welcome(_)) => debug!("a second Welcome was ignored"),
            // A kind that only a newer coordinator knows.
            None => debug!("a message of an unknown kind was ignored"),
        }
        Ok(Reply::Nothing)
    }

    /// A new batch goes to the runner, a finished one is answered again.
    fn order(&self, order: Order) -> Result<Reply, LinkError> {
        match self.shared.outbox.known(&order.batch) {
            Some(Known::Finished(_)) => Ok(Reply::Result(order.batch)),
            Some(Known::Acknowledged) => {
                info!(batch = %order.batch, "order of a finished and acknowledged batch ignored");
                Ok(Reply::Nothing)
            }
            None => {
                debug!(batch = %order.batch, "order");
                let batch = order.batch.clone();
                Ok(match self.shared.orders.offer(order) {
                    Offered::Taken | Offered::Known => Reply::Nothing,
                    Offered::TurnedAway => Reply::TurnedAway(batch),
                })
            }
        }
    }

    /// Sends what changed, or everything; false when nothing is known of the host yet.
    async fn tell_inventory(&mut self, handle: &Handle, all: bool) -> Result<bool, ()> {
        let Some(report) = self.shared.discovery.host().map(|host| Report::of(&host)) else {
            return Ok(false);
        };
        let unchanged = report.digest == self.shared.session.digest();
        if unchanged && !all {
            self.sent = Some(report);
            return Ok(true);
        }
        let base = if all { None } else { self.base() };
        let delta = report.delta(base);
        handle.send(agent_message::Body::Inventory(delta)).await?;
        self.was_sent(report);
        Ok(true)
    }

    /// What was sent last, if this process knows it.
    fn base(&self) -> Option<&Report> {
        self.sent.as_ref().filter(|sent| sent.digest == self.shared.session.digest())
    }

    fn was_sent(&mut self, report: Report) {
        if let Err(error) = self.shared.session.sent(&report.digest) {
            error!(error = %crate::chain_of(&error), "cannot remember what was sent");
        }
        self.sent = Some(report);
    }

    fn acknowledge(&self, batch: &str, payload: &[u8]) {
        if let Err(error) = self.shared.outbox.acknowledge(batch, payload) {
            error!(error = %crate::chain_of(&error), "cannot remember an acknowledgement");
        }
    }

    /// Says that an order found no place.
    async fn full(&self, batch: &str) {
        let text = format!(
            "{MOST_WAITING} orders wait on this host, no more are taken; they are asked for again when half of them are done"
        );
        warn!(batch, "order turned away: {text}");
        let found = finding(TOO_MANY_ORDERS, "host", &text, "critical");
        self.shared.discovery.note(TOO_MANY_ORDERS, "host", Some(found)).await;
    }

    /// Sends a result, once per session unless it is asked for again, with the
    /// inventory that shows it.
    async fn tell_result(&mut self, line: &mut Line<'_>, batch: &str, again: bool) -> Result<(), ()> {
        let Some(Known::Finished(result)) = self.shared.outbox.known(batch) else {
            return Ok(());
        };
        if line.told.is_last(batch, &result.payload) && !again {
            return Ok(());
        }
        let result = match evidence::vouched(*result, line.identity) {
            Ok(Some(result)) => result,
            Ok(None) => {
                error!(
                    batch,
                    "a result of the time when this machine was another host is given up: nobody would take it"
                );
                if let Err(error) = self.shared.outbox.give_up(batch) {
                    error!(error = %crate::chain_of(&error), "cannot forget a result");
                }
                return Ok(());
            }
            Err(error) => {
                error!(batch, error = %crate::chain_of(&error), "a result cannot be signed; it waits");
                return Ok(());
            }
        };
        let report = self.shared.discovery.host().map(|host| Report::of(&host));
        let changed = report.filter(|report| report.digest != self.shared.session.digest());
        let result =
            BatchResult { inventory: changed.as_ref().map(|report| report.delta(self.base())), ..result };
        crate::fail_point("agent.before_report");
        let payload = result.payload.clone();
        line.handle.send(agent_message::Body::Result(result)).await?;
        line.told.sent(batch, payload);
        if let Some(report) = changed {
            self.was_sent(report);
        }
        Ok(())
    }
}

/// From one time to a later one.
fn left(now: i64, to: i64) -> Duration {
    Duration::from_secs(u64::try_from(to.saturating_sub(now)).unwrap_or(0))
}

/// An open session: where to send, as whom, and what was sent.
struct Line<'a> {
    handle: Handle,
    identity: &'a Identity,
    told: Told,
}

/// What a message from the coordinator wants in return.
enum Reply {
    Nothing,
    Inventory,
    TurnedAway(String),
    Result(String),
    Adopt(Adopt),
    Acknowledged(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_times_have_a_distance() {
        assert_eq!(left(i64::MIN, 5), Duration::from_secs(i64::MAX.unsigned_abs()));
        assert_eq!(left(i64::MAX, i64::MIN), Duration::ZERO);
        assert_eq!(left(5, 7), Duration::from_secs(2));
    }
}
