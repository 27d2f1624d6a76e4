//! The services of a process: predictions, batches and the work on them, the uplink.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::blob::BlobStore;
use cloud_sync::cache::{CacheConfig, ContentCache, EmbeddedCache};
use cloud_sync::capture::Capture;
use cloud_sync::error::SyncError;
use cloud_sync::outbox::Outbox;
use cloud_sync::queue::{KafkaQueue, KafkaQueueConfig};
use cloud_sync::uplink::{Uplink, UplinkConfig};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::stores::{self, LocalBlobStore};
use super::{Links, StartError, outbox_dir};
use crate::background::{BatchRuntime, Running, ShutdownBudget};
use crate::batch::gc::GarbageCollector;
use crate::batch::load::{Buckets, LoadLimits, Loader, OwnBucket};
use crate::batch::result_store::ResultStore;
use crate::batch::retry::RetryPolicy;
use crate::batch::spool::Spool;
use crate::batch::worker::{Worker, WorkerSettings, WorkerStats};
use crate::batch::{BatchService, BatchStores, spool_dir};
use crate::config::{Config, QueueChoice};
use crate::http::{Role, ServerState};
use crate::predict::{PredictService, PredictSettings, PredictionCache, SingleFlight};
use crate::serving::{Classifier, Models};

/// Pause after the first failed try to load an image.
const BACKOFF_INITIAL: Duration = Duration::from_millis(250);

/// Pause before a message whose processing failed is returned to the queue: it would most likely be delivered again at once.
const FAULT_PAUSE: Duration = Duration::from_secs(5);

/// Timeout for writing a batch to Kafka, for which its client waits.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(20);

/// What services are built from.
pub(super) struct ServiceDeps<'a> {
    pub(super) state: &'a ServerState,
    pub(super) links: &'a Links,
    pub(super) models: &'a Arc<Models>,
    pub(super) classifier: &'a Arc<Classifier>,
    /// Where a serving process makes events durable; a worker has none.
    pub(super) outbox: Option<&'a Arc<Outbox>>,
    /// The blob store in the data directory.
    pub(super) local: &'a LocalBlobStore<'a>,
    /// Keeps images for training, where that is configured.
    pub(super) capture: Option<Arc<Capture>>,
}

/// The service that answers requests for predictions.
pub(super) fn prediction_service(deps: &ServiceDeps<'_>, outbox: Arc<Outbox>) -> PredictService {
    let config = deps.state.config();
    let local = EmbeddedCache::new(CacheConfig { max_bytes: config.cache.max_bytes.as_u64() });
    let cache = match &deps.links.redis {
        Some(redis) => {
            let store = Arc::clone(&redis.client) as Arc<dyn ContentCache>;
            PredictionCache::shared(local, store, config.redis.cache_timeout)
        }
        None => PredictionCache::local(local),
    };
    PredictService {
        models: Arc::clone(deps.models),
        classifier: Arc::clone(deps.classifier),
        cache,
        outbox,
        capture: deps.capture.clone(),
        metrics: Arc::clone(deps.state.metrics()),
        settings: PredictSettings {
            node: config.node.name.clone(),
            cache_ttl: config.cache.enabled.then_some(config.cache.ttl),
        },
        flights: SingleFlight::default(),
    }
}

/// Starts sending events from the outbox to Kafka, where that is configured.
///
/// # Errors
/// When the uplink's files cannot be used.
pub(super) fn start_uplink(deps: &ServiceDeps<'_>) -> Result<Option<Arc<Uplink>>, StartError> {
    let config = deps.state.config();
    let (Some(kafka), Some(outbox)) = (&deps.links.kafka, deps.outbox) else { return Ok(None) };
    if !config.kafka.publish_events {
        return Ok(None);
    }
    let dir = &config.data_dir;
    let uplink = UplinkConfig {
        max_rejections: config.kafka.max_rejections,
        ..UplinkConfig::new(&config.node.name, outbox_dir(dir), dir.join("dead-letter"))
    };
    let health = kafka.health.clone();
    Ok(Some(Arc::new(Uplink::start(uplink, kafka.client.clone(), Arc::clone(outbox), health)?)))
}

