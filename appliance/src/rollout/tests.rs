//! A rollout against a registry that changes its mind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloud_sync::check::CheckStep;
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::registry::{Artifact, ModelReference, ModelRegistry, ModelVersion, Report, Which};
use gpu_kernels::DecodeLimits;
use parking_lot::Mutex;

use super::{Command, Followed, Journal, Rollouts, Settings, Surroundings};
use crate::config::{MonitoringConfig, RolloutConfig};
use crate::engine::{DeviceKind, DeviceRequest, Runtime, choose_device};
use crate::lanes::LaneSettings;
use crate::models::testing::{limits, write_bundle};
use crate::models::{Bundle, ModelStore, Origin};
use crate::serving::{ModelLoader, Slot};
use crate::telemetry::Metrics;

/// One bundle under any version; its alias is where the test puts it, and a download takes its time.
#[derive(Debug)]
struct Fickle {
    folder: PathBuf,
    alias: Mutex<String>,
    delay: Duration,
    fetched: AtomicUsize,
    /// How often it is away before it answers.
    away: AtomicUsize,
    tags: Mutex<Vec<(String, String)>>,
}

#[async_trait]
impl ModelRegistry for Fickle {
    async fn resolve(&self, reference: &ModelReference) -> SyncResult<Option<ModelVersion>> {
        let away = self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if away.is_ok() {
            return Err(SyncError::transient(Link::Mlflow, "away"));
        }
        let version = match &reference.which {
            Which::Alias(_) => self.alias.lock().clone(),
            Which::Version(version) => version.clone(),
        };
        Ok(Some(ModelVersion {
            name: reference.name.clone(),
            source: format!("fickle:{version}"),
            version,
            aliases: Vec::new(),
            tags: std::collections::BTreeMap::new(),
            created: None,
        }))
    }

    async fn versions(&self, _: &str) -> SyncResult<Vec<ModelVersion>> {
        Ok(Vec::new())
    }

    async fn artifacts(&self, _: &ModelVersion, _: usize) -> SyncResult<Vec<Artifact>> {
        let files = ["bundle.toml", "labels.txt", "model.onnx", "golden/red.png"];
        Ok(files.map(|path| Artifact { path: path.into(), bytes: None }).into())
    }

    async fn fetch(&self, _: &ModelVersion, path: &str, to: &Path, _: u64) -> SyncResult<()> {
        self.fetched.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.delay).await;
        std::fs::copy(self.folder.join(path), to).unwrap();
        Ok(())
    }

    async fn tag(&self, version: &ModelVersion, _: &str, value: &str) -> SyncResult<()> {
        self.tags.lock().push((version.version.clone(), value.to_owned()));
        Ok(())
    }

    async fn report(&self, _: &Report) -> SyncResult<()> {
        Ok(())
    }

    async fn check(&self) -> Vec<CheckStep> {
        Vec::new()
    }
}

struct World {
    registry: Arc<Fickle>,
    rollouts: Rollouts,
    slot: Arc<Slot>,
    _dir: tempfile::TempDir,
}

fn world(delay: Duration) -> World {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("bundle");
    write_bundle(&folder, "colours.onnx");
    let registry = Arc::new(Fickle {
        folder: folder.clone(),
        alias: Mutex::new("1".into()),
        delay,
        fetched: AtomicUsize::new(0),
        away: AtomicUsize::new(0),
        tags: Mutex::default(),
    });
    let root = dir.path().join("models");
    let store = ModelStore::open(&root).unwrap();
    let cpu = DeviceRequest { kind: DeviceKind::Cpu, ..DeviceRequest::default() };
    let loader = ModelLoader {
        runtime: Runtime::load(None).unwrap(),
        device: choose_device(&cpu).unwrap(),
        gpu: None,
        limits: DecodeLimits::default(),
        precision: None,
    };
    let metrics = Arc::new(Metrics::new());
    let lanes = LaneSettings::new(1, 8);
    let slot = Slot::new("colours");
    let origin = Origin { source: "fickle:0".into(), name: "colours".into(), version: "0".into() };
    let bundle = Bundle::open(&folder).unwrap();
    let observer = Arc::clone(&metrics) as Arc<_>;
    let current =
        tokio::task::block_in_place(|| loader.load(bundle, Some(origin), &lanes, observer).unwrap());
    slot.change(|routes| routes.current = Some(Arc::new(current)));
    let surroundings = Surroundings {
        registry: Some(Arc::clone(&registry) as Arc<dyn ModelRegistry>),
        journal: Journal::open(&root).unwrap(),
        store,
        loader,
        lanes,
        metrics,
        outbox: None,
        settings: Settings {
            node: "dock-3".into(),
            rollout: RolloutConfig { standby: Duration::ZERO, ..RolloutConfig::default() },
            monitoring: MonitoringConfig::default(),
            poll: Duration::from_millis(50),
            keep: 3,
            tag: true,
            pull: limits(),
        },
    };
    let follow = Some("colours@champion".parse().unwrap());
    let followed = Followed { slot: Arc::clone(&slot), follow, bundle: Some(folder), is_default: true };
    let rollouts = Rollouts::start(surroundings, vec![followed]);
    World { registry, rollouts, slot, _dir: dir }
}

