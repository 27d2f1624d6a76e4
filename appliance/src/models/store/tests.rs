//! The store after crashes between any two steps, with several users, and when old models go.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cloud_sync::durable::simulated::{SimulatedDisk, after_each_loss};
use inference::bundle::testing::{edit, write_bundle};

use super::{ModelStore, Origin, StoreError};
use crate::models::testing::names;

fn origin(version: &str) -> Origin {
    Origin { source: "tests".into(), name: "colours".into(), version: version.into() }
}

/// Imports a bundle that differs from others by its version.
fn import(store: &ModelStore, version: &str) -> String {
    let staging = store.staging_dir(&origin(version)).unwrap().unwrap();
    let stage = staging.stage().unwrap();
    write_bundle(&stage, "colours.onnx");
    edit(&stage.join("bundle.toml"), "version = \"1\"", &format!("version = \"{version}\""));
    let digest = store.import(&staging, &origin(version)).unwrap().digest().to_owned();
    staging.discard();
    digest
}

fn digests(store: &ModelStore) -> Vec<String> {
    store.list().unwrap().into_iter().map(|bundle| bundle.digest).collect()
}

/// What the store must look like when nothing is under way.
fn assert_tidy(store: &ModelStore) {
    let known = store.list().unwrap();
    let on_disk = names(&store.root().join("bundles"));
    assert_eq!(on_disk, known.iter().map(|b| b.digest.clone()).collect::<BTreeSet<_>>());
    let needed: BTreeSet<String> = known.iter().flat_map(|b| b.files.clone()).collect();
    assert_eq!(names(&store.root().join("files")), needed);
    assert!(!names(store.root()).iter().any(|name| name.starts_with(".new-")));
    known.iter().for_each(|bundle| assert!(store.bundle(&bundle.digest).is_ok()));
}

#[test]
fn content_is_stored_once_and_survives_reopening() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let (one, two) = (import(&store, "1"), import(&store, "2"));
    // Two manifests; model, labels and picture are shared.
    assert_eq!(names(&root.path().join("files")).len(), 5);
    let store = ModelStore::open(root.path()).unwrap();
    assert_eq!(digests(&store), [two, one.clone()]);
    assert_eq!(store.find(&origin("1")).unwrap().unwrap().digest, one);
    assert!(store.find(&origin("3")).unwrap().is_none());
    assert_tidy(&store);
}

#[test]
fn an_unknown_digest_or_a_path_in_its_place_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    for digest in ["", "..", "../files", &"ab".repeat(32)] {
        assert!(matches!(store.bundle(digest), Err(StoreError::Unknown { .. })), "{digest:?}");
    }
    let digest = import(&store, "1");
    // Whole in itself, and yet not the one that was taken in.
    let dir = root.path().join("bundles").join(&digest);
    edit(&dir.join("bundle.toml"), "min_score = 0.9", "min_score = 0.1");
    assert!(store.bundle(&digest).unwrap_err().to_string().contains("bundle.toml has sha256"));
}

#[test]
fn old_bundles_go_and_protected_ones_stay() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let all: Vec<String> = ["1", "2", "3", "4"].iter().map(|version| import(&store, version)).collect();
    assert_eq!(store.prune(|b| b.model == "other", 0, &[]).unwrap(), Vec::<String>::new());
    assert_eq!(store.prune(|b| b.model == "colours", 4, &[]).unwrap(), Vec::<String>::new());
    let removed = store.prune(|b| b.model == "colours", 1, &[&all[0]]).unwrap();
    assert_eq!(BTreeSet::from_iter(removed), BTreeSet::from([all[1].clone(), all[2].clone()]));
    assert_eq!(digests(&store), [all[3].clone(), all[0].clone()]);
    assert_tidy(&store);
    store.prune(|b| b.model == "colours", 0, &[]).unwrap();
    assert!(names(&root.path().join("files")).is_empty());
}

#[test]
fn bundles_outlive_a_loss_of_power_at_any_moment() {
    let root = tempfile::tempdir().unwrap();
    let disk = SimulatedDisk::watch(root.path());
    let open = |root: &Path| ModelStore::open(&root.join("models")).unwrap();
    let store = open(root.path());
    let versions = |store: &ModelStore| -> BTreeSet<String> {
        store.list().unwrap().into_iter().map(|bundle| bundle.version).collect()
    };
    // What is in the store after each step.
    let mut steps = vec![BTreeSet::new()];
    for version in ["1", "2", "prune", "3"] {
        match version {
            "prune" => drop(store.prune(|_| true, 1, &[]).unwrap()),
            version => drop(import(&store, version)),
        }
        disk.acknowledge();
        steps.push(versions(&store));
    }
    assert_eq!(steps.last().unwrap().len(), 2);
    after_each_loss(&disk.kill_points(), |dir, acknowledged, outcome| {
        let store = open(dir);
        assert_tidy(&store);
        let (found, before, behind) = (versions(&store), &steps[acknowledged], steps.get(acknowledged + 1));
        assert!(found == *before || Some(&found) == behind, "{outcome:?} after {acknowledged}: {found:?}");
        for version in found.intersection(before) {
            assert!(store.find(&origin(version)).unwrap().is_some(), "{outcome:?}: nobody knows {version}");
        }
        // And it goes on.
        import(&store, "4");
        assert_tidy(&store);
    });
}

