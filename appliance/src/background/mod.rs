//! What goes on behind the requests: work on batches, events on their way to Kafka, images on theirs to S3.

pub(crate) mod shutdown;

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
use shutdown::MAX_IDLE_CLOSE;

/// Links and what uses them.
pub struct Background {
    /// The links that are configured, each with its health.
    pub(crate) links: Vec<LinkHealth>,
    pub(crate) uplink: Option<Arc<Uplink>>,
    pub(crate) capture: Option<Arc<Capture>>,
    pub(crate) batches: Option<BatchRuntime>,
    pub(crate) blobs: Option<DirStore>,
    /// Damaged files that this process had to set aside when it started.
    pub(crate) quarantined: Vec<PathBuf>,
}

/// The queue of batch work, and the work on it where this process does it.
pub(crate) struct BatchRuntime {
    pub(crate) queue: Arc<dyn JobQueue>,
    pub(crate) kind: &'static str,
    /// What this process does of the work, and how it waits for its stores.
    pub(crate) worker: Option<(Arc<WorkerStats>, Arc<RetryPolicy>)>,
    pub(crate) running: Mutex<Option<Running>>,
    pub(crate) collector: Option<AbortHandle>,
}

pub(crate) struct Running {
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) task: JoinHandle<()>,
}

impl Background {
    /// Where batch work waits: `embedded`, `kafka` or `none`.
    pub fn queue_kind(&self) -> &'static str {
        self.batches.as_ref().map_or("none", |work| work.kind)
    }

    /// How everything stands, at the pace of a metrics scrape.
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

    /// How batch work stands, where there is any, at the pace of a metrics scrape.
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

    /// Tells batch work to take no more and to finish what it has in hand. [`Background::end`] waits for it.
    pub fn stop_batch_work(&self) {
        let running = self.batches.as_ref().map(|work| work.running.lock());
        if let Some(Running { stop, .. }) = running.as_deref().and_then(Option::as_ref) {
            let _ = stop.send(true);
        }
    }

    /// Ends batch work, capture and uplink, in this order: what one leaves behind, the next still sends.
    /// All of it is over by the deadline: each step leaves some of the time to the next.
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
