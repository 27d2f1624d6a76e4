//! The contract of every model registry, one test per guarantee of `cloud_sync::registry`.
//!
//! A test binary has this file as its `mod contract` and names its harness once, `contract::suite!(MyHarness);`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use cloud_sync::registry::{ModelReference, ModelRegistry, ModelVersion, Report};

/// A registry with one separate model for one test.
#[async_trait]
pub(crate) trait Harness: Send + Sync {
    /// Without any version.
    async fn new() -> Self;

    /// The model's name.
    fn name(&self) -> String;

    /// Registers a folder `count` times, as its users do. Returns the versions.
    async fn register(&self, folder: &Path, count: usize) -> Vec<String>;

    /// Points an alias to a version.
    async fn alias(&self, alias: &str, version: &str);

    /// Whether it supports resuming in the middle of a file.
    fn goes_on(&self) -> bool;

    /// The registry; the second one is another handle, as another process would have it.
    fn open(&self) -> [Arc<dyn ModelRegistry>; 2];

    /// The metrics and tags of the reports stored under an experiment.
    async fn reports(&self, experiment: &str) -> Vec<(BTreeMap<String, f64>, BTreeMap<String, String>)>;
}

macro_rules! suite {
    ($harness:ty) => { $crate::contract::suite!($harness:
        a_version_is_found_by_number_and_by_alias,
        what_is_not_there_is_none,
        an_alias_that_moves_is_seen_at_the_next_look,
        versions_come_newest_first,
        all_files_are_listed_and_come_back_as_they_were,
        limits_are_kept,
        paths_that_lead_out_are_refused_by_name,
        a_fetch_that_was_broken_off_is_gone_on_with,
        what_another_version_left_is_not_gone_on_with,
        a_tag_is_seen_by_the_next_resolve,
        a_report_is_kept,
        a_check_goes_through,
    ); };
    ($harness:ty: $($promise:ident,)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let harness = <$harness as $crate::contract::Harness>::new().await;
            $crate::contract::$promise(&harness).await;
        }
    )* };
}
pub(crate) use suite;

/// Bytes that differ by position, so that a misplaced part shows.
pub(crate) fn content(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length as u64);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// A folder with these files.
pub(crate) fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

/// ONNX models as stored by MLflow.
pub(crate) const MLMODEL: &str = "flavors:\n  onnx:\n    data: model.onnx\n    onnx_version: 1.16.0\n";

async fn one<H: Harness>(harness: &H, files: &[(&str, &[u8])]) -> String {
    let dir = folder(files);
    harness.register(dir.path(), 1).await.remove(0)
}

pub(crate) async fn find(registry: &Arc<dyn ModelRegistry>, reference: &str) -> Option<ModelVersion> {
    let reference: ModelReference = reference.parse().unwrap();
    registry.resolve(&reference).await.unwrap_or_else(|error| panic!("{reference}: {}", error.in_full()))
}

pub(crate) async fn a_version_is_found_by_number_and_by_alias<H: Harness>(harness: &H) {
    let [registry, other] = harness.open();
    let name = harness.name();
    let version = one(harness, &[("MLmodel", MLMODEL.as_bytes())]).await;
    harness.alias("champion", &version).await;
    let found = find(&registry, &format!("{name}/{version}")).await.unwrap();
    assert_eq!(
        (&found.name, &found.version, &found.aliases),
        (&name, &version, &vec!["champion".to_owned()])
    );
    assert!(found.tags.is_empty(), "{found:?}");
    let age = found.created.unwrap().elapsed().unwrap_or_default();
    assert!(age < Duration::from_secs(600), "{found:?}");
    assert_eq!(find(&other, &format!("{name}@champion")).await.unwrap(), found);
}

pub(crate) async fn what_is_not_there_is_none<H: Harness>(harness: &H) {
    let [registry, _] = harness.open();
    let name = harness.name();
    for reference in [format!("{name}@champion"), format!("{name}/1")] {
        assert_eq!(find(&registry, &reference).await, None, "{reference}");
    }
    assert_eq!(registry.versions(&name).await.unwrap(), []);
    one(harness, &[("MLmodel", b"x")]).await;
    for reference in [format!("{name}@champion"), format!("{name}/77"), format!("{name}/x")] {
        assert_eq!(find(&registry, &reference).await, None, "{reference}");
    }
    let gone = ModelVersion { version: "77".into(), ..find(&registry, &format!("{name}/1")).await.unwrap() };
    for error in
        [registry.artifacts(&gone, 10).await.unwrap_err(), registry.tag(&gone, "a", "b").await.unwrap_err()]
    {
        assert!(!error.is_transient() && error.in_full().contains("77"), "{}", error.in_full());
    }
}

