//! Rollouts with real lanes, and a registry whose alias moves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloud_sync::check::CheckStep;
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::registry::{Artifact, ModelReference, ModelRegistry, ModelVersion, Report, Which};
use inference::bundle::Bundle;
use inference::bundle::testing::write_bundle;
use parking_lot::Mutex;

use super::testing::context;
use super::{Command, Entry, Followed, Rollouts};
use crate::config::RolloutConfig;
use crate::models::Origin;
use crate::serving::Endpoint;

/// A registry with one bundle under any version. The test sets the alias; each file takes `delay`.
#[derive(Debug)]
struct Fickle {
    folder: PathBuf,
    alias: Mutex<String>,
    delay: Duration,
    fetched: AtomicUsize,
    /// Calls that still fail.
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
    slot: Arc<Endpoint>,
    dir: tempfile::TempDir,
    rollout: RolloutConfig,
}

fn world(delay: Duration) -> World {
    world_with(delay, RolloutConfig { keep_previous_loaded: Duration::ZERO, ..RolloutConfig::default() })
}

fn world_with(delay: Duration, rollout: RolloutConfig) -> World {
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
    let slot = Endpoint::new("colours");
    let context = context(dir.path(), Some(Arc::clone(&registry) as Arc<dyn ModelRegistry>), &rollout);
    let origin = Origin { source: "fickle:0".into(), name: "colours".into(), version: "0".into() };
    let bundle = Bundle::open(&folder).unwrap();
    let observer = Arc::clone(&context.metrics) as Arc<_>;
    let current = tokio::task::block_in_place(|| {
        context.loader.load(bundle, Some(origin), &context.lanes, observer).unwrap()
    });
    slot.change(|routes| routes.current = Some(Arc::new(current)));
    let rollouts = Rollouts::start(context, vec![followed(dir.path(), &slot)]);
    World { registry, rollouts, slot, dir, rollout }
}

fn followed(dir: &Path, slot: &Arc<Endpoint>) -> Followed {
    let follow = Some("colours@champion".parse().unwrap());
    Followed { slot: Arc::clone(slot), follow, bundle: Some(dir.join("bundle")), is_default: true }
}

impl World {
    fn serving(&self) -> String {
        self.slot.current().unwrap().describe()
    }

    fn entry(&self) -> Entry {
        self.rollouts.entry("colours")
    }

    /// The reason for which a version was rejected.
    fn rejection(&self, version: &str) -> Option<String> {
        self.entry().rejected.into_iter().find(|rejected| rejected.version == version).map(|r| r.reason)
    }

    /// Stops the rollouts, and starts them again with what serves and what is on the disk.
    async fn restarted(self) -> Self {
        self.rollouts.end(Duration::from_secs(60)).await;
        self.slot.change(|routes| {
            (routes.standby, routes.monitored) = (None, None);
        });
        let context = context(
            self.dir.path(),
            Some(Arc::clone(&self.registry) as Arc<dyn ModelRegistry>),
            &self.rollout,
        );
        let rollouts = Rollouts::start(context, vec![followed(self.dir.path(), &self.slot)]);
        Self { rollouts, ..self }
    }

