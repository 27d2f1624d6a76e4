//! Background work of a process: batches, the uplink of events to Kafka, captured images to S3; its state and its shutdown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::blob::DirStore;
use cloud_sync::capture::Capture;
use cloud_sync::health::LinkHealth;
use cloud_sync::queue::JobQueue;
use cloud_sync::uplink::Uplink;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use crate::batch::BatchReading;
use crate::batch::retry::RetryPolicy;
use crate::batch::worker::WorkerStats;
use crate::telemetry::{CloudReadings, UplinkReading};

/// Longest time to leave the queue, in which settlements are still committed.
const MAX_CLOSE_TIME: Duration = Duration::from_secs(10);
/// Longest time reserved for a step after batch work: links, then lanes and outbox.
const MAX_IDLE_CLOSE: Duration = Duration::from_secs(1);

/// The links, and the background work that uses them.
pub struct Background {
    /// The links that are configured, each with its health.
    pub(crate) links: Vec<LinkHealth>,
    pub(crate) uplink: Option<Arc<Uplink>>,
    pub(crate) capture: Option<Arc<Capture>>,
    pub(crate) batches: Option<BatchRuntime>,
    pub(crate) blobs: Option<DirStore>,
    /// Damaged files that this process quarantined when it started.
    pub(crate) quarantined: Vec<PathBuf>,
}

/// The queue of batch work, and the worker where it runs in this process.
pub(crate) struct BatchRuntime {
    pub(crate) queue: Arc<dyn JobQueue>,
    pub(crate) kind: &'static str,
    /// Counters of the worker in this process, and how it waits for its stores.
    pub(crate) worker: Option<(Arc<WorkerStats>, Arc<RetryPolicy>)>,
    pub(crate) running: Mutex<Option<Running>>,
    pub(crate) collector: Option<AbortHandle>,
}

pub(crate) struct Running {
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) task: JoinHandle<()>,
}

impl Background {
    /// The kind of the batch queue: `embedded`, `kafka` or `none`.
    pub fn queue_kind(&self) -> &'static str {
        self.batches.as_ref().map_or("none", |work| work.kind)
    }

    /// A snapshot of links, uplink and capture; called once per metrics scrape.
    pub fn readings(&self) -> CloudReadings {
        CloudReadings {
            links: self.links.iter().map(|link| (link.link().name(), link.state())).collect(),
            uplink: self.uplink.as_ref().map(|uplink| {
                let status = uplink.status();
                UplinkReading {
                    backlog: status.backlog,
                    oldest_age_s: status.oldest.map_or(0.0, |age| age.as_secs_f64()),
                    sent: status.sent,
                    dead_lettered: status.dead_lettered,
                    lost: status.lost,
                    dead_letter_failures: status.dead_letter_failures,
                    fenced: status.fenced,
                    renewed: status.renewed,
                }
            }),
            capture: self.capture.as_ref().map(|capture| capture.stats()),
            blobs: self.blobs.as_ref().and_then(DirStore::room),
        }
    }

    /// A snapshot of batch work, if enabled; called once per metrics scrape.
    pub fn batch_reading(&self) -> Option<BatchReading> {
        self.batches.as_ref().map(|work| {
            let queue = work.queue.stats();
            BatchReading {
                waiting: queue.waiting,
                inflight: queue.inflight,
                paused: queue.paused,
                partitions: u64::from(queue.partitions),
                counts: work.worker.as_ref().map(|(stats, _)| stats.counts()).unwrap_or_default(),
                retries: work.worker.as_ref().map_or(0, |(_, retry)| retry.retries()),
            }
        })
    }

    /// Stops receiving batch work; messages in progress are finished. [`Background::end`] waits for that.
    pub fn stop_batch_work(&self) {
        let running = self.batches.as_ref().map(|work| work.running.lock());
        if let Some(Running { stop, .. }) = running.as_deref().and_then(Option::as_ref) {
            let _ = stop.send(true);
        }
    }

    /// Ends batch work, capture and uplink, in this order, so that each still sends what the one before produced. All of
    /// it is over by the deadline: each step leaves some of the time to the next.
    pub async fn end(&self, deadline: Instant) {
        let left = || deadline.saturating_duration_since(Instant::now());
        if let Some(work) = &self.batches {
            if let Some(collector) = &work.collector {
                collector.abort();
            }
            let running = work.running.lock().take();
            let for_work = left() - (left() / 20).min(MAX_IDLE_CLOSE);
            match running {
                Some(Running { stop, task }) => {
                    let _ = stop.send(true);
                    let _ = tokio::time::timeout(for_work, task).await;
                }
                None => {
                    let _ = tokio::time::timeout(for_work, work.queue.close()).await;
                }
            }
        }
        if let Some(capture) = &self.capture {
            capture.close((left() / 2).min(Duration::from_secs(2))).await;
        }
        if let Some(uplink) = &self.uplink {
            let uplink = Arc::clone(uplink);
            let within = left().min(Duration::from_secs(5));
            let stopped = move || uplink.stop(within);
            let _ = tokio::task::spawn_blocking(stopped).await;
        }
    }
}

/// How `shutdown.grace` is split among the steps in which batch work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShutdownBudget {
    /// To finish the messages in progress, from the signal on.
    pub(crate) work: Duration,
    /// Then to leave the queue.
    pub(crate) close: Duration,
}

impl ShutdownBudget {
    pub(crate) fn of(grace: Duration) -> Self {
        let close = (grace * 2 / 5).min(MAX_CLOSE_TIME);
        let rest = (grace / 10).min(MAX_IDLE_CLOSE * 2);
        Self { work: grace - close - rest, close }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_an_end_fit_the_grace_period_and_each_has_some_of_it() {
        for millis in [1, 100, 1000, 5000, 20_000, 60_000, 600_000] {
            let grace = Duration::from_millis(millis);
            let ShutdownBudget { work, close } = ShutdownBudget::of(grace);
            assert!(work + close < grace, "{work:?} and {close:?} of {grace:?}");
            assert!(work >= grace / 2 && close >= grace.min(MAX_CLOSE_TIME) / 3, "{work:?} and {close:?}");
        }
        let usual = ShutdownBudget::of(Duration::from_secs(20));
        assert_eq!(usual, ShutdownBudget { work: Duration::from_secs(10), close: Duration::from_secs(8) });
    }
}
