//! The registry in a directory: the contract, and other files that may be there.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "contract/registry.rs"]
mod contract;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use cloud_sync::registry::{DirRegistry, ModelRegistry};
use contract::{Harness, find, folder};
use tempfile::{TempDir, tempdir};

struct InDirectory(TempDir);

#[async_trait]
impl Harness for InDirectory {
    async fn new() -> Self {
        Self(tempdir().unwrap())
    }

    fn name(&self) -> String {
        "fish-classifier".into()
    }

    async fn register(&self, folder: &Path, count: usize) -> Vec<String> {
        let of = self.0.path().join(self.name());
        std::fs::create_dir_all(&of).unwrap();
        let there = std::fs::read_dir(&of).unwrap().filter(|found| {
            let name = found.as_ref().unwrap().file_name();
            name.to_str().unwrap().parse::<u32>().is_ok()
        });
        let first = there.count() + 1;
        let versions: Vec<_> = (first..first + count).map(|version| version.to_string()).collect();
        for version in &versions {
            let copied = Command::new("cp").arg("-r").arg(folder).arg(of.join(version)).status().unwrap();
            assert!(copied.success());
        }
        versions
    }

    async fn alias(&self, alias: &str, version: &str) {
        let aliases = self.0.path().join(self.name()).join("aliases");
        std::fs::create_dir_all(&aliases).unwrap();
        std::fs::write(aliases.join(alias), format!("{version}\n")).unwrap();
    }

    fn goes_on(&self) -> bool {
        true
    }

    fn open(&self) -> [Arc<dyn ModelRegistry>; 2] {
        [Arc::new(DirRegistry::new(self.0.path())), Arc::new(DirRegistry::new(self.0.path()))]
    }

    async fn reports(&self, experiment: &str) -> Vec<(BTreeMap<String, f64>, BTreeMap<String, String>)> {
        let runs = std::fs::read_dir(self.0.path().join("reports").join(experiment)).unwrap();
        let read = |path: &Path| -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
        };
        let parts = |run: serde_json::Value| {
            assert_eq!(run["end_seconds"].as_f64().unwrap() - run["begin_seconds"].as_f64().unwrap(), 3600.0);
            let metrics = serde_json::from_value(run["metrics"].clone()).unwrap();
            (metrics, serde_json::from_value(run["tags"].clone()).unwrap())
        };
        runs.map(|run| parts(read(&run.unwrap().path()))).collect()
    }
}

contract::suite!(InDirectory);

#[tokio::test]
async fn links_are_refused_by_path_and_never_followed() {
    let harness = InDirectory::new().await;
    let secret = folder(&[("secret.txt", b"hunter2")]);
    let dir = folder(&[("MLmodel", b"x")]);
    harness.register(dir.path(), 3).await;
    let [registry, _] = harness.open();
    let at = |path: &str| harness.0.path().join("fish-classifier").join(path);
    symlink(secret.path().join("secret.txt"), at("1/link.txt")).unwrap();
    symlink(secret.path(), at("2/folder")).unwrap();
    symlink(secret.path(), at("4")).unwrap();
    let to = tempdir().unwrap();
    let to = to.path().join("file");
    for (version, path, named) in [("1", "link.txt", "1/link.txt"), ("2", "folder/secret.txt", "2/folder")] {
        let version = find(&registry, &format!("fish-classifier/{version}")).await.unwrap();
        for error in [
            registry.artifacts(&version, 10).await.unwrap_err(),
            registry.fetch(&version, path, &to, 100).await.unwrap_err(),
        ] {
            let text = error.in_full();
            assert!(!error.is_transient() && text.contains(named) && text.contains("link"), "{text}");
        }
        assert!(!to.exists());
    }
    let error = registry.resolve(&"fish-classifier/4".parse().unwrap()).await.unwrap_err();
    assert!(error.in_full().contains("fish-classifier/4"), "{}", error.in_full());
    let good = find(&registry, "fish-classifier/3").await.unwrap();
    assert_eq!(registry.artifacts(&good, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_people_got_wrong_is_named() {
    let harness = InDirectory::new().await;
    let dir = folder(&[("MLmodel", b"x")]);
    harness.register(dir.path(), 1).await;
    let [registry, _] = harness.open();
    for (alias, wanted) in [("9", "version \"9\""), ("../1", "\"../1\""), ("", "aliases/champion")] {
        harness.alias("champion", alias).await;
        let error = registry.resolve(&"fish-classifier@champion".parse().unwrap()).await.unwrap_err();
        assert!(!error.is_transient() && error.in_full().contains(wanted), "{}", error.in_full());
    }
    std::fs::remove_file(harness.0.path().join("fish-classifier/aliases/champion")).unwrap();
    std::fs::create_dir_all(harness.0.path().join("fish-classifier/tags")).unwrap();
    std::fs::write(harness.0.path().join("fish-classifier/tags/1.json"), "[1]").unwrap();
    let error = registry.resolve(&"fish-classifier/1".parse().unwrap()).await.unwrap_err();
    assert!(error.in_full().contains("tags/1.json"), "{}", error.in_full());
    // A name that is not a number comes after the numbers.
    std::fs::remove_dir_all(harness.0.path().join("fish-classifier/tags")).unwrap();
    std::fs::create_dir_all(harness.0.path().join("fish-classifier/nightly")).unwrap();
    std::fs::write(harness.0.path().join("fish-classifier/README.md"), "no version").unwrap();
    let found = registry.versions("fish-classifier").await.unwrap();
    assert_eq!(found.iter().map(|found| found.version.as_str()).collect::<Vec<_>>(), ["1", "nightly"]);
    let nowhere = DirRegistry::new(harness.0.path().join("nowhere"));
    let steps = nowhere.check().await;
    let error = steps[0].outcome.as_ref().unwrap_err().in_full();
    assert!(steps.len() == 1 && error.contains("nowhere"), "{error}");
}
