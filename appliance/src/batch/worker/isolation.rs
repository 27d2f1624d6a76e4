//! Isolating messages during whose work the process has ended repeatedly.
//!
//! Every start of the work on a message is recorded before it begins, in the state store, which survives a crash of the
//! process. A message that waits for its turn is not started.
//!
//! After [`MAX_STARTS`] starts without completion the message is suspect: from then on each step of the work on it runs
//! alone, one image at a time, so that an end of the process can be attributed to that step. A start that ends in order is
//! taken back at once. An image at which the process ended [`MAX_DEATHS`] times has failed; the rest of the batch is
//! completed. Once or twice is not enough: the process may have ended for another reason, such as a loss of power. For
//! the same reason images at which a start ended come last: whatever ends the process from outside hits other images
//! in the meantime, while an image that does it itself is hit again. Where there are no others, more ends are required.
//! Ends at no image say little about a message: whatever ends the process from outside hits some message, too.
//!
//! Steps of messages that are not suspect run side by side. A step that pauses, as it waits for a store or for its next
//! attempt, gives up its turn meanwhile, and its start: an isolated step that waits would stop all others, and an end of
//! the process is not caused by a step that only waits.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use cloud_sync::batch_status::WorkStarts;
use cloud_sync::event::BatchItem;
use cloud_sync::queue::Delivery;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::timeout;
use ulid::Ulid;

use super::chunk::ChunkState;
use super::compute::{CANCELLED_GRACE, item};
use super::{ChunkError, Worker, WorkerStats};
use crate::batch::result_store::failed;
use crate::batch::retry::Pauses;

/// Starts of a message side by side with others.
const MAX_STARTS: u32 = 3;
/// Ends of the process at an isolated image.
const MAX_DEATHS: u32 = 3;
/// The same for the only image of a message: whatever ends the process from outside hits no other.
const MAX_DEATHS_PER_IMAGE: u32 = 6;
/// Ends of the process at a message and at none of its images: this many are no accident, and all of its images fail.
const MAX_FOREIGN_STARTS: u32 = 100;
/// How long others wait for an isolated image, at first. One that takes longer is repeated after the other images, with
/// twice the time, up to [`MAX_ISOLATION_TIME`].
const FIRST_ISOLATION_TIME: Duration = Duration::from_secs(60);
const MAX_ISOLATION_TIME: Duration = Duration::from_secs(16 * 60);

/// Longest wait for the state store to record the end of the work on a message.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// One attempt at the work on one message.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) delivery: &'a Delivery,
    /// Earlier starts without completion, once they are known.
    earlier: OnceLock<WorkStarts>,
    /// The step of the start that is recorded and has not ended.
    step: Mutex<Option<u64>>,
    /// Its slot among the messages in progress, until the work is over.
    slot: Mutex<Option<OwnedSemaphorePermit>>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(delivery: &'a Delivery, slot: OwnedSemaphorePermit) -> Self {
        let slot = Mutex::new(Some(slot));
        Self { delivery, earlier: OnceLock::new(), step: Mutex::default(), slot }
    }

    fn earlier(&self) -> &WorkStarts {
        self.earlier.get_or_init(WorkStarts::default)
    }

    /// Whether its steps must run alone.
    pub(super) fn is_suspect(&self) -> bool {
        self.earlier().starts >= MAX_STARTS
    }

    /// Whether its images are not processed any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.earlier().ended_elsewhere() >= MAX_FOREIGN_STARTS
    }

    /// Lets another message be processed in its place.
    pub(super) fn free_slot(&self) {
        self.slot.lock().take();
    }

    fn is_started(&self) -> bool {
        self.step.lock().is_some()
    }

    /// Begins a step, which is recorded in the state store next.
    fn begin(&self, step: u64) {
        *self.step.lock() = Some(step);
    }

    /// Ends the step that was begun last, if it has not ended.
    fn end(&self) -> Option<u64> {
        self.step.lock().take()
    }
}

/// How the work on an isolated image ended.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Isolated {
    Done(BatchItem),
    /// Its time is over; others must not wait for it any longer.
    Late,
    /// Its batch was cancelled.
    Cancelled,
}

/// The right to work, beside others or alone.
struct Turn<'a> {
    _shared: Option<RwLockReadGuard<'a, ()>>,
    _exclusive: Option<RwLockWriteGuard<'a, ()>>,
}

/// A message whose start is recorded and, where the step is for one alone, its image.
type Recorded<'a, 'b> = Option<(&'a Attempt<'b>, Option<u64>)>;

impl Worker {
    /// Loads the earlier starts of a message.
    pub(super) async fn load_starts(&self, attempt: &Attempt<'_>) {
        let starts = || self.state.work_starts(&attempt.delivery.position);
        let starts = self.retry.retry_forever("reading earlier starts of a message", starts).await;
        let _ = attempt.earlier.set(starts);
    }

