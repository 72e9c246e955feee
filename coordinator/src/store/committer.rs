//! Group commit: many callers, one flush.
//!
//! A thread of its own takes requests from a bounded queue and hands them to
//! the engine group by group; while one group is being flushed the next one
//! gathers. Under load it waits a moment longer, because a flush shared by more
//! members costs each of them less; an idle store commits at once. It never
//! looks into a member.

use super::error::StoreError;
use super::kv::{Kv, Member};

use tokio::sync::{mpsc, oneshot};

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Requests that may wait; further callers wait for a place.
const QUEUE: usize = 4096;
/// Members of a group at most.
const MEMBERS: usize = 2048;
/// Bytes of a group at most, one large member apart.
const BYTES: usize = 8 * 1024 * 1024;
/// How long a group gathers for each member of the one before it, and at most:
/// the busier the store, the more a flush is shared.
const WINDOW_EACH: Duration = Duration::from_millis(3);
const WINDOW: Duration = Duration::from_millis(30);
/// A group of so many, when it is no smaller than the one before, waits for no more.
const ENOUGH: usize = 16;
/// How often in a window it looks whether they are there.
const LOOKS: u32 = 5;

type Answer = Result<u64, StoreError>;

enum Request {
    Commit(Member, oneshot::Sender<Answer>),
    /// Commits nothing until the second one is dropped; says so by the first.
    Pause(oneshot::Sender<()>, oneshot::Receiver<()>),
}

/// The callers' side.
pub(super) struct Committer {
    queue: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    /// The engine, asked directly: no thread, no groups.
    #[cfg(feature = "simulation")]
    inline: Option<Arc<dyn Kv>>,
}

/// No commit is made while it is held.
#[derive(Debug)]
pub(super) struct Paused(#[allow(dead_code, reason = "its drop is the message")] oneshot::Sender<()>);

impl Committer {
    /// Starts the thread.
    pub(super) fn start(kv: Arc<dyn Kv>) -> Result<Committer, StoreError> {
        let failed = |error: io::Error| StoreError::engine("start its committer", error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (queue, requests) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn(move || Groups { requests, waiting: VecDeque::new(), last: 0 }.run(&*kv, &runtime))
            .map_err(failed)?;
        Ok(Committer {
            queue: Some(queue),
            thread: Some(thread),
            #[cfg(feature = "simulation")]
            inline: None,
        })
    }

    /// Without a thread.
    #[cfg(feature = "simulation")]
    pub(super) fn inline(kv: Arc<dyn Kv>) -> Committer {
        Committer { queue: None, thread: None, inline: Some(kv) }
    }

    /// Commits a member; durable when it returns. If dropped while it waits,
    /// the member may still be committed.
    pub(super) async fn commit(&self, member: Member) -> Answer {
        #[cfg(feature = "simulation")]
        if let Some(kv) = &self.inline {
            return kv.commit(vec![member]).await?.remove(0);
        }
        let (answer, answered) = oneshot::channel();
        self.send(Request::Commit(member, answer)).await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Lets what is under way finish, then commits nothing more.
    pub(super) async fn pause(&self) -> Result<Paused, StoreError> {
        let (paused, is_paused) = oneshot::channel();
        let (resume, resumed) = oneshot::channel();
        self.send(Request::Pause(paused, resumed)).await?;
        is_paused.await.map_err(|_| StoreError::Closed)?;
        Ok(Paused(resume))
    }

    async fn send(&self, request: Request) -> Result<(), StoreError> {
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send(request).await.map_err(|_| StoreError::Closed)
    }
}

impl Drop for Committer {
    /// Commits what is queued, then waits for the thread to let go of the engine.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Groups {
    requests: mpsc::Receiver<Request>,
    waiting: VecDeque<Request>,
    /// Members of the last group.
    last: usize,
}

impl Groups {
    fn run(mut self, kv: &dyn Kv, runtime: &tokio::runtime::Runtime) {
        let mut taken = Vec::new();
        while self.gather(&mut taken) {
            let (members, answers) = self.group();
            self.last = members.len();
            if !members.is_empty() {
                match runtime.block_on(kv.commit(members)) {
                    Ok(results) => {
                        for (answer, result) in answers.into_iter().zip(results) {
                            // An error only says that the caller has left.
                            let _ = answer.send(result);
                        }
                    }
                    Err(error) => {
                        for answer in answers {
                            let _ = answer.send(Err(error.clone()));
                        }
                    }
                }
            }
            if matches!(self.waiting.front(), Some(Request::Pause(..)))
                && let Some(Request::Pause(paused, resumed)) = self.waiting.pop_front()
                && paused.send(()).is_ok()
            {
                // Always an error: it is dropped, never sent.
                let _ = resumed.blocking_recv();
            }
        }
    }

    /// Waits for requests; false when there will be none any more.
    fn gather(&mut self, taken: &mut Vec<Request>) -> bool {
        if self.waiting.is_empty() {
            if self.requests.blocking_recv_many(taken, MEMBERS) == 0 {
                return false;
            }
            self.waiting.extend(taken.drain(..));
        }
        if self.last > 1 {
            let begun = Instant::now();
            let window = WINDOW.min(WINDOW_EACH * u32::try_from(self.last).unwrap_or(u32::MAX));
            let enough = self.last.clamp(ENOUGH, MEMBERS);
            while self.waiting.len() + self.requests.len() < enough && begun.elapsed() < window {
                thread::sleep(window / LOOKS);
            }
        }
        while self.waiting.len() < MEMBERS {
            match self.requests.try_recv() {
                Ok(request) => self.waiting.push_back(request),
                Err(_) => break,
            }
        }
        true
    }

    /// Takes the next group off what waits.
    fn group(&mut self) -> (Vec<Member>, Vec<oneshot::Sender<Answer>>) {
        let room = self.waiting.len().min(MEMBERS);
        let (mut members, mut answers) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let mut bytes = 0;
        while members.len() < MEMBERS && bytes < BYTES {
            match self.waiting.pop_front() {
                Some(Request::Commit(member, answer)) => {
                    bytes += member.size();
                    members.push(member);
                    answers.push(answer);
                }
                Some(pause) => {
                    self.waiting.push_front(pause);
                    break;
                }
                None => break,
            }
        }
        (members, answers)
    }
}