#[test]
fn every_state_that_a_crash_leaves_is_set_right() {
    type Crash = fn(&Path, &str);
    let crashes: [(&str, bool, Crash); 9] = [
        ("content under its first name", true, |root, _| {
            fs::write(root.join("files/.new-ab"), "half").unwrap();
        }),
        ("content without a bundle", true, |root, _| fs::write(root.join("files/abcd"), "whole").unwrap()),
        ("half a bundle", true, |root, _| fs::create_dir_all(root.join("bundles/.new-ab/golden")).unwrap()),
        ("an index under its first name", true, |root, _| fs::write(root.join(".new-x"), "{").unwrap()),
        ("a bundle that the index does not know", true, |root, _| {
            fs::remove_file(root.join("index.json")).unwrap();
        }),
        ("half an index", true, |root, _| {
            let text = fs::read(root.join("index.json")).unwrap();
            fs::write(root.join("index.json"), &text[..text.len() / 2]).unwrap();
        }),
        ("a bundle on its way out, still in the index", false, |root, digest| {
            fs::rename(root.join("bundles").join(digest), root.join(format!("bundles/.gone-{digest}")))
                .unwrap();
        }),
        ("a bundle half removed", false, |root, digest| {
            fs::remove_file(root.join("index.json")).unwrap();
            fs::remove_file(root.join("bundles").join(digest).join("model.onnx")).unwrap();
        }),
        ("a bundle whose folder has gone", false, |root, digest| {
            fs::remove_dir_all(root.join("bundles").join(digest)).unwrap();
        }),
    ];
    for (state, stays, crash) in crashes {
        let root = tempfile::tempdir().unwrap();
        let digest = import(&ModelStore::open(root.path()).unwrap(), "1");
        crash(root.path(), &digest);
        let store = ModelStore::open(root.path()).unwrap();
        assert_eq!(digests(&store).contains(&digest), stays, "{state}");
        assert_tidy(&store);
        // And the version can be taken in again.
        assert_eq!(import(&store, "1"), digest, "{state}");
        assert!(store.find(&origin("1")).unwrap().is_some(), "{state}");
        assert_tidy(&store);
    }
}

#[test]
fn an_index_of_a_later_weir_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let digest = import(&ModelStore::open(root.path()).unwrap(), "1");
    fs::write(root.path().join("index.json"), "{\"format\": 2, \"bundles\": {}}").unwrap();
    let error = ModelStore::open(root.path()).unwrap_err();
    assert!(matches!(error, StoreError::Format { found: 2, .. }), "{error}");
    assert!(root.path().join("bundles").join(digest).is_dir());
}

#[test]
fn downloads_that_nobody_goes_on_with_are_removed_after_a_week() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let age = |version: &str, days: u64| {
        let staging = store.staging_dir(&origin(version)).unwrap().unwrap();
        let file = staging.file("model.onnx");
        fs::write(&file, "half").unwrap();
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        for path in [file.as_path(), file.parent().unwrap()] {
            fs::File::open(path).unwrap().set_modified(then).unwrap();
        }
        staging
    };
    drop(age("old", 8));
    drop(age("young", 6));
    let held = age("slow", 8);
    ModelStore::open(root.path()).unwrap();
    assert_eq!(names(&root.path().join("partial")).len(), 2);
    assert!(held.file("model.onnx").exists());
    assert!(store.staging_dir(&origin("slow")).unwrap().is_none(), "it is somebody's");
}

#[test]
fn what_is_no_bundle_is_not_taken_in() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let kept = import(&store, "1");
    let staging = store.staging_dir(&origin("2")).unwrap().unwrap();
    let stage = staging.stage().unwrap();
    write_bundle(&stage, "colours.onnx");
    fs::write(stage.join("model.onnx"), "another").unwrap();
    assert!(matches!(store.import(&staging, &origin("2")), Err(StoreError::Bundle(_))));
    let stage = staging.stage().unwrap();
    write_bundle(&stage, "colours.onnx");
    fs::remove_file(stage.join("golden/red.png")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", stage.join("golden/red.png")).unwrap();
    assert!(matches!(store.import(&staging, &origin("2")), Err(StoreError::Io { .. })));
    assert_eq!(digests(&store), [kept]);
    assert_tidy(&store);
}

#[test]
fn several_users_of_one_store_do_not_lose_each_others_models() {
    let root = tempfile::tempdir().unwrap();
    let root: Arc<Path> = root.path().into();
    std::thread::scope(|scope| {
        for user in 0..4 {
            let root = Arc::clone(&root);
            scope.spawn(move || {
                for turn in 0..5 {
                    let store = ModelStore::open(&root).unwrap();
                    let digest = import(&store, &format!("{user}.{turn}"));
                    assert!(store.bundle(&digest).is_ok());
                    store.prune(|b| b.model == "nothing of this name", 0, &[]).unwrap();
                }
            });
        }
    });
    let store = ModelStore::open(&root).unwrap();
    assert_eq!(store.list().unwrap().len(), 20);
    assert_tidy(&store);
}
