//! The task of one model: ask the registry from time to time, carry out commands, walk a new version through its steps.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cloud_sync::registry::{ModelReference, ModelVersion, Which};
use tokio::sync::{mpsc, oneshot, watch};

use super::promoted::Promoted;
use super::retire::retire;
use super::retries::LoadRetries;
use super::status::Step;
use super::{Command, Followed, Refusal, RolloutContext, StatusCell, notify};
use crate::models::Origin;

/// What ends a wait within a step.
pub(super) enum Interrupt {
    /// The process ends.
    Stop,
    /// An operator wants something.
    Order(Order),
}

/// A command, and who waits for its outcome.
pub(super) struct Order {
    pub(super) command: Command,
    pub(super) answer: oneshot::Sender<Result<String, Refusal>>,
}

impl Order {
    pub(super) fn answer(self, outcome: Result<String, Refusal>) {
        // Who asked may have gone.
        let _ = self.answer.send(outcome);
    }
}

pub(super) struct Task {
    pub(super) context: Arc<RolloutContext>,
    pub(super) followed: Followed,
    pub(super) board: StatusCell,
    pub(super) orders: mpsc::Receiver<(Command, oneshot::Sender<Result<String, Refusal>>)>,
    pub(super) stop: watch::Receiver<bool>,
    /// When the version that is kept for a way back is unloaded.
    pub(super) standby_until: Option<Instant>,
    /// The version that was promoted last, while it is monitored.
    pub(super) promoted: Option<Promoted>,
    /// Versions that could not be loaded, until they are tried again.
    pub(super) retries: LoadRetries,
}

impl Task {
    pub(super) async fn run(mut self) {
        self.go_on_monitoring();
        let mut poll_at = Instant::now() + self.context.settings.poll_interval.min(Duration::from_millis(50));
        loop {
            let mut commanded = false;
            let look = tokio::time::sleep_until(self.next_look(poll_at).into());
            tokio::select! {
                interrupt = self.interrupt() => match interrupt {
                    Interrupt::Stop => return self.save_promoted().await,
                    Interrupt::Order(order) => {
                        self.handle_command(order).await;
                        commanded = true;
                    }
                },
                () = look => {}
            }
            self.unload_standby();
            self.check_promoted().await;
            if !commanded && Instant::now() < poll_at {
                continue;
            }
            // A version that was promoted may be followed by another at once.
            poll_at = Instant::now()
                + match self.poll().await {
                    Polled::Again => Duration::ZERO,
                    Polled::Later => jittered(self.context.settings.poll_interval),
                    Polled::Stop => return self.save_promoted().await,
                };
        }
    }

    /// A command, or the end.
    pub(super) async fn interrupt(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.stop.wait_for(|stop| *stop) => Interrupt::Stop,
            order = next_order(&mut self.orders) => match order {
                Some((command, answer)) => Interrupt::Order(Order { command, answer }),
                None => Interrupt::Stop,
            },
        }
    }

    pub(super) fn name(&self) -> &str {
        self.followed.slot.name()
    }

    fn next_look(&self, poll_at: Instant) -> Instant {
        let promoted = self.promoted.as_ref().map(Promoted::next_look);
        [self.standby_until, promoted].into_iter().flatten().fold(poll_at, Instant::min)
    }

    fn unload_standby(&mut self) {
        if self.standby_until.is_none_or(|until| until > Instant::now()) {
            return;
        }
        self.standby_until = None;
        let mut standby = None;
        self.followed.slot.change(|routes| standby = routes.standby.take());
        standby.into_iter().for_each(retire);
    }

    /// What is to be followed now: the pinned version before the configured alias.
    pub(super) fn reference(&self) -> Option<ModelReference> {
        let follow = self.followed.follow.clone()?;
        match self.context.journal.entry(self.name()).pinned {
            Some(version) => Some(ModelReference { which: Which::Version(version), ..follow }),
            None => Some(follow),
        }
    }

    /// Asks the registry, and rolls out what is new.
    async fn poll(&mut self) -> Polled {
        self.restore().await;
        let resolved = self.resolve().await;
        self.note_unrestored();
        let Some(version) = resolved else { return Polled::Later };
        let origin = Origin::of(&version);
        let entry = self.context.journal.entry(self.name());
        let serving = entry.serving.as_ref().is_some_and(|serving| serving.origin() == origin);
        if serving && self.followed.slot.current().is_some() || entry.rejection(&origin).is_some() {
            notify::tags(&self.context, self.name()).await;
            return Polled::Later;
        }
        if let Some(reason) = self.retries.waits(&origin, Instant::now()) {
            self.note_unloadable(&origin, reason);
            notify::tags(&self.context, self.name()).await;
            return Polled::Later;
        }
        let polled = self.roll(version).await;
        self.board.note(|status| (status.step, status.candidate) = (Step::Idle, None));
        notify::tags(&self.context, self.name()).await;
        polled
    }

    /// The version that is followed, as the registry says now.
    pub(super) async fn resolve(&mut self) -> Option<ModelVersion> {
        let (registry, reference) = (self.context.registry.clone()?, self.reference()?);
        let resolved = registry.resolve(&reference).await;
        let answered = resolved.is_ok();
        let (version, error) = match resolved {
            Ok(Some(version)) => (Some(version), None),
            Ok(None) => {
                (None, Some(format!("{reference}: the registry has no such model, alias or version")))
            }
            Err(error) => (None, Some(error.in_full())),
        };
        let mut changed = false;
        self.board.note(|status| {
            if answered {
                status.last_polled_at = Some(SystemTime::now());
            }
            changed = error.is_some() && status.error != error;
            if error.is_some() || status.step == Step::Idle {
                status.error.clone_from(&error);
            }
        });
        if let (true, Some(error)) = (changed, error) {
            tracing::warn!(
                model = self.name(),
                error,
                "the registry does not say what to serve; what serves goes on"
            );
        }
        version
    }
}

/// The next command whose sender still waits.
async fn next_order(
    orders: &mut mpsc::Receiver<(Command, oneshot::Sender<Result<String, Refusal>>)>,
) -> Option<(Command, oneshot::Sender<Result<String, Refusal>>)> {
    loop {
        let order = orders.recv().await?;
        if !order.1.is_closed() {
            return Some(order);
        }
    }
}

/// What follows a look at the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Polled {
    /// Look again at once.
    Again,
    /// Look again after the usual time.
    Later,
    /// The process ends.
    Stop,
}

/// Up to a fifth more or less, so that a fleet that was started at once does not ask at once.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.4 * fastrand::f64())
}
