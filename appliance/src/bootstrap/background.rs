//! Starts what goes on behind the requests: batches and the work on them, events on their way to Kafka, images on theirs to S3.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::batch_status::EmbeddedBatchStatus;
use cloud_sync::blob::{BlobStore, Bound, DirStore};
use cloud_sync::capture::{Capture, CaptureConfig, CaptureError, CaptureRule as Rule};
use cloud_sync::error::{SyncError, SyncResult};
use cloud_sync::outbox::Outbox;
use cloud_sync::queue::{EmbeddedQueue, EmbeddedQueueConfig, KafkaQueue, KafkaQueueConfig};
use cloud_sync::uplink::{Uplink, UplinkConfig};
use gpu_kernels::DecodeLimits;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Links, StartError, outbox_dir};
use crate::background::{Background, BatchRuntime, Running, ShutdownBudget};
use crate::batch::gc::{self, GarbageCollector};
use crate::batch::load::{Buckets, LoadLimits, Loader, OwnBucket};
use crate::batch::result_store::ResultStore;
use crate::batch::retry::RetryPolicy;
use crate::batch::spool::Spool;
use crate::batch::worker::{Worker, WorkerSettings, WorkerStats};
use crate::batch::{BatchService, BatchStores, spool_dir};
use crate::config::{CaptureRule, Config, QueueChoice};
use crate::http::{Role, ServerState};
use crate::serving::Models;

/// Pause after the first failed try to load an image.
const BACKOFF_INITIAL: Duration = Duration::from_millis(250);

/// Pause before a message is given back on which the work came to grief: it would most likely come again at once.
const FAULT_PAUSE: Duration = Duration::from_secs(5);

/// How long a batch may take to get into Kafka; its client waits for it.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(20);

/// The store in the data directory: opened when it is first asked for, and one for all who use it, since it has one
/// bound.
pub(super) struct Disk<'a> {
    config: &'a Config,
    opened: OnceCell<DirStore>,
}

impl<'a> Disk<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self { config, opened: OnceCell::new() }
    }

    fn store(&self) -> SyncResult<DirStore> {
        if let Some(store) = self.opened.get() {
            return Ok(store.clone());
        }
        let blobs = &self.config.blobs;
        let bound = Bound {
            max_bytes: blobs.max_bytes.as_u64(),
            min_free: blobs.min_free.as_u64(),
            share: gc::share,
        };
        let store = DirStore::open_bounded(self.config.data_dir.join("blobs"), bound)?;
        Ok(self.opened.get_or_init(|| store).clone())
    }
}

/// What the start of links and batches needs of the rest.
pub(super) struct Around<'a> {
    pub(super) state: &'a ServerState,
    /// Bounds on images.
    pub(super) limits: DecodeLimits,
    pub(super) models: &'a Arc<Models>,
    /// Where a serving process makes events durable; a worker has none.
    pub(super) outbox: Option<&'a Arc<Outbox>>,
    /// The store in the data directory.
    pub(super) disk: &'a Disk<'a>,
    /// Keeps images for training, where that is configured.
    pub(super) capture: Option<Arc<Capture>>,
}

/// Starts what is configured; blocking, on a thread of the runtime.
///
/// # Errors
/// When a store in the data directory can't be used. That a server is away is no error.
pub(super) fn start(
    links: &Links,
    around: &Around<'_>,
) -> Result<(Background, Option<Arc<BatchService>>), StartError> {
    let config = around.state.config();
    let uplink = match (&links.kafka, around.outbox) {
        (Some(kafka), Some(outbox)) if config.kafka.publish_events => {
            let dir = &config.data_dir;
            let uplink = UplinkConfig {
                max_rejections: config.kafka.max_rejections,
                ..UplinkConfig::new(&config.node.name, outbox_dir(dir), dir.join("dead-letter"))
            };
            let health = kafka.health.clone();
            Some(Arc::new(Uplink::start(uplink, kafka.of.clone(), Arc::clone(outbox), health)?))
        }
        _ => None,
    };
    let mut quarantined = around.capture.as_ref().map_or_else(Vec::new, |it| it.quarantined().to_vec());
    let batches = config.batch.enabled.then(|| start_batches(links, around, &mut quarantined)).transpose()?;
    let (batches, service) = batches.map_or((None, None), |(batches, service)| (Some(batches), service));
    let blobs = around.disk.opened.get().cloned();
    let capture = around.capture.clone();
    Ok((Background { links: links.health(), uplink, capture, batches, blobs, quarantined }, service))
}

