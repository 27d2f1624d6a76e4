//! Tests of the embedded cache: time to live, the limit, and concurrent threads.

use std::thread;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn key(n: u64) -> Key {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_le_bytes());
    key
}

fn store(max_bytes: u64) -> EmbeddedCache {
    EmbeddedCache::new(CacheConfig { max_bytes })
}

#[test]
fn a_value_comes_back_until_it_is_removed() {
    let store = store(1 << 20);
    assert_eq!(store.get(&key(1)), None);
    store.put(&key(1), Bytes::from_static(b"one"), HOUR);
    assert_eq!(store.get(&key(1)), Some(Bytes::from_static(b"one")));
    assert_eq!(store.get(&key(2)), None);
    store.put(&key(1), Bytes::from_static(b"uno"), HOUR);
    assert_eq!(store.get(&key(1)), Some(Bytes::from_static(b"uno")));
    store.remove(&key(1));
    assert_eq!(store.get(&key(1)), None);
    let stats = store.stats();
    assert_eq!((stats.entries, stats.bytes, stats.hits, stats.misses), (0, 0, 2, 3));
}

#[test]
fn values_end_with_their_own_time_to_live() {
    let store = store(1 << 20);
    let start = Instant::now();
    store.put(&key(1), Bytes::from_static(b"short"), Duration::from_millis(80));
    store.put(&key(2), Bytes::from_static(b"long"), HOUR);
    while start.elapsed() < Duration::from_millis(200) {
        let found = store.get(&key(1));
        // Judged by the time after the look-up: before it the value may not have expired yet.
        if found.is_none() {
            assert!(start.elapsed() >= Duration::from_millis(80), "gone before its time");
        }
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(store.get(&key(1)), None);
    assert_eq!(store.get(&key(2)), Some(Bytes::from_static(b"long")));
}

#[test]
fn a_new_value_has_a_new_time_to_live() {
    let store = store(1 << 20);
    store.put(&key(1), Bytes::from_static(b"long"), HOUR);
    store.put(&key(1), Bytes::from_static(b"short"), Duration::from_millis(30));
    store.put(&key(2), Bytes::from_static(b"short"), Duration::from_millis(30));
    store.put(&key(2), Bytes::from_static(b"long"), HOUR);
    thread::sleep(Duration::from_millis(60));
    assert_eq!(store.get(&key(1)), None);
    assert_eq!(store.get(&key(2)), Some(Bytes::from_static(b"long")));
}

#[test]
fn reading_does_not_prolong_a_value() {
    let store = store(1 << 20);
    store.put(&key(1), Bytes::from_static(b"x"), Duration::from_millis(100));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(150) {
        let _ = store.get(&key(1));
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(store.get(&key(1)), None);
}

#[test]
fn no_time_to_live_means_not_kept_and_not_the_old_one_either() {
    let store = store(1 << 20);
    store.put(&key(1), Bytes::from_static(b"old"), HOUR);
    store.put(&key(1), Bytes::from_static(b"new"), Duration::ZERO);
    assert_eq!(store.get(&key(1)), None);
}

#[test]
fn the_bytes_stay_under_the_bound_and_the_newest_stay_in() {
    let bound = 256 << 10;
    let store = store(bound);
    let value = Bytes::from(vec![7; 1000]);
    for n in 0..5000 {
        store.put(&key(n), value.clone(), HOUR);
    }
    let stats = store.stats();
    let each = weight(&value) as u64;
    assert!(stats.bytes <= bound, "{stats:?}");
    assert!(stats.bytes > bound - 2 * each, "{stats:?}");
    assert_eq!(stats.entries, stats.bytes / each);
    assert_eq!(store.get(&key(4999)), Some(value));
    assert_eq!(store.get(&key(0)), None);
}

#[test]
fn what_was_read_lately_stays_in() {
    let store = store(100 * weight(&Bytes::from_static(b"v")) as u64);
    for n in 0..100 {
        store.put(&key(n), Bytes::from_static(b"v"), HOUR);
    }
    for n in 100..150 {
        assert!(store.get(&key(0)).is_some());
        store.put(&key(n), Bytes::from_static(b"v"), HOUR);
        store.cache.run_pending_tasks();
    }
    assert!(store.get(&key(0)).is_some());
    assert!(store.get(&key(1)).is_none());
}

#[test]
fn a_value_over_the_bound_is_not_kept() {
    let store = store(1000);
    store.put(&key(1), Bytes::from_static(b"fits"), HOUR);
    store.put(&key(2), Bytes::from(vec![0; 1000]), HOUR);
    assert_eq!(store.get(&key(2)), None);
    assert!(store.get(&key(1)).is_some(), "it must not push the others out");
    let nothing = EmbeddedCache::new(CacheConfig { max_bytes: 0 });
    nothing.put(&key(1), Bytes::new(), HOUR);
    assert_eq!(nothing.get(&key(1)), None);
}

#[test]
fn threads_see_whole_values_of_their_own_key() {
    let bound = 64 << 10;
    let store = store(bound);
    thread::scope(|scope| {
        for worker in 0..8_u64 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..4000_u64 {
                    let n = (worker * 31 + round) % 200;
                    if let Some(found) = store.get(&key(n)) {
                        assert_eq!(found.len(), 300);
                        assert!(found.iter().all(|byte| u64::from(*byte) == n), "a value of another key");
                    }
                    let byte = u8::try_from(n).unwrap();
                    store.put(&key(n), Bytes::from(vec![byte; 300]), HOUR);
                }
            });
        }
    });
    let stats = store.stats();
    assert!(stats.bytes <= bound, "{stats:?}");
    assert_eq!(stats.hits + stats.misses, 8 * 4000);
    assert!(stats.hits > 0);
}
