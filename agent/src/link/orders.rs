//! Orders between the session and the batch runner, each batch once.
//!
//! A coordinator orders again what has no result yet, on each session. What
//! waits here or is being worked on is not taken a second time. Bounded: what
//! finds no place is turned away, said aloud, and asked for again by a new
//! session once half of what waited is done.

use std::collections::VecDeque;
use std::sync::Mutex;

use reseal_proto::v1::Order;
use tokio::sync::Notify;

/// Orders that wait at most.
pub const MOST_WAITING: usize = 256;

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It waits for its turn.
    Taken,
    /// It waits already (as it came last), or is being worked on.
    Known,
    /// There is no place.
    TurnedAway,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Orders {
    held: Mutex<Held>,
    arrived: Notify,
    room: Notify,
}

#[derive(Debug, Default)]
struct Held {
    waiting: VecDeque<Order>,
    running: Option<String>,
    /// Orders were turned away and nobody has asked for them since.
    turned_away: bool,
}

impl Orders {
    /// An order has come.
    pub fn offer(&self, order: Order) -> Offered {
        let mut held = self.held();
        if held.running.as_ref() == Some(&order.batch) {
            return Offered::Known;
        }
        if let Some(known) = held.waiting.iter_mut().find(|known| known.batch == order.batch) {
            // Targets may have been taken out of it since.
            *known = order;
            return Offered::Known;
        }
        if held.waiting.len() >= MOST_WAITING {
            held.turned_away = true;
            return Offered::TurnedAway;
        }
        held.waiting.push_back(order);
        self.arrived.notify_one();
        Offered::Taken
    }

    /// The next one, in the order of arrival; it is being worked on until the
    /// next call.
    pub async fn next(&self) -> Order {
        self.held().running = None;
        loop {
            {
                let mut held = self.held();
                if let Some(order) = held.waiting.pop_front() {
                    held.running = Some(order.batch.clone());
                    if held.turned_away && held.waiting.len() <= MOST_WAITING / 2 {
                        self.room.notify_one();
                    }
                    return order;
                }
            }
            self.arrived.notified().await;
        }
    }

    /// Ends when orders that were turned away may come again.
    pub async fn room_again(&self) {
        self.room.notified().await;
        self.held().turned_away = false;
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.held().waiting.len()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn order(batch: usize, targets: usize) -> Order {
        let installations = (0..targets).map(|n| format!("/{n}")).collect();
        Order { batch: format!("r{batch}.0"), installations, ..Order::default() }
    }

    #[tokio::test]
    async fn a_batch_is_taken_once_as_it_came_last() {
        let orders = Orders::default();
        assert_eq!(orders.offer(order(1, 2)), Offered::Taken);
        assert_eq!(orders.offer(order(2, 2)), Offered::Taken);
        assert_eq!(orders.offer(order(2, 1)), Offered::Known);
        assert_eq!(orders.next().await.batch, "r1.0");
        assert_eq!(orders.offer(order(1, 2)), Offered::Known, "it is being worked on");
        assert_eq!(orders.next().await, order(2, 1));
        assert_eq!(orders.waiting(), 0);
        // The first one's result was lost with its acknowledgement: it may come again.
        assert_eq!(orders.offer(order(1, 2)), Offered::Taken);
    }

    #[tokio::test]
    async fn what_finds_no_place_is_wanted_again_when_there_is_room() {
        let orders = Orders::default();
        for _ in 0..3 {
            for batch in 0..MOST_WAITING {
                assert_ne!(orders.offer(order(batch, 1)), Offered::TurnedAway);
            }
        }
        assert_eq!(orders.offer(order(MOST_WAITING, 1)), Offered::TurnedAway);
        assert!(orders.room_again().now_or_never().is_none());
        for _ in 0..MOST_WAITING / 2 {
            orders.next().await;
        }
        assert!(orders.room_again().now_or_never().is_some());
        orders.next().await;
        assert!(orders.room_again().now_or_never().is_none(), "asked for once");
        assert_eq!(orders.offer(order(MOST_WAITING, 1)), Offered::Taken);
    }
}