    /// Has the version that serves fail on this number of images.
    fn fail(&self, images: u64) {
        let current = self.slot.current().unwrap();
        (0..images).for_each(|_| current.stats.fail());
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(
                Instant::now() < end,
                "still not so: {what}; {:?}",
                self.rollouts.handles()["colours"].status.read()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_that_moves_twice_within_a_download_ends_where_it_points() {
    let world = world(Duration::from_secs(1));
    world.until("a download is under way", || world.registry.fetched.load(Ordering::SeqCst) > 0).await;
    *world.registry.alias.lock() = "2".into();
    tokio::time::sleep(Duration::from_millis(50)).await;
    *world.registry.alias.lock() = "3".into();
    // The count is raised after the routes have changed.
    let promoted = || world.rollouts.handles()["colours"].status.read().promoted;
    world.until("one is promoted", || promoted() > 0).await;
    // Neither of the others came to serve on the way.
    assert_eq!((world.serving(), promoted()), ("colours/3".into(), 1));
    let serving = |(version, value): &(String, String)| (value == "serving").then(|| version.clone());
    world.until("tagged", || !world.registry.tags.lock().is_empty()).await;
    let tagged: Vec<String> = world.registry.tags.lock().iter().filter_map(serving).collect();
    assert_eq!(tagged, ["3"]);
    world.rollouts.end(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_within_a_download_is_carried_out_at_once() {
    let world = world(Duration::from_secs(4));
    world.until("a download is under way", || world.registry.fetched.load(Ordering::SeqCst) > 0).await;
    let handle = &world.rollouts.handles()["colours"];
    let began = Instant::now();
    let refused = handle.submit(Command::Promote).await.unwrap_err();
    assert!(refused.to_string().contains("being downloaded"), "{refused}");
    let done = handle.submit(Command::Pin(Some("7".into()))).await.unwrap();
    assert_eq!(done, "pinned to colours/7");
    assert!(began.elapsed() < Duration::from_secs(12), "an operator waited for the download");
    world.until("the pinned one serves", || world.serving() == "colours/7").await;
    // The end of the process does not wait for a download either.
    handle.submit(Command::Pin(Some("8".into()))).await.unwrap();
    let before = world.registry.fetched.load(Ordering::SeqCst);
    world.until("another download", || world.registry.fetched.load(Ordering::SeqCst) > before).await;
    let began = Instant::now();
    world.rollouts.end(Duration::from_secs(60)).await;
    assert!(began.elapsed() < Duration::from_secs(12));
    assert_eq!(world.serving(), "colours/7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_was_away_is_asked_again_and_told_what_it_missed() {
    let world = world(Duration::ZERO);
    world.until("the first serves", || world.serving() == "colours/1").await;
    world.registry.away.store(usize::MAX, Ordering::SeqCst);
    let status = || world.rollouts.handles()["colours"].status.read();
    world.until("it is missed", || status().error.is_some()).await;
    assert_eq!(world.serving(), "colours/1");
    // So that it is away for some polls more, also while the second version is on its way.
    world.registry.away.store(6, Ordering::SeqCst);
    *world.registry.alias.lock() = "2".into();
    world.until("the second serves", || world.serving() == "colours/2").await;
    let told = |version: &str, value: &str| {
        world.registry.tags.lock().contains(&(version.to_owned(), value.to_owned()))
    };
    world.until("both are told", || told("2", "serving") && told("1", "replaced by colours/2")).await;
    world.until("nothing is missed any more", || status().error.is_none()).await;
    world.rollouts.end(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_seen_of_a_promoted_version_counts_after_a_restart() {
    let world = world(Duration::ZERO);
    world.until("the first serves", || world.serving() == "colours/1").await;
    // Too few to judge by.
    world.fail(10);
    let world = world.restarted().await;
    let monitored = world.entry().monitored.unwrap();
    assert_eq!((monitored.done.failed, monitored.ordered), (10, false));
    assert!(!monitored.time.is_zero());
    assert_eq!(world.serving(), "colours/1");
    world.until("it is monitored again", || world.slot.routes().monitored.is_some()).await;
    world.fail(10);
    world.until("rolled back", || world.rejection("1").is_some()).await;
    let reason = world.rejection("1").unwrap();
    assert!(reason.contains("after it was promoted, it failed on 20 of 20"), "{reason}");
    world.until("the configured bundle serves", || world.serving() == "bundle").await;
    assert_eq!(world.entry().monitored, None);
    // That is over, after another restart, too.
    let world = world.restarted().await;
    world.fail(100);
    world
        .until("asked again", || world.rollouts.handles()["colours"].status.read().last_polled_at.is_some())
        .await;
    assert_eq!((world.serving(), world.entry().monitored), ("bundle".into(), None));
    world.rollouts.end(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_another_process_are_not_compared_with() {
    let rollout = RolloutConfig { shadow_images: 1000, ..RolloutConfig::default() };
    let world = world_with(Duration::ZERO, rollout);
    world.until("the first is on trial", || world.slot.routes().trial.is_some()).await;
    let compute = |millis| {
        let current = world.slot.current().unwrap();
        (0..30).for_each(|_| current.stats.computed(Duration::from_millis(millis)));
    };
    compute(1);
    world.rollouts.handles()["colours"].submit(Command::Promote).await.unwrap();
    assert_eq!(world.entry().monitored.unwrap().before.computed(), 30);
    // It goes on where the device is slower; what it does there is written down at the end of the process.
    let world = world.restarted().await;
    world.rollouts.end(Duration::from_secs(60)).await;
    assert_eq!(world.entry().monitored.unwrap().before.computed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monitoring_ends_with_its_time() {
    let rollout = RolloutConfig {
        keep_previous_loaded: Duration::ZERO,
        monitor_time: Duration::from_secs(8),
        ..RolloutConfig::default()
    };
    let world = world_with(Duration::ZERO, rollout);
    world.until("it is monitored", || world.entry().monitored.is_some()).await;
    world.until("that is over", || world.entry().monitored.is_none()).await;
    assert_eq!((world.serving(), world.rejection("1")), ("colours/1".into(), None));
    world.rollouts.end(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monitoring_goes_on_while_another_version_is_on_trial() {
    let rollout = RolloutConfig { shadow_images: 1000, ..RolloutConfig::default() };
    let world = world_with(Duration::ZERO, rollout);
    let on_trial = || world.slot.routes().trial.clone();
    world.until("the first is on trial", || on_trial().is_some()).await;
    let handle = &world.rollouts.handles()["colours"];
    handle.submit(Command::Promote).await.unwrap();
    assert_eq!(world.serving(), "colours/1");
    // An operator wanted it, whatever its labels are.
    assert!(world.entry().monitored.is_some_and(|monitored| monitored.ordered));
    assert!(world.slot.routes().monitored.is_none());
    *world.registry.alias.lock() = "2".into();
    world.until("the second is on trial", || on_trial().is_some()).await;
    let before = on_trial().unwrap();
    world.fail(30);
    world.until("rolled back", || world.rejection("1").is_some()).await;
    assert!(world.rejection("1").unwrap().contains("after it was promoted"));
    world.until("the version before serves", || world.serving() == "colours/0").await;
    // The trial begins anew, beside the version that serves now.
    let anew = || on_trial().filter(|trial| !Arc::ptr_eq(&trial.comparison, &before.comparison));
    world.until("the second is on trial again", || anew().is_some()).await;
    assert_eq!(anew().unwrap().model.describe(), "colours/2");
    assert_eq!(world.rejection("2"), None);
    // Promoted, it is monitored in the other one's place.
    handle.submit(Command::Promote).await.unwrap();
    assert_eq!(world.serving(), "colours/2");
    assert_eq!(world.entry().monitored.unwrap().done.failed, 0);
    world.rollouts.end(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_version_that_names_other_labels_is_rolled_back() {
    let world = world_with(Duration::ZERO, RolloutConfig::default());
    world.until("the first serves", || world.serving() == "colours/1").await;
    let comparison = world.slot.routes().monitored.clone().unwrap();
    let current = world.slot.current().unwrap();
    (0..30).for_each(|_| current.stats.computed(Duration::from_millis(1)));
    (0..15).for_each(|_| comparison.record(true));
    (0..15).for_each(|_| comparison.record(false));
    world.until("rolled back", || world.rejection("1").is_some()).await;
    let reason = world.rejection("1").unwrap();
    assert!(reason.contains("15 of 30") && reason.contains("rollout.max_disagreement"), "{reason}");
    world.until("the version before serves", || world.serving() == "colours/0").await;
    assert!(world.slot.routes().monitored.is_none());
    world.rollouts.end(Duration::from_secs(60)).await;
}
