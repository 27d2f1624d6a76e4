//! Logins, TLS, and servers that are unavailable or restarted.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::batch_status::{BatchStatusStore, Created};
use cloud_sync::cache::ContentCache;
use cloud_sync::error::{Link, SyncError};
use cloud_sync::health::LinkHealth;
use cloud_sync::redis::{RedisConfig, RedisStore};
use cloud_sync::secret::Secret;
use test_services::tls::{in_front_of, self_signed};
use test_services::{Services, shared};

use super::{TTL, client, config, open, spec};

const TIMEOUT: Duration = Duration::from_secs(1);

/// Calls until it works: a server that was just started may still refuse.
async fn comes_back(store: &RedisStore) -> Duration {
    let start = Instant::now();
    while let Err(error) = store.get(&[1; 32]).await {
        assert!(error.is_transient(), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

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
    let mut admin = client(redis).await;
    let user = format!("late-{}", ulid::Ulid::generate());
    let (store, health) =
        open(RedisConfig { user: user.clone(), password: Secret::new("late-password"), ..config(redis) });
    assert!(!store.get(&[1; 32]).await.unwrap_err().is_transient());
    let mut acl = redis::cmd("ACL");
    let acl = acl.arg("SETUSER").arg(&user).arg("on").arg(">late-password").arg("~*").arg("+@all");
    acl.exec_async(&mut admin).await.unwrap();
    let start = Instant::now();
    while store.get(&[1; 32]).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(health.state().up, Some(true));
    // A user without the right to a key gets an error that names the server.
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

    // Neither the system's authorities nor this one have signed it.
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

    // TLS to a port without it, and the other way round.
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

#[tokio::test]
async fn a_server_that_is_away_or_does_not_answer_costs_no_more_than_the_timeout() {
    // Nothing listens on the discard port, and nothing accepts on the other.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for port in [9, silent.local_addr().unwrap().port()] {
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
    // Long, because successful calls must be within it on a busy machine, too.
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
    // As the cache does, with a deadline within which no connection is established; longer each time, since the call
    // that succeeds needs a round trip.
    let mut deadline = Duration::from_micros(500);
    while tokio::time::timeout(deadline, store.get(&[1; 32])).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "never connected");
        tokio::time::sleep(Duration::from_millis(1)).await;
        deadline += Duration::from_micros(50);
    }
}
