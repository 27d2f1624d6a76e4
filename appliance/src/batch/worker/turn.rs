//! Turns: steps of the work on messages run side by side, those of suspect messages alone.
//!
//! A step that pauses, as it waits for a store or for its next try, gives its turn back meanwhile, and its start: one
//! that waits alone would stop all others, and an end of the process is not the fault of what only waits.

use std::pin::pin;

use tokio::sync::{RwLockReadGuard, RwLockWriteGuard};
use ulid::Ulid;

use super::alone::Attempt;
use super::{ChunkError, Worker};
use crate::batch::pausing::Pauses;

/// The right to work, beside others or alone.
struct Turn<'a> {
    _beside: Option<RwLockReadGuard<'a, ()>>,
    _alone: Option<RwLockWriteGuard<'a, ()>>,
}

/// A message and, where the step is for one alone, its image.
type Noted<'a, 'b> = Option<(&'a Attempt<'b>, Option<u64>)>;

impl Worker {
    /// Runs a step of the work on a message when its turn comes, beside the steps of other messages, or alone. Nothing
    /// that waits for the work on another message may be in a step.
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
    pub(super) async fn beside<T>(&self, work: impl Future<Output = T> + Send) -> T {
        self.run_step(None, work).await.0
    }

    /// Runs a step. Returns the turn that it had at its end, if it had one.
    async fn run_step<T>(
        &self,
        noted: Noted<'_, '_>,
        step: impl Future<Output = T> + Send,
    ) -> (T, Option<Turn<'_>>) {
        let pauses = Pauses::default();
        let mut step = pin!(pauses.of(step));
        let mut turn = Some(self.begin_turn(noted).await);
        loop {
            tokio::select! {
                biased;
                result = &mut step => return (result, turn),
                () = pauses.begun(), if turn.is_some() => {
                    if let Some((attempt, _)) = noted {
                        self.end_work(attempt, false).await;
                    }
                    turn = None;
                }
                () = pauses.over(), if turn.is_none() => {
                    turn = Some(self.begin_turn(noted).await);
                    pauses.go_on();
                }
            }
        }
    }

    /// Waits for a turn, and notes that the work on the message begins. A turn is not held while the state store is
    /// away.
    async fn begin_turn(&self, noted: Noted<'_, '_>) -> Turn<'_> {
        let alone = noted.is_some_and(|(attempt, _)| attempt.is_suspect());
        let to_note = noted.filter(|(attempt, _)| alone || !attempt.is_started());
        // The same for every try: the answer to one that was heard may be lost.
        let step = (Ulid::generate().0 & u128::from(u64::MAX)) as u64;
        let mut backoff = self.retry.backoff();
        loop {
            let turn = self.turn(alone).await;
            let Some((attempt, image)) = to_note else { return turn };
            attempt.begin(step);
            let error = match self.state.begin_work(&attempt.delivery.position, image, step).await {
                Ok(()) => return turn,
                Err(error) => error,
            };
            drop(turn);
            self.retry.pause(&mut backoff, "noting that work begins", &error).await;
        }
    }

    async fn turn(&self, alone: bool) -> Turn<'_> {
        if alone {
            Turn { _beside: None, _alone: Some(self.stats.turns.write().await) }
        } else {
            Turn { _beside: Some(self.stats.turns.read().await), _alone: None }
        }
    }

    /// Notes that the current start of the work on a message is no matter any more, or that none is once the message is
    /// done. A store that is away is not waited for: at worst there is one start too many.
    pub(super) async fn end_work(&self, attempt: &Attempt<'_>, done: bool) {
        let step = attempt.end();
        if !done && step.is_none() {
            return;
        }
        let (position, step) = (&attempt.delivery.position, step.filter(|_| !done));
        let ended = tokio::time::timeout(super::END_WAIT, self.state.end_work(position, step)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::debug!(position, "the end of the work was not noted");
        }
    }
}