pub(crate) async fn an_alias_that_moves_is_seen_at_the_next_look<H: Harness>(harness: &H) {
    let [registry, other] = harness.open();
    let name = harness.name();
    let dir = folder(&[("a.txt", b"a")]);
    let versions = harness.register(dir.path(), 2).await;
    for version in [&versions[0], &versions[1], &versions[0]] {
        harness.alias("champion", version).await;
        for registry in [&registry, &other] {
            let found = find(registry, &format!("{name}@champion")).await.unwrap();
            assert_eq!(&found.version, version);
        }
    }
    let left = find(&registry, &format!("{name}/{}", versions[1])).await.unwrap();
    assert_eq!(left.aliases, [""; 0]);
}

pub(crate) async fn versions_come_newest_first<H: Harness>(harness: &H) {
    let [registry, _] = harness.open();
    let dir = folder(&[("a.txt", b"a")]);
    harness.register(dir.path(), 11).await;
    let found = registry.versions(&harness.name()).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|found| found.version).collect();
    assert_eq!(found, ["11", "10", "9", "8", "7", "6", "5", "4", "3", "2", "1"]);
}

pub(crate) async fn all_files_are_listed_and_come_back_as_they_were<H: Harness>(harness: &H) {
    let [registry, _] = harness.open();
    let large = content((9 << 20) + 5);
    let files: [(&str, &[u8]); 6] = [
        ("MLmodel", MLMODEL.as_bytes()),
        ("empty.txt", b""),
        ("golden/deep/er/a b+c.jpg", b"one"),
        ("golden/naïve.txt", b"two"),
        ("model.onnx", &large),
        ("page.html", b"<html>a file, not an answer</html>"),
    ];
    let version = one(harness, &files).await;
    let version = find(&registry, &format!("{}/{version}", harness.name())).await.unwrap();
    let listed =
        registry.artifacts(&version, files.len()).await.unwrap_or_else(|error| panic!("{}", error.in_full()));
    // MLflow does not report the size of an empty file.
    let mut listed: Vec<_> = listed.into_iter().map(|found| (found.path, found.bytes.unwrap_or(0))).collect();
    listed.sort();
    let expected: Vec<_> = files.iter().map(|(path, bytes)| (path.to_string(), bytes.len() as u64)).collect();
    assert_eq!(listed, expected);
    let to = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let to = to.path().join("file");
        let fetched = registry.fetch(&version, path, &to, bytes.len() as u64).await;
        fetched.unwrap_or_else(|error| panic!("{path}: {}", error.in_full()));
        assert!(std::fs::read(&to).unwrap() == bytes, "{path}");
    }
    assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 1, "nothing else is left there");
}

pub(crate) async fn limits_are_kept<H: Harness>(harness: &H) {
    let [registry, _] = harness.open();
    let version = one(harness, &[("a", b"aaaa"), ("b/c", b"c"), ("b/d", b"d")]).await;
    let version = find(&registry, &format!("{}/{version}", harness.name())).await.unwrap();
    assert_eq!(registry.artifacts(&version, 3).await.unwrap().len(), 3);
    let error = registry.artifacts(&version, 2).await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("more than 2 files"), "{}", error.in_full());
    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("file");
    let error = registry.fetch(&version, "a", &to, 3).await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("3 are allowed"), "{}", error.in_full());
    for gone in ["e", "b", "b/e", "a/b"] {
        let error = registry.fetch(&version, gone, &to, 3).await.unwrap_err();
        assert!(!error.is_transient() && error.in_full().contains(gone), "{gone}: {}", error.in_full());
    }
}

pub(crate) async fn paths_that_lead_out_are_refused_by_name<H: Harness>(harness: &H) {
    let [registry, _] = harness.open();
    let version = one(harness, &[("a", b"aaaa")]).await;
    let version = find(&registry, &format!("{}/{version}", harness.name())).await.unwrap();
    let to = tempfile::tempdir().unwrap();
    for path in ["../a", "b/../a", "/etc/passwd", "./a", "a//b", "a\\b", ""] {
        let error = registry.fetch(&version, path, &to.path().join("file"), 100).await.unwrap_err();
        let text = error.in_full();
        assert!(!error.is_transient() && text.contains(&format!("{path:?}")), "{text}");
    }
}

