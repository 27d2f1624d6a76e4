//! The check of a Redis server, and settings that are refused.

use std::time::Duration;

use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use cloud_sync::redis::{RedisConfig, RedisStore};
use test_services::shared;

use super::{config, open};

/// A node of a cluster, as far as a check needs it: a response to each command.
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
async fn a_check_goes_through_and_leaves_nothing() {
    let config = config(shared().redis());
    let (store, _) = open(config.clone());
    let steps = store.check().await;
    let names: Vec<_> = steps.iter().map(|step| &*step.what).collect();
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