/// Opens the queue of batch work and what works on it in this process; adds quarantined files to `quarantined`.
///
/// # Errors
/// When a store in the data directory cannot be used. A server that is down is not an error.
pub(super) fn start_batches(
    deps: &ServiceDeps<'_>,
    quarantined: &mut Vec<PathBuf>,
) -> Result<(BatchRuntime, Option<Arc<BatchService>>), StartError> {
    let config = deps.state.config();
    let (choice, reason) = deps.links.queue(config);
    let own = (Arc::new(WorkerStats::default()), Arc::new(RetryPolicy::default()));
    let (stores, kind) = match (choice, &deps.links.kafka, &deps.links.redis, &deps.links.s3, deps.outbox) {
        (QueueChoice::Kafka, Some(kafka), Some(redis), Some(s3), _) => {
            let queue = KafkaQueueConfig {
                inflight: config.batch.inflight,
                node: config.node.name.clone(),
                submit_timeout: SUBMIT_TIMEOUT,
                close_timeout: ShutdownBudget::of(config.shutdown.grace).close,
            };
            let queue = KafkaQueue::new(&kafka.client, &queue, kafka.health.clone());
            let (state, blob) = (Arc::clone(&redis.client), Arc::clone(&s3.client));
            (BatchStores { queue: Arc::new(queue), state, blob }, "kafka")
        }
        (_, _, _, _, Some(outbox)) => {
            let (stores, damaged) = stores::embedded_batch_stores(config, outbox, deps.local)?;
            own.0.note_quarantined(damaged.len() as u64);
            quarantined.extend(damaged);
            (stores, "embedded")
        }
        _ => return Err(StartError::WorkerWithoutKafka),
    };
    tracing::info!(queue = kind, reason, "batches enabled");
    let queue = Arc::clone(&stores.queue);
    let collector = match kind {
        "embedded" => {
            let (store, state) = (deps.local.store()?, Arc::clone(&stores.state));
            let collector = GarbageCollector { store, state, status_ttl: config.batch.status_ttl };
            Some(Handle::current().spawn(collector.run()).abort_handle())
        }
        _ => None,
    };
    let works = deps.state.role() == Role::Worker || kind == "embedded";
    let service = match deps.state.role() {
        Role::Serve => {
            let models = Arc::clone(deps.models);
            let labels = move || models.default().current().map_or(1, |model| model.model.labels.len());
            Some(BatchService::open(stores.clone(), config, Box::new(labels))?)
        }
        Role::Worker => None,
    };
    let running = works.then(|| -> Result<Running, StartError> {
        let worker = batch_worker(stores, deps, own.clone(), kind == "embedded")?;
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

fn batch_worker(
    stores: BatchStores,
    deps: &ServiceDeps<'_>,
    (stats, retry): (Arc<WorkerStats>, Arc<RetryPolicy>),
    remove_files: bool,
) -> Result<Worker, StartError> {
    let config = deps.state.config();
    let limits = LoadLimits {
        max_bytes: config.http.max_body_bytes(),
        memory: Arc::clone(deps.state.body_memory()),
        concurrent_fetches: config.batch.concurrent_fetches,
        attempts: config.batch.attempts,
        pause: BACKOFF_INITIAL,
    };
    let buckets = buckets(config, deps.links)?;
    let own = Arc::clone(&stores.blob);
    Ok(Worker {
        loader: Loader::new(config.fetch.clone(), limits, own, buckets, Arc::clone(&retry)),
        queue: stores.queue,
        state: stores.state,
        results: ResultStore::new(Arc::clone(&stores.blob), Spool::open(spool_dir(config))?),
        blob: stores.blob,
        models: Arc::clone(deps.models),
        classifier: Arc::clone(deps.classifier),
        settings: WorkerSettings {
            node: config.node.name.clone(),
            top_k: config.predict.top_k,
            grace: ShutdownBudget::of(config.shutdown.grace).work,
            fault_pause: FAULT_PAUSE,
            remove_files,
        },
        config: config.batch.clone(),
        stats,
        retry,
        capture: deps.capture.clone(),
    })
}

/// The buckets that `s3://` URLs may name.
fn buckets(config: &Config, links: &Links) -> Result<Buckets, SyncError> {
    let Some(s3) = &links.s3 else { return Ok(Buckets::default()) };
    let mut buckets = Buckets::default();
    for name in std::iter::once(&config.s3.bucket).chain(&config.s3.allow_buckets) {
        buckets.stores.insert(name.clone(), Arc::new(s3.client.bucket(name)?));
    }
    buckets.own = Some(OwnBucket {
        name: config.s3.bucket.clone(),
        prefix: s3.client.prefix().to_owned(),
        allow_prefixes: config.s3.allow_prefixes.clone(),
        store: Arc::clone(&s3.client) as Arc<dyn BlobStore>,
    });
    Ok(buckets)
}