/// Starts a fetch and interrupts it when a part of the file is there.
async fn broken_off(registry: &Arc<dyn ModelRegistry>, version: &ModelVersion, path: &str, to: &Path) {
    let fetch = registry.fetch(version, path, to, 1 << 30);
    tokio::pin!(fetch);
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::ZERO) => {}
            done = &mut fetch => panic!("it was through at once: {done:?}"),
        }
        if std::fs::metadata(to).is_ok_and(|found| found.len() > 5 << 20) {
            return;
        }
    }
}

pub(crate) async fn a_fetch_that_was_broken_off_is_gone_on_with<H: Harness>(harness: &H) {
    let [registry, other] = harness.open();
    let large = content(64 << 20);
    let version = one(harness, &[("model.onnx", &large)]).await;
    let version = find(&registry, &format!("{}/{version}", harness.name())).await.unwrap();
    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("file");
    broken_off(&registry, &version, "model.onnx", &to).await;
    assert!(std::fs::metadata(&to).unwrap().len() < large.len() as u64);
    // Only a fetch from the beginning writes this byte again.
    let mut left = std::fs::OpenOptions::new().write(true).open(&to).unwrap();
    left.write_all(&[!large[0]]).unwrap();
    other.fetch(&version, "model.onnx", &to, 1 << 30).await.unwrap();
    let mut found = std::fs::read(&to).unwrap();
    assert_eq!(found[0] != large[0], harness.goes_on());
    found[0] = large[0];
    assert!(found == large);
}

pub(crate) async fn what_another_version_left_is_not_gone_on_with<H: Harness>(harness: &H) {
    let [registry, _] = harness.open();
    let (old, new) = (content(64 << 20), content((64 << 20) + 1));
    let first = one(harness, &[("model.onnx", &old)]).await;
    let second = one(harness, &[("model.onnx", &new)]).await;
    let name = harness.name();
    let first = find(&registry, &format!("{name}/{first}")).await.unwrap();
    let second = find(&registry, &format!("{name}/{second}")).await.unwrap();
    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("file");
    broken_off(&registry, &first, "model.onnx", &to).await;
    registry.fetch(&second, "model.onnx", &to, 1 << 30).await.unwrap();
    assert!(std::fs::read(&to).unwrap() == new);
    // A complete file is fetched again.
    registry.fetch(&first, "model.onnx", &to, 1 << 30).await.unwrap();
    assert!(std::fs::read(&to).unwrap() == old);
}

pub(crate) async fn a_tag_is_seen_by_the_next_resolve<H: Harness>(harness: &H) {
    let [registry, other] = harness.open();
    let version = one(harness, &[("a", b"a")]).await;
    let reference = format!("{}/{version}", harness.name());
    let version = find(&registry, &reference).await.unwrap();
    for value in ["loading", "rejected: wrong shape [1, 3, 224, 224] – \"ü\"", "serving"] {
        registry.tag(&version, "weir.box-1.state", value).await.unwrap();
        other.tag(&version, "weir.box-2.state", "serving").await.unwrap();
        let found = find(&other, &reference).await.unwrap();
        assert_eq!(found.tags["weir.box-1.state"], value);
        assert_eq!(found.tags["weir.box-2.state"], "serving");
        assert_eq!(registry.versions(&harness.name()).await.unwrap()[0].tags, found.tags);
    }
}

pub(crate) async fn a_report_is_kept<H: Harness>(harness: &H) {
    let [registry, other] = harness.open();
    let end = SystemTime::now();
    let report = |run: &str| Report {
        experiment: format!("{} monitoring", harness.name()),
        run: run.to_owned(),
        time: Some((end - Duration::from_secs(3600), end)),
        params: BTreeMap::from([("model".to_owned(), "fish/3".to_owned())]),
        metrics: BTreeMap::from([("psi".to_owned(), 0.125), ("images".to_owned(), 1e6)]),
        tags: BTreeMap::from([("node".to_owned(), run.to_owned())]),
    };
    registry.report(&report("box-1")).await.unwrap_or_else(|error| panic!("{}", error.in_full()));
    other.report(&report("box-2")).await.unwrap();
    let mut kept = harness.reports(&report("").experiment).await;
    kept.sort_by_key(|(_, tags)| tags["node"].clone());
    for ((metrics, tags), node) in kept.iter().zip(["box-1", "box-2"]) {
        assert_eq!((metrics, tags["node"].as_str()), (&report("").metrics, node));
    }
    assert_eq!(kept.len(), 2);
}

pub(crate) async fn a_check_goes_through<H: Harness>(harness: &H) {
    one(harness, &[("a", b"a")]).await;
    let steps = harness.open()[0].check().await;
    assert!(steps.len() >= 2);
    for step in steps {
        assert!(step.outcome.is_ok(), "{}: {:?}", step.what, step.outcome);
    }
}