impl World {
    fn serving(&self) -> String {
        self.slot.current().unwrap().describe()
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(
                Instant::now() < end,
                "still not so: {what}; {:?}",
                self.rollouts.handles()["colours"].board.read()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_that_moves_twice_within_a_download_ends_where_it_points() {
    let world = world(Duration::from_millis(100));
    world.until("a download is under way", || world.registry.fetched.load(Ordering::SeqCst) > 0).await;
    *world.registry.alias.lock() = "2".into();
    tokio::time::sleep(Duration::from_millis(50)).await;
    *world.registry.alias.lock() = "3".into();
    world.until("the last one serves", || world.serving() == "colours/3").await;
    // Neither of the others came to serve on the way.
    assert_eq!(world.rollouts.handles()["colours"].board.read().promoted, 1);
    let serving = |(version, value): &(String, String)| (value == "serving").then(|| version.clone());
    world.until("tagged", || !world.registry.tags.lock().is_empty()).await;
    let told: Vec<String> = world.registry.tags.lock().iter().filter_map(serving).collect();
    assert_eq!(told, ["3"]);
    world.rollouts.end(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_within_a_download_is_carried_out_at_once() {
    let world = world(Duration::from_millis(300));
    world.until("a download is under way", || world.registry.fetched.load(Ordering::SeqCst) > 0).await;
    let handle = &world.rollouts.handles()["colours"];
    let began = Instant::now();
    let refused = handle.order(Command::Promote).await.unwrap_err();
    assert!(refused.to_string().contains("being downloaded"), "{refused}");
    let done = handle.order(Command::Pin(Some("7".into()))).await.unwrap();
    assert_eq!(done, "pinned to colours/7");
    assert!(began.elapsed() < Duration::from_millis(1000), "an operator waited for the download");
    world.until("the pinned one serves", || world.serving() == "colours/7").await;
    // The end of the process does not wait for a download either.
    handle.order(Command::Pin(Some("8".into()))).await.unwrap();
    let before = world.registry.fetched.load(Ordering::SeqCst);
    world.until("another download", || world.registry.fetched.load(Ordering::SeqCst) > before).await;
    let began = Instant::now();
    world.rollouts.end(Duration::from_secs(5)).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(world.serving(), "colours/7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_was_away_is_asked_again_and_told_what_it_missed() {
    let world = world(Duration::ZERO);
    world.until("the first serves", || world.serving() == "colours/1").await;
    world.registry.away.store(6, Ordering::SeqCst);
    let status = || world.rollouts.handles()["colours"].board.read();
    world.until("it is missed", || status().error.is_some()).await;
    assert_eq!(world.serving(), "colours/1");
    *world.registry.alias.lock() = "2".into();
    world.until("the second serves", || world.serving() == "colours/2").await;
    let told = |version: &str, value: &str| {
        world.registry.tags.lock().contains(&(version.to_owned(), value.to_owned()))
    };
    world.until("both are told", || told("2", "serving") && told("1", "replaced by colours/2")).await;
    world.until("nothing is missed any more", || status().error.is_none()).await;
    world.rollouts.end(Duration::from_secs(5)).await;
}
