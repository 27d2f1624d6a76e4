//! A worker in isolation: simulated lanes, stores in memory, and an HTTP server with pictures.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cloud_sync::batch_status::{BatchSpec, BatchStatusStore};
use cloud_sync::blob::BlobStore;
use cloud_sync::event::{BatchItem, BatchSummary, Event, EventBody};
use cloud_sync::queue::JobQueue;
use gpu_kernels::{DecodeLimits, ImageFormat};
use inference::bundle::{Bundle, DeviceTag};
use inference::engine::EngineError;
use inference::lanes::{
    Classified, ClassifyError, LaneDevice, LaneSettings, Lanes, StageTimings, Unobserved,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::{Worker, WorkerSettings, WorkerStats};
use super::stores::{Reach, Stores, Trip};
use crate::batch::batch_manifest::BatchRecord;
use crate::batch::load::{Buckets, LoadLimits, Loader};
use crate::batch::message::BatchMessage;
use crate::batch::result_store::ResultStore;
use crate::batch::retry::RetryPolicy;
use crate::batch::spool::Spool;
use crate::config::{BatchConfig, FetchConfig};
use crate::serving::{Classifier, Endpoint, LoadedModel, Models, ServingModel};
use crate::telemetry::Metrics;

/// Remaining failures of a picture whose last byte is 254.
static FAILURES: AtomicUsize = AtomicUsize::new(3);

/// Sees the label in the picture's last byte; a 255 makes it panic, a 253 fails.
struct Simulated {
    labels: usize,
}

impl LaneDevice for Simulated {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        let seen = image.last().copied().unwrap_or_default();
        assert!(seen != 255, "simulated fault");
        let left = || FAILURES.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if seen == 253 || seen == 254 && left().is_ok() {
            return Err(EngineError::Run(ort::Error::new("simulated")).into());
        }
        let seen = if seen == 254 { 0 } else { seen };
        let score = |label| if label == usize::from(seen) % self.labels { 0.75 } else { 0.01 };
        let scores = (0..self.labels).map(score).collect();
        let timings = StageTimings::default();
        Ok(Classified { scores, format: ImageFormat::Bmp, width: 2, height: 2, timings })
    }
}

pub(super) static MODEL: LazyLock<ServingModel> = LazyLock::new(|| {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fish/1");
    let bundle = Bundle::open(&bundle).unwrap();
    let file = bundle.variant(DeviceTag::Cpu, None).unwrap();
    ServingModel::new(&bundle, &file)
});

fn models() -> Arc<Models> {
    static MODELS: OnceLock<Arc<Models>> = OnceLock::new();
    let start = || {
        let labels = MODEL.labels.len();
        let factory = Arc::new(move |_| Ok(Box::new(Simulated { labels }) as Box<dyn LaneDevice>));
        let lanes = Lanes::start(&LaneSettings::new(2, 4), factory, Arc::new(Unobserved)).unwrap();
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fish/1");
        let bundle = Arc::new(Bundle::open(&bundle).unwrap());
        let slot = Endpoint::new("fish");
        let loaded = Arc::new(LoadedModel::new(MODEL.clone(), lanes, bundle, None));
        slot.change(|routes| routes.current = Some(loaded));
        Arc::new(Models::new(slot, Vec::new()))
    };
    Arc::clone(MODELS.get_or_init(start))
}

/// A picture of 2 x 2 pixels whose last byte is `seen`.
pub(super) fn picture(seen: u8) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    for field in [70_u32, 0, 54, 40, 2, 2] {
        file.extend_from_slice(&field.to_le_bytes());
    }
    file.extend_from_slice(&[1, 0, 24, 0]);
    file.extend_from_slice(&[0; 24]);
    file.extend_from_slice(&[seen; 16]);
    file
}

/// Serves `/<n>` as a picture, `/text` as no picture, `/busy` with status 503, and nothing else.
pub(super) async fn pictures() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let Ok(length) = stream.read(&mut head).await else { return };
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
                let (status, body) = match (path.as_str(), path.parse::<u8>()) {
                    (_, Ok(seen)) => (200, picture(seen)),
                    ("text", _) => (200, b"this is no picture at all".to_vec()),
                    ("busy", _) => (503, Vec::new()),
                    _ => (404, Vec::new()),
                };
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&body).await;
            });
        }
    });
    base
}

pub(super) fn spec(id: &str, urls: &[String], chunk: usize) -> BatchSpec {
    BatchSpec {
        request_id: id.into(),
        total: urls.len() as u64,
        chunks: urls.len().div_ceil(chunk) as u32,
        digest: "d1".into(),
    }
}

/// The messages of a batch, as the API makes them.
pub(super) fn messages(id: &str, urls: &[String], chunk: usize) -> Vec<Bytes> {
    let spec = spec(id, urls, chunk);
    let message = |(number, urls): (usize, &[String])| BatchMessage {
        spec: spec.clone(),
        chunk: number as u32,
        first: (number * chunk) as u64,
        camera: None,
        top_k: None,
        submitted_at: Some("2026-01-31T12:00:00Z".into()),
        image_urls: urls.to_vec(),
    };
    urls.chunks(chunk).enumerate().map(|part| message(part).to_bytes().unwrap()).collect()
}