fn start_batches(
    links: &Links,
    around: &Around<'_>,
    quarantined: &mut Vec<PathBuf>,
) -> Result<(BatchRuntime, Option<Arc<BatchService>>), StartError> {
    let config = around.state.config();
    let (choice, reason) = links.queue(config);
    let own = (Arc::new(WorkerStats::default()), Arc::new(RetryPolicy::default()));
    let (stores, kind) = match (choice, &links.kafka, &links.redis, &links.s3, around.outbox) {
        (QueueChoice::Kafka, Some(kafka), Some(redis), Some(s3), _) => {
            let queue = KafkaQueueConfig {
                inflight: config.batch.inflight,
                node: config.node.name.clone(),
                submit_timeout: SUBMIT_TIMEOUT,
                close_timeout: ShutdownBudget::of(config.shutdown.grace).close,
            };
            let queue = KafkaQueue::new(&kafka.of, &queue, kafka.health.clone());
            let (state, blob) = (Arc::clone(&redis.of), Arc::clone(&s3.of));
            (BatchStores { queue: Arc::new(queue), state, blob }, "kafka")
        }
        (_, _, _, _, Some(outbox)) => {
            let (stores, damaged) = embedded_stores(config, outbox, around.disk)?;
            own.0.note_quarantined(damaged.len() as u64);
            quarantined.extend(damaged);
            (stores, "embedded")
        }
        _ => return Err(StartError::WorkerWithoutKafka),
    };
    tracing::info!(queue = kind, reason, "batches are taken");
    let queue = Arc::clone(&stores.queue);
    let collector = match kind {
        "embedded" => {
            let (store, state) = (around.disk.store()?, Arc::clone(&stores.state));
            let collector = GarbageCollector { store, state, status_ttl: config.batch.status_ttl };
            Some(Handle::current().spawn(collector.run()).abort_handle())
        }
        _ => None,
    };
    let works = around.state.role() == Role::Worker || kind == "embedded";
    let service = match around.state.role() {
        Role::Serve => {
            let models = Arc::clone(around.models);
            let labels = move || models.default().current().map_or(1, |model| model.model.labels.len());
            Some(BatchService::open(stores.clone(), config, Box::new(labels))?)
        }
        Role::Worker => None,
    };
    let running = works.then(|| -> Result<Running, StartError> {
        let worker = worker(stores, links, around, own.clone(), kind == "embedded")?;
        let (stop, mut stopped) = watch::channel(false);
        let task = Handle::current().spawn(worker.run(async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        }));
        Ok(Running { stop, task })
    });
    let running = running.transpose()?;
    let worker = works.then_some(own);
    Ok((BatchRuntime { queue, kind, worker, running: Mutex::new(running), collector }, service))
}

/// The stores in the data directory, and their files that were damaged and are set aside.
fn embedded_stores(
    config: &Config,
    outbox: &Arc<Outbox>,
    disk: &Disk<'_>,
) -> SyncResult<(BatchStores, Vec<PathBuf>)> {
    let dir = &config.data_dir;
    let queue = EmbeddedQueueConfig {
        inflight: config.batch.inflight,
        max_bytes: config.batch.max_queued.as_u64(),
        dir: dir.join("batches"),
    };
    let state = EmbeddedBatchStatus::open(dir.join("batches"), config.batch.status_ttl)?;
    let queue = EmbeddedQueue::open(queue, Arc::clone(outbox))?;
    let quarantined = [state.quarantined(), queue.quarantined()];
    let quarantined = quarantined.into_iter().flatten().map(Path::to_path_buf).collect();
    let stores =
        BatchStores { queue: Arc::new(queue), state: Arc::new(state), blob: Arc::new(disk.store()?) };
    Ok((stores, quarantined))
}