    /// The results of the images, computed one after the other. Fewer than there are images when the batch is cancelled
    /// meanwhile.
    pub(super) async fn items_isolated(&self, chunk: &ChunkState<'_>) -> Result<Vec<BatchItem>, ChunkError> {
        let (attempt, message) = (chunk.attempt, &chunk.message);
        let earlier = attempt.earlier();
        tracing::warn!(
            position = attempt.delivery.position,
            starts = earlier.starts,
            "a message was started several times without completion: processing its images one at a time"
        );
        let index_of = |offset: usize| message.first + offset as u64;
        let mut offsets: Vec<usize> = (0..message.image_urls.len()).collect();
        offsets.sort_by_key(|offset| earlier.ended_at(index_of(*offset)));
        let max_ends = if offsets.len() == 1 { MAX_DEATHS_PER_IMAGE } else { MAX_DEATHS };
        let mut items = Vec::with_capacity(offsets.len());
        let mut left: VecDeque<_> =
            offsets.into_iter().map(|offset| (offset, FIRST_ISOLATION_TIME)).collect();
        while let Some((offset, limit)) = left.pop_front() {
            let index = index_of(offset);
            if earlier.ended_at(index) >= max_ends {
                let request_id = &message.spec.request_id;
                tracing::error!(
                    request_id,
                    index,
                    "giving up an image: the process ended while processing it"
                );
                WorkerStats::count(&self.stats.failed);
                WorkerStats::count(&self.stats.crashing_images);
                let error =
                    format!("the worker process ended {max_ends} times while it processed this image");
                items.push(item(message, offset, failed("worker_crashed", error)));
                continue;
            }
            if self.is_cancelled(&message.spec).await {
                break;
            }
            let step = self.item_isolated(chunk, offset, limit);
            match self.in_turn(attempt, Some(index), step).await? {
                Isolated::Done(item) => items.push(item),
                Isolated::Late => left.push_back((offset, (2 * limit).min(MAX_ISOLATION_TIME))),
                Isolated::Cancelled => break,
            }
        }
        items.sort_by_key(|item| item.index);
        Ok(items)
    }

    async fn item_isolated(
        &self,
        chunk: &ChunkState<'_>,
        offset: usize,
        limit: Duration,
    ) -> Result<Isolated, ChunkError> {
        let mut item = pin!(timeout(limit, self.item_in_time(chunk, offset)));
        let item = tokio::select! {
            item = &mut item => item,
            () = self.cancelled(chunk) => match timeout(CANCELLED_GRACE, &mut item).await {
                Ok(item) => item,
                Err(_) => return Ok(Isolated::Cancelled),
            },
        };
        item.map_or(Ok(Isolated::Late), |item| item.map(Isolated::Done))
    }

    /// Runs a step of the work on a message when its turn comes, beside the steps of other messages, or alone. A step must
    /// not contain anything that waits for the work on another message.
    pub(super) async fn in_turn<T>(
        &self,
        attempt: &Attempt<'_>,
        image: Option<u64>,
        step: impl Future<Output = Result<T, ChunkError>> + Send,
    ) -> Result<T, ChunkError> {
        let (result, turn) = self.run_step(Some((attempt, image)), step).await;
        let ended_well = matches!(result, Ok(_) | Err(ChunkError::Stopping));
        if attempt.is_suspect() && attempt.is_started() && ended_well {
            self.end_work(attempt, false).await;
        }
        drop(turn);
        result
    }

    /// Runs the work on an image of a message that has been started, beside that on others.
    pub(super) async fn in_shared_turn<T>(&self, work: impl Future<Output = T> + Send) -> T {
        self.run_step(None, work).await.0
    }

    /// Runs a step. Returns the turn that it had at its end, if it had one.
    async fn run_step<T>(
        &self,
        recorded: Recorded<'_, '_>,
        step: impl Future<Output = T> + Send,
    ) -> (T, Option<Turn<'_>>) {
        let pauses = Pauses::default();
        let mut step = pin!(pauses.scope(step));
        let mut turn = Some(self.begin_turn(recorded).await);
        loop {
            tokio::select! {
                biased;
                result = &mut step => return (result, turn),
                () = pauses.paused(), if turn.is_some() => {
                    if let Some((attempt, _)) = recorded {
                        self.end_work(attempt, false).await;
                    }
                    turn = None;
                }
                () = pauses.over(), if turn.is_none() => {
                    turn = Some(self.begin_turn(recorded).await);
                    pauses.resume();
                }
            }
        }
    }

    /// Waits for a turn, and records that the work on the message begins. No turn is held while the state store is away.
    async fn begin_turn(&self, recorded: Recorded<'_, '_>) -> Turn<'_> {
        let alone = recorded.is_some_and(|(attempt, _)| attempt.is_suspect());
        let to_record = recorded.filter(|(attempt, _)| alone || !attempt.is_started());
        // The same for every attempt: the answer to a call that took effect may be lost.
        let step = (Ulid::generate().0 & u128::from(u64::MAX)) as u64;
        let mut backoff = self.retry.backoff();
        loop {
            let turn = self.turn(alone).await;
            let Some((attempt, image)) = to_record else { return turn };
            attempt.begin(step);
            let error = match self.state.begin_work(&attempt.delivery.position, image, step).await {
                Ok(()) => return turn,
                Err(error) => error,
            };
            drop(turn);
            self.retry.pause(&mut backoff, "recording that work begins", &error).await;
        }
    }

    async fn turn(&self, alone: bool) -> Turn<'_> {
        if alone {
            Turn { _shared: None, _exclusive: Some(self.stats.turns.write().await) }
        } else {
            Turn { _shared: Some(self.stats.turns.read().await), _exclusive: None }
        }
    }

    /// Takes back the current start of the work on a message, or all of them once the message is done. A store that is
    /// away is not waited for: at worst one start too many is counted.
    pub(super) async fn end_work(&self, attempt: &Attempt<'_>, done: bool) {
        let step = attempt.end();
        if !done && step.is_none() {
            return;
        }
        let (position, step) = (&attempt.delivery.position, step.filter(|_| !done));
        let ended = timeout(END_TIMEOUT, self.state.end_work(position, step)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::debug!(position, "could not record the end of the work on a message");
        }
    }
}
