//! A loss of power at any moment loses no object that was put, and restores none that was removed.

use std::collections::BTreeMap;

use tokio::runtime::Runtime;

use super::*;
use crate::durable::simulated::{SimulatedDisk, after_each_loss};

fn key(key: &str) -> BlobKey {
    BlobKey::new(key).unwrap()
}

/// A key and its content from then on.
type Step = (&'static str, Option<Vec<u8>>);

fn steps() -> Vec<Step> {
    let put = |key, byte: u8| (key, Some(vec![byte; 3000]));
    vec![
        put("batches/1/body.json", 1),
        put("batches/1/files/0.jpg", 2),
        put("batches/1/body.json", 3),
        ("batches/1/files/0.jpg", None),
        put("top.json", 4),
        // Its folder was removed with the last object in it.
        put("batches/1/files/1.jpg", 5),
        ("batches/1/body.json", None),
        ("batches/1/files/1.jpg", None),
        put("batches/1/files/0.jpg", 6),
    ]
}

fn after(steps: &[Step]) -> BTreeMap<&'static str, Vec<u8>> {
    let mut expected = BTreeMap::new();
    for (key, content) in steps {
        match content {
            Some(content) => drop(expected.insert(*key, content.clone())),
            None => drop(expected.remove(key)),
        }
    }
    expected
}

#[test]
fn objects_outlive_a_loss_of_power_at_any_moment() {
    let runtime = Runtime::new().unwrap();
    let root = tempfile::tempdir().unwrap();
    let disk = SimulatedDisk::watch(root.path());
    let open = |root: &Path| {
        let bound = Bound { max_bytes: 1 << 20, min_free: 0, share: |_| 100 };
        DirStore::open_bounded(root.join("data/blobs"), bound).unwrap()
    };
    let steps = steps();
    let store = open(root.path());
    for (name, content) in &steps {
        runtime.block_on(async {
            match content {
                Some(content) => store.put(&key(name), content.clone().into(), "").await.unwrap(),
                None => store.delete(&key(name)).await.unwrap(),
            }
        });
        disk.acknowledge();
    }
    after_each_loss(&disk.kill_points(), |dir, acknowledged, outcome| {
        let store = open(dir);
        let listed = runtime.block_on(store.list("", None)).unwrap().objects;
        let read = |name: &str| runtime.block_on(store.get(&key(name), 1 << 20)).unwrap().unwrap().to_vec();
        let found: BTreeMap<_, _> = listed.iter().map(|info| (info.key.as_str(), read(&info.key))).collect();
        let (before, behind) = (after(&steps[..acknowledged]), steps.get(..=acknowledged).map(after));
        assert!(
            found == before || behind.is_some_and(|behind| found == behind),
            "{outcome:?} after {acknowledged}: {:?}",
            found.keys()
        );
        // And it continues to work.
        runtime.block_on(store.put(&key("batches/1/files/2.jpg"), Bytes::from_static(b"x"), "")).unwrap();
    });
}