fn worker(
    stores: BatchStores,
    links: &Links,
    around: &Around<'_>,
    (stats, retry): (Arc<WorkerStats>, Arc<RetryPolicy>),
    remove_files: bool,
) -> Result<Worker, StartError> {
    let config = around.state.config();
    let limits = LoadLimits {
        max_bytes: config.http.max_body_bytes(),
        memory: Arc::clone(around.state.body_memory()),
        concurrent_fetches: config.batch.concurrent_fetches,
        attempts: config.batch.attempts,
        pause: BACKOFF_INITIAL,
    };
    let buckets = buckets(config, links)?;
    let own = Arc::clone(&stores.blob);
    Ok(Worker {
        loader: Loader::new(config.fetch.clone(), limits, own, buckets, Arc::clone(&retry)),
        queue: stores.queue,
        state: stores.state,
        results: ResultStore::new(Arc::clone(&stores.blob), Spool::open(spool_dir(config))?),
        blob: stores.blob,
        models: Arc::clone(around.models),
        settings: WorkerSettings {
            node: config.node.name.clone(),
            top_k: config.predict.top_k,
            limits: around.limits,
            grace: ShutdownBudget::of(config.shutdown.grace).work,
            fault_pause: FAULT_PAUSE,
            remove_files,
        },
        config: config.batch.clone(),
        stats,
        retry,
        capture: around.capture.clone(),
    })
}

/// What `s3://` URLs may name.
fn buckets(config: &Config, links: &Links) -> Result<Buckets, SyncError> {
    let Some(s3) = &links.s3 else { return Ok(Buckets::default()) };
    let mut buckets = Buckets::default();
    for name in std::iter::once(&config.s3.bucket).chain(&config.s3.allow_buckets) {
        buckets.stores.insert(name.clone(), Arc::new(s3.of.bucket(name)?));
    }
    buckets.own = Some(OwnBucket {
        name: config.s3.bucket.clone(),
        prefix: s3.of.prefix().to_owned(),
        allow_prefixes: config.s3.allow_prefixes.clone(),
        store: Arc::clone(&s3.of) as Arc<dyn BlobStore>,
    });
    Ok(buckets)
}

/// Opens the capture of images, where a rule asks for one.
///
/// # Errors
/// When its folder can't be used.
pub(super) fn open_capture(
    config: &Config,
    links: &Links,
    disk: &Disk<'_>,
) -> Result<Option<Arc<Capture>>, StartError> {
    let rule = match config.capture.rule {
        CaptureRule::None => return Ok(None),
        CaptureRule::All => Rule::All,
        CaptureRule::Below => Rule::Below(config.capture.confidence_below),
        CaptureRule::Sample => Rule::Sample(config.capture.sample),
    };
    let store: Arc<dyn BlobStore> = match &links.s3 {
        Some(s3) => Arc::clone(&s3.of) as Arc<dyn BlobStore>,
        None => Arc::new(disk.store()?),
    };
    let capture = CaptureConfig {
        max_bytes: config.capture.max_bytes.as_u64(),
        // They are held in the memory for bodies: a slow disk must leave requests half of it.
        max_waiting: (config.http.max_inflight.as_u64() / 2).max(config.http.max_body.as_u64()),
        ..CaptureConfig::new(config.data_dir.join("captured"), rule, &config.node.name)
    };
    let opened: Result<Capture, CaptureError> = Capture::open(capture, store, &Handle::current());
    Ok(Some(Arc::new(opened?)))
}
