//! What follows a promotion: the new version is held against the limits for a while, and rolled back where it passes one. A
//! version that could not be loaded at the start is loaded as soon as that works.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::journal::Placed;
use super::retire::retire;
use super::status::Step;
use super::steps::Setback;
use super::task::Task;
use super::verdict::{Evidence, judge_promoted};
use crate::serving::{LoadedModel, TallyReading};

/// How often a promoted version is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A version that was promoted, while it is monitored.
pub(super) struct Promoted {
    model: Arc<LoadedModel>,
    began: Instant,
    /// What it had done when it was promoted.
    done: TallyReading,
    /// What the version before it had done by then.
    before: TallyReading,
    looked: Instant,
}

impl Promoted {
    pub(super) fn new(model: &Arc<LoadedModel>, before: &LoadedModel) -> Self {
        let now = Instant::now();
        let (done, before) = (model.tally.read(), before.tally.read());
        Self { model: Arc::clone(model), began: now, done, before, looked: now }
    }

    /// When it is to be looked at next.
    pub(super) fn next_look(&self) -> Instant {
        self.looked + POLL_INTERVAL
    }
}

impl Task {
    /// Looks at the version that was promoted last, and goes back to the one before if it passes a limit.
    pub(super) async fn check_promoted(&mut self) {
        let Some(promoted) = &mut self.promoted else { return };
        if promoted.next_look() > Instant::now() {
            return;
        }
        promoted.looked = Instant::now();
        let current = self.followed.slot.current();
        let serves = current.is_some_and(|current| Arc::ptr_eq(&current, &promoted.model));
        let evidence = Evidence {
            time: promoted.began.elapsed(),
            trial: promoted.model.tally.read().since(&promoted.done),
            serving: promoted.before.clone(),
            compared: 0,
            disagreed: 0,
        };
        let config = &self.around.settings.rollout;
        let judged = if serves { judge_promoted(&evidence, config) } else { None };
        if !serves || evidence.time >= config.monitor_time {
            self.promoted = None;
        }
        let Some(reason) = judged else { return };
        self.promoted = None;
        let reason = format!("after it was promoted, {reason}");
        tracing::error!(model = self.name(), reason, "the version that serves is rolled back");
        if let Err(refusal) = self.back(&reason).await {
            tracing::error!(model = self.name(), %refusal, "it could not be rolled back, so it serves on");
            self.board.note(|status| {
                status.error = Some(format!("{reason}; it could not be rolled back: {refusal}"));
            });
        }
    }

    /// Loads the version that served when the last process ended, where the start could not.
    pub(super) async fn restore(&mut self) {
        let name = self.name().to_owned();
        let Some(placed) = super::start::still_followed(&self.followed, &self.around.journal).serving else {
            return;
        };
        let origin = placed.origin();
        let current = self.followed.slot.current();
        if current.as_ref().is_some_and(|current| current.origin.as_ref() == Some(&origin)) {
            return;
        }
        let outcome = self.load(&placed.digest, Some(origin.clone())).await;
        self.board.note(|status| status.step = Step::Idle);
        match outcome {
            Ok(model) => {
                tracing::info!(
                    model = name,
                    version = model.describe(),
                    "the version that served before serves again"
                );
                let mut gone = None;
                self.followed.slot.change(|routes| gone = routes.current.replace(Arc::new(model)));
                gone.into_iter().for_each(retire);
                self.board.note(|status| status.error = None);
                self.announce();
            }
            Err(Setback::Reject(reason)) => {
                tracing::error!(
                    model = name,
                    reason,
                    "the version that served before can't be loaded; the one that was loaded serves"
                );
                self.forget(&placed, current.as_deref());
            }
            Err(setback) => {
                let reason = setback.refusal();
                tracing::warn!(model = name, %reason, "the version that served before can't be loaded now; it is tried again");
                self.board.note(|status| {
                    status.error =
                        Some(format!("{}/{} can't be loaded now: {reason}", origin.name, origin.version));
                });
            }
        }
    }

    /// What the journal says serves can't; what does serve takes its place there.
    fn forget(&self, placed: &Placed, current: Option<&LoadedModel>) {
        let noted = self.around.journal.change(self.followed.slot.name(), |entry| {
            if entry.serving.as_ref() != Some(placed) {
                return;
            }
            let origin = current.and_then(|current| current.origin.as_ref());
            entry.serving = entry.previous.take().filter(|previous| Some(&previous.origin()) == origin);
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "what serves could not be written down");
        }
    }
}