pub(super) struct World {
    pub(super) stores: Arc<Stores>,
    pub(super) trip: Arc<Trip>,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) base: String,
    spool: tempfile::TempDir,
}

impl World {
    pub(super) fn new(base: &str, crash_at: i64) -> Self {
        Self {
            stores: Arc::default(),
            trip: Trip::at(crash_at),
            stats: Arc::default(),
            base: base.to_owned(),
            spool: tempfile::tempdir().unwrap(),
        }
    }

    /// A new worker, as a new process would be.
    pub(super) fn worker(&self) -> Worker {
        let reach = Arc::new(Reach { stores: Arc::clone(&self.stores), trip: Arc::clone(&self.trip) });
        self.worker_on(reach.clone(), reach.clone(), reach)
    }

    /// A new worker on stores that are given.
    pub(super) fn worker_on(
        &self,
        queue: Arc<dyn JobQueue>,
        state: Arc<dyn BatchStatusStore>,
        blob: Arc<dyn BlobStore>,
    ) -> Worker {
        let retry = Arc::new(RetryPolicy::new(Duration::from_millis(1), Duration::from_millis(4)));
        let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
        let limits = LoadLimits {
            max_bytes: 1000,
            memory: crate::memory::BodyMemory::new(200_000, 1000),
            concurrent_fetches: 4,
            attempts: 2,
            pause: Duration::from_millis(1),
        };
        let fetch = FetchConfig { allow_networks, ..FetchConfig::default() };
        let stores = BTreeMap::from([("allowed".to_owned(), Arc::clone(&blob))]);
        let buckets = Buckets { stores, own: None };
        let spool = Spool::open(self.spool.path().join("spool")).unwrap();
        Worker {
            results: ResultStore::new(Arc::clone(&blob), spool),
            queue,
            state,
            loader: Loader::new(fetch, limits, Arc::clone(&blob), buckets, Arc::clone(&retry)),
            blob,
            models: models(),
            classifier: Arc::new(Classifier::new(DecodeLimits::default(), Arc::new(Metrics::new()))),
            settings: WorkerSettings {
                node: "box-1".into(),
                top_k: 2,
                grace: Duration::from_millis(200),
                fault_pause: Duration::from_millis(1),
                remove_files: false,
            },
            config: BatchConfig {
                max_images: 100,
                inline_results: 20,
                inflight: 2,
                ..BatchConfig::default()
            },
            stats: Arc::clone(&self.stats),
            retry,
            capture: None,
        }
    }

    pub(super) fn start(&self) -> JoinHandle<()> {
        tokio::spawn(self.worker().run(std::future::pending()))
    }

    /// The same stores for a new worker that does not crash.
    pub(super) fn restart(&mut self) {
        self.stores.recover();
        self.trip = Trip::at(i64::MAX);
    }

    /// Works until nothing is left to do.
    pub(super) async fn work(&self) {
        let worker = self.start();
        self.idle().await;
        worker.abort();
        let _ = worker.await;
    }

    pub(super) async fn idle(&self) {
        let idle = async {
            while !self.stores.is_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), idle).await.expect("the work does not end");
    }

    /// Sends a batch as the API does, in messages of `chunk` images.
    pub(super) fn submit(&self, id: &str, urls: &[String], chunk: usize) {
        for message in messages(id, urls, chunk) {
            self.stores.send(message);
        }
    }

    /// Stores the record of a batch, as the API does.
    pub(super) fn record(&self, id: &str, urls: &[String], chunk: usize) {
        let spec = spec(id, urls, chunk);
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let record = BatchRecord { spec, camera: None, top_k: None, created };
        let json = record.to_json().unwrap();
        self.stores.objects.lock().insert(format!("batches/{id}/batch.json"), json);
    }

    pub(super) fn results(&self, id: &str) -> Option<Bytes> {
        self.stores.object(&format!("results/{id}.jsonl"))
    }

    pub(super) fn items(&self, id: &str) -> Vec<BatchItem> {
        let results = self.results(id).expect("no results");
        let lines = std::str::from_utf8(&results).unwrap().lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The published results of a batch by index, and its summaries.
    pub(super) fn published(&self, id: &str) -> (Vec<BatchItem>, Vec<(String, BatchSummary)>) {
        let (mut items, mut summaries) = (Vec::new(), Vec::new());
        for record in self.stores.published.lock().iter() {
            match Event::from_json(&record.payload).unwrap().body {
                EventBody::BatchItem(item) if item.request_id == id => items.push(item),
                EventBody::Batch(summary) if summary.request_id == id => {
                    summaries.push((record.id.clone(), summary));
                }
                _ => {}
            }
        }
        items.sort_by_key(|item| item.index);
        (items, summaries)
    }
}
