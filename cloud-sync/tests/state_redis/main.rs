//! The Redis store: the contracts of cache and batch status, its keys, connections and checks.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../contract/batch_status.rs"]
mod batch_status;
#[path = "../contract/cache.rs"]
mod cache;
mod checks;
mod connections;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::batch_status::{BatchOutcome, BatchPhase, BatchSpec, BatchStatusStore};
use cloud_sync::cache::ContentCache;
use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use cloud_sync::redis::{RedisConfig, RedisStore};
use cloud_sync::secret::Secret;
use redis::aio::MultiplexedConnection;
use test_services::{Redis, shared};

const TTL: Duration = Duration::from_secs(60);

fn config(redis: &Redis) -> RedisConfig {
    RedisConfig {
        host: redis.host.clone(),
        port: redis.port,
        password: Secret::new(redis.password()),
        prefix: format!("test-{}", ulid::Ulid::generate()),
        status_ttl: TTL,
        // Generous: the test machine may be busy. Tests of latency have their own limit.
        timeout: Duration::from_secs(10),
        ..RedisConfig::default()
    }
}

fn open(config: RedisConfig) -> (RedisStore, LinkHealth) {
    let health = LinkHealth::new(Link::Redis);
    (RedisStore::open(config, health.clone()).unwrap(), health)
}

fn spec(request_id: &str) -> BatchSpec {
    BatchSpec { request_id: request_id.into(), total: 10, chunks: 1, digest: "0123".into() }
}

/// Another connection to the same server, bypassing the store.
async fn client(redis: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://:{}@{}:{}/", redis.password(), redis.host, redis.port));
    client.unwrap().get_multiplexed_async_connection().await.unwrap()
}

struct InRedis(RedisConfig);

#[async_trait]
impl batch_status::Harness for InRedis {
    async fn new() -> Self {
        Self(config(shared().redis()))
    }

    async fn open(&self, status_ttl: Duration) -> [Arc<dyn BatchStatusStore>; 2] {
        let config = RedisConfig { status_ttl, ..self.0.clone() };
        [Arc::new(open(config.clone()).0), Arc::new(open(config).0)]
    }
}

batch_status::suite!(InRedis);

#[async_trait]
impl cache::Harness for InRedis {
    async fn new() -> Self {
        Self(config(shared().redis()))
    }

    async fn open(&self) -> [Arc<dyn ContentCache>; 2] {
        [Arc::new(open(self.0.clone()).0), Arc::new(open(self.0.clone()).0)]
    }
}

cache::suite!(InRedis);

#[tokio::test]
async fn a_key_that_somebody_else_uses_is_an_error_that_names_it() {
    let redis = shared().redis();
    let config = config(redis);
    let mut other = client(redis).await;
    let key = format!("{}:batch:{{b}}", config.prefix);
    let (store, health) = open(config);
    redis::cmd("SET").arg(&key).arg("x").exec_async(&mut other).await.unwrap();
    for error in [store.batch("b").await.unwrap_err(), store.start_chunk(&spec("b"), 0).await.unwrap_err()] {
        assert!(!error.is_transient() && error.in_full().contains("prefix of your own"), "{error:?}");
    }
    assert_ne!(health.state().up, Some(false));
    redis::cmd("DEL").arg(&key).exec_async(&mut other).await.unwrap();
    redis::cmd("HSET").arg(&key).arg("phase").arg("x").exec_async(&mut other).await.unwrap();
    let error = store.batch("b").await.unwrap_err();
    assert!(error.in_full().contains(&key) && error.in_full().contains("request_id is missing"), "{error:?}");
    redis::cmd("DEL").arg(&key).exec_async(&mut other).await.unwrap();
}

#[tokio::test]
async fn everything_has_a_time_to_live() {
    let redis = shared().redis();
    let config = config(redis);
    let mut other = client(redis).await;
    let (store, _) = open(config.clone());
    store.put(&[7; 32], Bytes::from_static(b"v"), TTL).await.unwrap();
    let outcome = BatchOutcome {
        phase: BatchPhase::Completed,
        completed: 10,
        failed: 0,
        results_uri: "s3://b/k".into(),
        results: None,
    };
    // Also chunks that arrive after the outcome of a batch that had none.
    store.finish_batch(&spec("b"), &outcome).await.unwrap();
    let _ = store.complete_chunk(&spec("b"), 0, "p", 1, 0).await.unwrap();
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("{}:*", config.prefix)).query_async(&mut other).await.unwrap();
    assert_eq!(keys.len(), 2, "{keys:?}");
    for key in keys {
        let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut other).await.unwrap();
        assert!((1..=60_000).contains(&left), "{key}: {left}");
    }
}

#[tokio::test]
async fn a_batch_is_one_key_so_that_nothing_of_it_is_evicted_apart() {
    let redis = shared().redis();
    let config = config(redis);
    let mut other = client(redis).await;
    let (store, _) = open(config.clone());
    let spec = BatchSpec { chunks: 3, ..spec("b") };
    for chunk in 0..2 {
        let _ = store.complete_chunk(&spec, chunk, &format!("p-{chunk}"), 3, 0).await.unwrap();
    }
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("{}:*", config.prefix)).query_async(&mut other).await.unwrap();
    assert_eq!(keys, [format!("{}:batch:{{b}}", config.prefix)]);
    let status = store.batch("b").await.unwrap().unwrap();
    assert_eq!((status.chunks_done, status.completed), (2, 6));

    // A count above the number of chunks, however it came about, does not keep the batch from finishing.
    redis::cmd("HINCRBY").arg(&keys[0]).arg("done").arg(2).exec_async(&mut other).await.unwrap();
    let done = store.complete_chunk(&spec, 2, "p-2", 4, 0).await.unwrap();
    assert_eq!((done.owner.as_str(), done.to_finish), ("p-2", true));
}
