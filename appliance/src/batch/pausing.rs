//! Pauses in a step of the work: while it waits for a store that is away, or for its next try, it computes nothing, and
//! whoever runs it lets others work.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

tokio::task_local! {
    static STEP: Pauses;
}

/// The pauses of one step, as whoever runs it sees them.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Parts of the step that are in a pause.
    waiting: watch::Sender<usize>,
    /// Whether a part that is over with its pause has to wait until the step goes on.
    held: watch::Sender<bool>,
}

impl Pauses {
    /// The step, with its pauses told here.
    pub(super) async fn of<T>(&self, step: impl Future<Output = T>) -> T {
        STEP.scope(self.clone(), step).await
    }

    /// Ends when a part of the step is in a pause.
    pub(super) async fn begun(&self) {
        let _ = self.0.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }

    /// Ends when no part of the step is in a pause.
    pub(super) async fn over(&self) {
        let _ = self.0.waiting.subscribe().wait_for(|waiting| *waiting == 0).await;
    }

    /// Lets the step go on after its pauses.
    pub(super) fn go_on(&self) {
        self.0.held.send_replace(false);
    }
}

/// A pause of the step that runs, until dropped. Outside of any step it is nothing.
#[derive(Debug)]
pub(super) struct Pause(Option<Pauses>);

impl Pause {
    /// Begins a pause.
    pub(super) fn begin() -> Self {
        let step = STEP.try_with(Clone::clone).ok();
        if let Some(Pauses(step)) = &step {
            step.held.send_replace(true);
            step.waiting.send_modify(|waiting| *waiting += 1);
        }
        Self(step)
    }

    /// Ends it, and waits until the step may go on.
    pub(super) async fn end(self) {
        let step = self.0.clone();
        drop(self);
        if let Some(Pauses(step)) = step {
            let _ = step.held.subscribe().wait_for(|held| !held).await;
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Some(Pauses(step)) = &self.0 {
            step.waiting.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
        }
    }
}

/// Sleeps, in a pause.
pub(super) async fn sleep(time: Duration) {
    let pause = Pause::begin();
    tokio::time::sleep(time).await;
    pause.end().await;
}
