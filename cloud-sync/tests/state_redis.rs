//! The state store in Redis: the contract, and what happens when the server is not as it should be.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "contract/state.rs"]
mod contract;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::error::{Link, SyncError};
use cloud_sync::health::LinkHealth;
use cloud_sync::secret::Secret;
use cloud_sync::state::{BatchSpec, Created, RedisConfig, RedisStore, StateStore};
use test_services::tls::{in_front_of, self_signed};
use test_services::{Redis, Services, shared};

const TTL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(1);

fn config(redis: &Redis) -> RedisConfig {
    RedisConfig {
        host: redis.host.clone(),
        port: redis.port,
        password: Secret::new(redis.password()),
        prefix: format!("test-{}", ulid::Ulid::generate()),
        status_ttl: TTL,
        // Wide: the machine of the tests may be busy. What is to be fast has its own bound.
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

/// Calls until it works: right after a server is back one may still be refused.
async fn comes_back(store: &RedisStore) -> Duration {
    let start = Instant::now();
    while let Err(error) = store.get(&[1; 32]).await {
        assert!(error.is_transient(), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

struct InRedis(RedisConfig);

#[async_trait]
impl contract::Harness for InRedis {
    async fn new() -> Self {
        Self(config(shared().redis()))
    }

    async fn open(&self, status_ttl: Duration) -> [Arc<dyn StateStore>; 2] {
        let config = RedisConfig { status_ttl, ..self.0.clone() };
        [Arc::new(open(config.clone()).0), Arc::new(open(config).0)]
    }
}

contract::suite!(InRedis);

#[tokio::test]
async fn a_login_that_is_refused_is_permanent_and_names_the_user_and_no_password() {
    let wrong = |user: &str, password: &str| RedisConfig {
        user: user.into(),
        password: Secret::new(password),
        ..config(shared().redis())
    };
    for (config, names) in [
        (wrong("", "hunter2-wrong"), "the default user"),
        (wrong("weir-nobody", "hunter2-wrong"), "weir-nobody"),
        (wrong("", ""), "none is set"),
    ] {
        let at = format!("{}:{}", config.host, config.port);
        let (store, health) = open(config);
        for _ in 0..3 {
            let error = store.get(&[1; 32]).await.unwrap_err();
            assert!(!error.is_transient(), "{error:?}");
            let text = error.in_full();
            assert!(text.contains(names) && text.contains(&at), "{text}");
            assert!(!format!("{text}{error:?}{store:?}").contains("hunter2"), "{text}");
        }
        assert_eq!(health.state().up, Some(false));
        let steps = store.check().await;
        assert_eq!(steps.len(), 1);
        assert!(steps[0].outcome.is_err());
    }
}

#[tokio::test]
async fn a_login_that_was_refused_is_tried_again() {
    let redis = shared().redis();
    let admin = redis::Client::open(format!("redis://:{}@{}:{}/", redis.password(), redis.host, redis.port));
    let mut admin = admin.unwrap().get_multiplexed_async_connection().await.unwrap();
    let user = format!("late-{}", ulid::Ulid::generate());
    let (store, health) =
        open(RedisConfig { user: user.clone(), password: Secret::new("late-password"), ..config(redis) });
    assert!(!store.get(&[1; 32]).await.unwrap_err().is_transient());
    let mut acl = redis::cmd("ACL");
    let acl = acl.arg("SETUSER").arg(&user).arg("on").arg(">late-password").arg("~*").arg("+@all");
    acl.exec_async(&mut admin).await.unwrap();
    let start = Instant::now();
    while store.get(&[1; 32]).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(health.state().up, Some(true));
    // A user without the right to a key is told so, by name of the server.
    let mut acl = redis::cmd("ACL");
    acl.arg("SETUSER").arg(&user).arg("resetkeys").exec_async(&mut admin).await.unwrap();
    let error = store.get(&[1; 32]).await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("the right to these keys"), "{error:?}");
    redis::cmd("ACL").arg("DELUSER").arg(&user).exec_async(&mut admin).await.unwrap();
}

#[tokio::test]
async fn with_tls_the_authority_decides() {
    let redis = shared().redis();
    let tls = RedisConfig {
        tls: true,
        port: redis.tls_port,
        ca_file: Some(redis.ca_file.clone()),
        ..config(redis)
    };
    let (store, _) = open(tls.clone());
    store.put(&[1; 32], Bytes::from_static(b"over TLS"), TTL).await.unwrap();
    assert_eq!(store.get(&[1; 32]).await.unwrap().as_deref(), Some(&b"over TLS"[..]));

    // The system's authorities have not signed it, nor has this one.
    let (stranger, _) = open(RedisConfig { ca_file: None, ..tls.clone() });
    let error = stranger.get(&[1; 32]).await.unwrap_err();
    assert!(error.in_full().contains("its certificate is not trusted"), "{}", error.in_full());

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    let unreadable = RedisConfig { ca_file: Some(file.clone()), ..tls.clone() };
    let error = RedisStore::open(unreadable.clone(), LinkHealth::new(Link::Redis)).unwrap_err();
    assert!(error.in_full().contains("ca.pem"), "{error:?}");
    std::fs::write(&file, "not a certificate").unwrap();
    let error = RedisStore::open(unreadable, LinkHealth::new(Link::Redis)).unwrap_err();
    assert!(error.in_full().contains("no PEM certificate"), "{error:?}");

    // Encryption against a port that has none, and the other way round.
    let (mixed, _) = open(RedisConfig { port: redis.port, timeout: TIMEOUT, ..tls.clone() });
    assert!(mixed.get(&[1; 32]).await.unwrap_err().is_transient());
    let (mixed, _) = open(RedisConfig { tls: false, timeout: TIMEOUT, ..tls });
    assert!(mixed.get(&[1; 32]).await.unwrap_err().is_transient());
}

#[tokio::test]
async fn a_certificate_that_signed_itself_is_trusted_where_the_file_names_it() {
    let redis = shared().redis();
    let dir = tempfile::tempdir().unwrap();
    let upstream = || format!("{}:{}", redis.host, redis.port);
    let (key, own) = self_signed(dir.path(), "own", "DNS:localhost,IP:127.0.0.1");
    let port = in_front_of(upstream(), &key, &own);
    let named =
        |port, file: &Path| RedisConfig { tls: true, port, ca_file: Some(file.to_owned()), ..config(redis) };
    for host in ["127.0.0.1", "localhost"] {
        let (store, health) = open(RedisConfig { host: host.into(), ..named(port, &own) });
        store.put(&[2; 32], Bytes::from_static(b"over TLS"), TTL).await.unwrap();
        assert_eq!(store.get(&[2; 32]).await.unwrap().as_deref(), Some(&b"over TLS"[..]));
        assert_eq!(health.state().up, Some(true));
    }
    // The same names and another key; the named certificate for another name; no file at all.
    let (_, other) = self_signed(dir.path(), "other", "DNS:localhost,IP:127.0.0.1");
    let (key, elsewhere) = self_signed(dir.path(), "elsewhere", "DNS:redis.example");
    let refused = [
        named(port, &other),
        named(in_front_of(upstream(), &key, &elsewhere), &elsewhere),
        RedisConfig { ca_file: None, ..named(port, &own) },
    ];
    for config in refused {
        let (store, _) = open(config);
        let error = store.get(&[2; 32]).await.unwrap_err();
        assert!(error.in_full().contains("its certificate is not trusted"), "{}", error.in_full());
    }
}

/// A node of a cluster, as far as a check sees one: an answer to each command.
async fn clustered_node(info: &'static str) -> u16 {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (from, mut to) = stream.into_split();
                let mut lines = BufReader::new(from).lines();
                while let Ok(Some(head)) = lines.next_line().await {
                    // *<parts>, then a length and a text for each.
                    let parts: usize = head.trim_start_matches('*').parse().unwrap();
                    let mut command = String::new();
                    for part in 0..parts {
                        lines.next_line().await.unwrap();
                        let text = lines.next_line().await.unwrap().unwrap();
                        if part == 0 {
                            command = text.to_ascii_uppercase();
                        }
                    }
                    let answer = match command.as_str() {
                        "PING" => "+PONG\r\n".to_owned(),
                        "INFO" => format!("${}\r\n{info}\r\n", info.len()),
                        "SET" => "-MOVED 42 127.0.0.1:7001\r\n".to_owned(),
                        _ => "+OK\r\n".to_owned(),
                    };
                    if to.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_check_names_a_cluster() {
    let port = clustered_node("# Cluster\r\ncluster_enabled:1\r\n").await;
    let (store, _) = open(RedisConfig { port, timeout: Duration::from_secs(10), ..RedisConfig::default() });
    let steps = store.check().await;
    let last = steps.last().unwrap().outcome.as_ref().unwrap_err();
    assert!(!last.is_transient() && last.in_full().contains("Redis Cluster"), "{}", last.in_full());
    assert!(last.in_full().contains("redis.host"), "{}", last.in_full());
    // One that is not clustered passes that step.
    let port = clustered_node("# Cluster\r\ncluster_enabled:0\r\n").await;
    let (store, _) = open(RedisConfig { port, timeout: Duration::from_secs(10), ..RedisConfig::default() });
    let steps = store.check().await;
    assert!(steps.iter().any(|step| step.what == "one server, not a cluster" && step.outcome.is_ok()));
}

#[test]
fn settings_that_cannot_be_are_refused_by_value() {
    let refused = |config| RedisStore::open(config, LinkHealth::new(Link::Redis)).unwrap_err().in_full();
    for prefix in ["", "a b", "a{b}", &"x".repeat(101)] {
        let text = refused(RedisConfig { prefix: prefix.into(), ..RedisConfig::default() });
        assert!(text.contains(&format!("{prefix:?}")), "{text}");
    }
    assert!(refused(RedisConfig { host: String::new(), ..RedisConfig::default() }).contains("\"\""));
    assert!(refused(RedisConfig { timeout: Duration::ZERO, ..RedisConfig::default() }).contains("0ns"));
}

#[tokio::test]
async fn a_server_that_is_away_or_does_not_answer_costs_no_more_than_the_timeout() {
    // Nobody listens on this port any more, and nobody accepts on the other.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for port in [gone, silent.local_addr().unwrap().port()] {
        let (store, health) = open(RedisConfig { port, timeout: TIMEOUT, ..RedisConfig::default() });
        let store = Arc::new(store);
        let start = Instant::now();
        let calls: Vec<_> = (0..200)
            .map(|_| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.batch("b").await.unwrap_err() })
            })
            .collect();
        for call in calls {
            let error: SyncError = call.await.unwrap();
            assert!(error.is_transient(), "{error:?}");
            assert!(error.in_full().contains(&format!("127.0.0.1:{port}")), "{}", error.in_full());
        }
        assert!(start.elapsed() < TIMEOUT * 20, "{:?}", start.elapsed());
        assert_eq!((health.state().up, health.state().failures), (Some(false), 200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_is_used_again_though_its_data_is_lost() {
    let services = Services::own(&["redis"]);
    // Long, since the calls that work must be within it on a busy machine, too.
    let limit = Duration::from_secs(5);
    let (store, health) = open(RedisConfig { timeout: limit, ..config(services.redis()) });
    assert_eq!(store.create_batch(&spec("b")).await.unwrap(), Created::New);
    assert!(matches!(store.create_batch(&spec("b")).await.unwrap(), Created::Existing(_)));

    // Restarted between two calls: the next one works, and the scripts, lost too, are loaded again.
    services.kill("redis");
    services.start("redis");
    assert_eq!(store.create_batch(&spec("b")).await.unwrap(), Created::New);

    services.kill("redis");
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    while start.elapsed() < Duration::from_millis(1500) {
        let call = Instant::now();
        assert!(store.batch("b").await.unwrap_err().is_transient());
        slowest = slowest.max(call.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(slowest < limit * 2, "{slowest:?}");
    assert_eq!(health.state().up, Some(false));
    services.start("redis");
    comes_back(&store).await;
    assert_eq!(health.state().up, Some(true));

    // Frozen: connections stay open and nothing answers.
    services.pause("redis");
    let start = Instant::now();
    assert!(store.batch("b").await.unwrap_err().is_transient());
    assert!(start.elapsed() < limit * 2, "{:?}", start.elapsed());
    services.resume("redis");
    comes_back(&store).await;
}

#[tokio::test]
async fn a_caller_that_gives_up_early_does_not_keep_the_connection_from_being_made() {
    let (store, _) = open(config(shared().redis()));
    let start = Instant::now();
    // As the cache does, with a deadline that no connection is made in.
    while tokio::time::timeout(Duration::from_micros(500), store.get(&[1; 32])).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "never connected");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_key_that_somebody_else_uses_is_an_error_that_names_it() {
    let redis = shared().redis();
    let config = config(redis);
    let client = redis::Client::open(format!("redis://:{}@{}:{}/", redis.password(), redis.host, redis.port));
    let mut other = client.unwrap().get_multiplexed_async_connection().await.unwrap();
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
    let client = redis::Client::open(format!("redis://:{}@{}:{}/", redis.password(), redis.host, redis.port));
    let mut other = client.unwrap().get_multiplexed_async_connection().await.unwrap();
    let (store, _) = open(config.clone());
    store.put(&[7; 32], Bytes::from_static(b"v"), TTL).await.unwrap();
    let outcome = cloud_sync::state::BatchOutcome {
        phase: cloud_sync::state::BatchPhase::Completed,
        completed: 10,
        failed: 0,
        results_uri: "s3://b/k".into(),
        results: None,
    };
    // Also the chunks that come after the end, to a batch that never had any.
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
async fn a_check_goes_through_and_leaves_nothing() {
    let config = config(shared().redis());
    let (store, _) = open(config.clone());
    let steps = store.check().await;
    let names: Vec<_> = steps.iter().map(|step| step.what).collect();
    let expected = [
        "connect and log in",
        "one server, not a cluster",
        "set a key",
        "get it and compare",
        "remove it",
        "run a script",
    ];
    assert_eq!(names, expected);
    for step in steps {
        let remark = step.outcome.unwrap();
        assert!(!remark.contains(config.password.expose()));
    }
}

#[tokio::test]
async fn a_batch_is_one_key_so_that_nothing_of_it_is_evicted_apart() {
    let redis = shared().redis();
    let config = config(redis);
    let client = redis::Client::open(format!("redis://:{}@{}:{}/", redis.password(), redis.host, redis.port));
    let mut other = client.unwrap().get_multiplexed_async_connection().await.unwrap();
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

    // A count that has gone beyond the chunks, however that came about, does not keep the batch from its end.
    redis::cmd("HINCRBY").arg(&keys[0]).arg("done").arg(2).exec_async(&mut other).await.unwrap();
    let done = store.complete_chunk(&spec, 2, "p-2", 4, 0).await.unwrap();
    assert_eq!((done.owner.as_str(), done.to_finish), ("p-2", true));
}
