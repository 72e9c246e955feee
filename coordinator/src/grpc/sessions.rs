//! Which host is on which stream, and the way to wake it.
//!
//! One session per host: a newer one ends the older. The dispatcher takes the
//! projection's wake-ups to the sessions; a wake-up carries no order, the
//! session looks for itself. What an operator asks of a host waits here until
//! its session takes it, bounded in number; with the session it ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use reseal_proto::v1::{Adopt, Adopted};
use tokio::sync::{Notify, oneshot};

use crate::view::View;

/// Questions to one host whose answer is awaited.
pub(crate) const MOST_QUESTIONS: usize = 4;

/// The sessions of this process. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<HashMap<Arc<str>, Arc<Slot>>>>);

/// One session's place.
#[derive(Default)]
pub(crate) struct Slot {
    notify: Notify,
    ended: std::sync::atomic::AtomicBool,
    questions: Mutex<Vec<Question>>,
}

/// What an operator asks of a host.
struct Question {
    request: Box<str>,
    /// Until it is sent.
    asked: Option<Adopt>,
    answer: oneshot::Sender<Adopted>,
}

/// Why a host cannot be asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unasked {
    /// It has no session here.
    #[error("it has no session")]
    Away,
    /// It has enough to answer.
    #[error("{MOST_QUESTIONS} questions to it wait for their answers already")]
    Busy,
}

impl Slot {
    /// Waits to be woken; false when this session has to end.
    pub(crate) async fn woken(&self) -> bool {
        self.notify.notified().await;
        !self.ended.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Takes what is to be asked and was not yet.
    pub(crate) fn questions(&self) -> Vec<Adopt> {
        self.open().iter_mut().filter_map(|question| question.asked.take()).collect()
    }

    /// Takes an answer to whom it is for; one that nobody waits for is dropped.
    pub(crate) fn answered(&self, answer: Adopted) {
        let mut open = self.open();
        let waits = |question: &Question| *question.request == *answer.request && question.asked.is_none();
        if let Some(at) = open.iter().position(waits) {
            let _ = open.swap_remove(at).answer.send(answer);
        }
    }

    fn end(&self) {
        self.ended.store(true, std::sync::atomic::Ordering::Release);
        self.notify.notify_one();
    }

    fn ask(&self, adopt: Adopt) -> Result<oneshot::Receiver<Adopted>, Unasked> {
        let (answer, answered) = oneshot::channel();
        let mut open = self.open();
        // Who asked may have gone.
        open.retain(|question| !question.answer.is_closed());
        if open.len() >= MOST_QUESTIONS {
            return Err(Unasked::Busy);
        }
        open.push(Question { request: adopt.request.as_str().into(), asked: Some(adopt), answer });
        drop(open);
        self.notify.notify_one();
        Ok(answered)
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Vec<Question>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// Takes the host's place; a session that had it ends.
    pub(crate) fn enter(&self, host: &Arc<str>) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        let old = self.map().insert(host.clone(), slot.clone());
        if let Some(old) = old {
            old.end();
        }
        slot
    }

    /// Leaves it, unless somebody newer has it.
    pub(crate) fn leave(&self, host: &Arc<str>, slot: &Arc<Slot>) {
        let mut map = self.map();
        if map.get(host).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            map.remove(host);
        }
    }

    /// Asks a host over its session; the answer comes, or the session ends without one.
    pub(crate) fn ask(&self, host: &str, adopt: Adopt) -> Result<oneshot::Receiver<Adopted>, Unasked> {
        let slot = self.map().get(host).cloned().ok_or(Unasked::Away)?;
        slot.ask(adopt)
    }

    /// Takes wake-ups to sessions, for ever.
    pub(crate) async fn dispatch(self, view: View) {
        loop {
            let hosts = view.woken().await;
            let map = self.map();
            for host in hosts {
                if let Some(slot) = map.get(&host) {
                    slot.notify.notify_one();
                }
            }
        }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adopt(request: &str) -> Adopt {
        Adopt { request: request.into(), ..Adopt::default() }
    }

    fn answer(request: &str) -> Adopted {
        Adopted { request: request.into(), ..Adopted::default() }
    }

    #[tokio::test]
    async fn an_answer_goes_to_who_asked() {
        let sessions = Sessions::default();
        assert_eq!(sessions.ask("h1", adopt("1")).unwrap_err(), Unasked::Away);
        let slot = sessions.enter(&"h1".into());
        let (first, second) =
            (sessions.ask("h1", adopt("1")).unwrap(), sessions.ask("h1", adopt("2")).unwrap());
        assert!(slot.woken().await);
        slot.answered(answer("1"));
        assert_eq!(slot.questions().len(), 2, "nothing is answered before it was sent");
        assert!(slot.questions().is_empty(), "sent once");
        slot.answered(answer("2"));
        slot.answered(answer("nobody asked"));
        assert_eq!(second.await.unwrap().request, "2");
        slot.answered(answer("1"));
        assert_eq!(first.await.unwrap().request, "1");
    }

    #[tokio::test]
    async fn questions_are_bounded_and_end_with_the_session() {
        let sessions = Sessions::default();
        let host: Arc<str> = "h1".into();
        let slot = sessions.enter(&host);
        let mut waiting: Vec<_> =
            (0..MOST_QUESTIONS).map(|n| sessions.ask("h1", adopt(&n.to_string())).unwrap()).collect();
        assert_eq!(sessions.ask("h1", adopt("x")).unwrap_err(), Unasked::Busy);
        waiting.pop();
        waiting.push(sessions.ask("h1", adopt("in the place of one that has gone")).unwrap());
        sessions.leave(&host, &slot);
        drop(slot);
        for answer in waiting {
            assert!(answer.await.is_err());
        }
    }
}
