//! Limits: messages of 10 MB, a full disk while the broker is unavailable, a clock that jumps. Nothing
//! acknowledged is lost or duplicated.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use support::cloud::{Cloud, finished, has_work, images, lines, predictions};
use support::load::{RealTime, TIMEOUT, check_complete, submit, wait_until};
use support::pictures::Images;
use support::{Daemon, pictures};
use test_services::Services;
use test_services::clock::Clock;

#[test]
fn messages_of_10_mb_are_processed_and_do_not_block_others() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::serve();
    let (api, worker) = (cloud.serve(&[]), cloud.worker(&[]));
    has_work(&worker);
    // The maximum number of images of a message, most of them with long URLs that are refused without a lookup.
    let path = "a-name-that-a-camera-could-give-to-a-picture-of-fish-in-the-morning".repeat(16);
    let url = |n: usize| match n % 100 {
        7 => pictures.good(n),
        _ => format!("http://169.254.169.254/{n:08}/{path}.jpg"),
    };
    let urls: Vec<String> = (0..10_000).map(url).collect();
    let work = json!({"request_id": "large", "image_urls": urls}).to_string().into_bytes();
    assert!((10 << 20..12 << 20).contains(&work.len()), "{}", work.len());
    let rubbish = json!({"image_urls": "x".repeat(10 << 20)}).to_string().into_bytes();
    let short: Vec<String> = (0..100_000).map(|n| format!("http://169.254.169.254/{n}.jpg")).collect();
    let too_many = json!({"request_id": "too-many", "image_urls": short}).to_string().into_bytes();
    // Other messages before and after it, more than there are partitions.
    let small: Vec<Vec<u8>> = (0..12)
        .map(|n| {
            json!({"request_id": format!("small-{n}"), "image_url": pictures.good(n)})
                .to_string()
                .into_bytes()
        })
        .collect();
    let mut messages: Vec<&[u8]> = small[..6].iter().map(Vec::as_slice).collect();
    messages.extend([&work[..], &rubbish[..], &too_many[..]]);
    messages.extend(small[6..].iter().map(Vec::as_slice));
    let began = Instant::now();
    cloud.produce(&messages);
    for n in 0..12 {
        let status = finished(&api, &format!("small-{n}"), TIMEOUT);
        assert_eq!(status["status"], "completed", "{status}");
    }
    println!("12 neighbours were finished after {:?}", began.elapsed());
    let status = finished(&api, "large", TIMEOUT);
    println!("10,000 URLs of one message were finished after {:?}", began.elapsed());
    wait_until("everything is settled", || support::cloud::metric(&worker, "weir_batch_inflight") == 0.0);
    println!("and published after {:?}", began.elapsed());
    assert_eq!((&status["completed"], &status["failed"]), (&json!(100), &json!(9_900)), "{status}");
    let found = lines(&api, "large");
    assert_eq!(found.len(), 10_000);
    for (n, line) in found.iter().enumerate() {
        let ok = if n % 100 == 7 { "ok" } else { "failed" };
        let (said, whole) = (line["image_url"].as_str().unwrap(), url(n));
        // Of the URL of a failed image the beginning and a digest are kept.
        let is_it = said == whole || (ok == "failed" && said.len() <= 300 && whole.starts_with(&said[..200]));
        assert!(line["index"] == n && line["status"] == ok && is_it, "line {n}: {line}");
    }
    let unread = |seen: &[serde_json::Value]| -> Vec<String> {
        let bad = seen.iter().filter(|record| record["code"] == "invalid_message");
        bad.map(|record| record["error"].as_str().unwrap().to_owned()).collect()
    };
    let all = |seen: &[serde_json::Value]| images(seen, "large").len() == 10_000 && unread(seen).len() == 2;
    let records = cloud.results(TIMEOUT, all);
    println!("and visible after {:?}", began.elapsed());
    assert!(images(&records, "large").values().all(|&count| count == 1));
    let reasons = unread(&records);
    assert!(reasons.iter().any(|reason| reason.contains("100000 images; at most 10000")), "{reasons:?}");
    assert_eq!(api.get("/batch/status/too-many").status, 404);
    for n in 0..12 {
        assert_eq!(images(&records, &format!("small-{n}")).values().sum::<usize>(), 1);
    }
}

/// The daemon of an edge node with Kafka only and a small disk.
fn edge_on_a_small_disk(cloud: &Cloud<'_>) -> Daemon {
    let (mut command, data) = support::on_a_small_disk();
    let settings = [
        ("WEIR__LOG__FORMAT", "json"),
        ("WEIR__OUTBOX__WHEN_FULL", "refuse"),
        ("WEIR__OUTBOX__SEGMENT", "64 KiB"),
        // So that every request has its own event.
        ("WEIR__CACHE__ENABLED", "false"),
    ];
    command.envs(cloud.kafka_env()).envs(settings);
    Daemon::spawn(command, data)
}

#[test]
fn a_disk_that_fills_up_while_kafka_is_unavailable_has_space_again_afterwards() {
    let services = Services::own(&["kafka"]);
    let cloud = Cloud::new(&services);
    let api = edge_on_a_small_disk(&cloud);
    let mut acknowledged = HashSet::new();
    let mut predict = |seed: u32| {
        let reply = api.post("/predict?top_k=17", &[], &pictures::bmp(32, 32, seed));
        if reply.status == 200 {
            assert!(acknowledged.insert(reply.json()["request_id"].as_str().unwrap().to_owned()));
        }
        reply
    };
    let uplink = |key: &str| api.get("/health").json()["uplink"][key].clone();
    assert_eq!(predict(0).status, 200);
    wait_until("the first event is sent", || uplink("sent") == 1);
    services.stop("kafka");
    let refusal =
        (1..5000).map(&mut predict).find(|reply| reply.status != 200).expect("1 MiB never filled up");
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "outbox_full"), "{}", refusal.text());
    assert!(refusal.header("retry-after").is_some());
    let health = api.get("/health").json();
    assert_eq!(
        (&health["status"], &health["outbox"]["healthy"]),
        (&json!("degraded"), &json!(false)),
        "{health}"
    );
    wait_until("the link is down", || api.get("/health").json()["links"]["kafka"]["status"] == "down");
    services.start("kafka");
    let back = Instant::now();
    wait_until("the backlog is sent", || uplink("backlog") == 0);
    println!("{} events were sent {:?} after Kafka was back", uplink("sent"), back.elapsed());
    // Space is checked only by requests, and there is as much as before.
    let mut seed = 10_000;
    wait_until("there is room again", || {
        seed += 1;
        predict(seed).status == 200
    });
    println!("there was room again after {:?}", back.elapsed());
    for seed in 20_000..20_500 {
        let reply = predict(seed);
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert_eq!(api.get("/health").json()["status"], "ready");
    let records = cloud.results(TIMEOUT, |seen| predictions(seen).len() >= acknowledged.len());
    let counts = predictions(&records);
    let missing = acknowledged.iter().filter(|id| !counts.contains_key(*id)).count();
    let repeated = counts.values().filter(|&&count| count > 1).count();
    assert_eq!((missing, repeated), (0, 0), "of {} acknowledged predictions", acknowledged.len());
    assert_eq!((uplink("lost"), uplink("dead_lettered")), (json!(0), json!(0)));
}

#[test]
fn a_batch_of_refused_urls_neither_evicts_nor_blocks_predictions_while_kafka_is_unavailable() {
    const IMAGES: usize = 6000;
    let services = Services::own(&["kafka"]);
    for when_full in ["refuse", "drop_oldest"] {
        let cloud = Cloud::new(&services);
        let data = tempfile::TempDir::new().unwrap();
        let mut command = support::weir();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path());
        command.envs(cloud.kafka_env()).envs([
            ("WEIR__LOG__FORMAT", "json"),
            ("WEIR__OUTBOX__WHEN_FULL", when_full),
            ("WEIR__OUTBOX__MAX_BYTES", "1 MiB"),
            ("WEIR__OUTBOX__SEGMENT", "64 KiB"),
            ("WEIR__CACHE__ENABLED", "false"),
            ("WEIR__BATCH__CHUNK", "100"),
        ]);
        let api = Daemon::spawn(command, data);
        let outbox = |key: &str| api.get("/health").json()["outbox"][key].clone();
        services.stop("kafka");
        let urls: Vec<String> = (0..IMAGES).map(|n| format!("http://169.254.169.254/{n}.jpg")).collect();
        submit(&api, "flood", &urls);
        let size = || support::cloud::metric(&api, "weir_outbox_batch_size_bytes");
        wait_until("the batch has its share of the outbox", || size() > 450_000.0);
        let mut acknowledged = HashSet::new();
        for seed in 0..300 {
            let reply = api.post("/predict", &[], &pictures::bmp(32, 32, seed));
            assert_eq!(reply.status, 200, "{when_full}: {}", reply.text());
            assert!(acknowledged.insert(reply.json()["request_id"].as_str().unwrap().to_owned()));
        }
        assert!(size() <= 524_288.0, "{when_full}: {}", size());
        assert_eq!((outbox("dropped"), outbox("healthy")), (json!(0), json!(true)), "{when_full}");
        services.start("kafka");
        let status = finished(&api, "flood", TIMEOUT);
        assert_eq!(status["failed"], IMAGES, "{when_full}: {status}");
        let all = |seen: &[serde_json::Value]| {
            images(seen, "flood").len() == IMAGES && predictions(seen).len() == acknowledged.len()
        };
        let records = cloud.results(TIMEOUT, all);
        assert!(images(&records, "flood").values().all(|&count| count == 1), "{when_full}");
        let counts = predictions(&records);
        assert!(acknowledged.iter().all(|id| counts.get(id) == Some(&1)), "{when_full}");
        assert_eq!(outbox("dropped"), json!(0), "{when_full}");
    }
}

#[test]
fn a_clock_that_jumps_neither_loses_nor_duplicates_anything() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::slow(Duration::from_millis(20));
    let clock = Clock::new();
    let mut env = clock.env();
    env.extend(
        [("WEIR__BATCH__CHUNK", "20"), ("WEIR__BATCH__CONCURRENT_FETCHES", "2")]
            .map(|(k, v)| (k.into(), v.into())),
    );
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let (api, worker) = (cloud.serve(&env), cloud.worker(&env));
    has_work(&worker);
    let running = AtomicBool::new(true);
    let urls = |n: usize| -> Vec<String> { (0..300).map(|i| pictures.good(n * 300 + i)).collect() };
    let submitted = ["as-it-was", "ahead", "in-1970"];
    let healthy = |when: &str| {
        for daemon in [&api, &worker] {
            let health = daemon.get("/health");
            assert_eq!(
                (health.status, &health.json()["status"]),
                (200, &json!("ready")),
                "{when}: {}",
                health.text()
            );
        }
    };
    let seen = std::thread::scope(|scope| {
        let load = scope.spawn(|| RealTime::send(&api, &running, 0));
        let under_way = |id: &str| {
            let path = format!("/batch/status/{id}");
            wait_until("the batch is being processed", || {
                pictures.served() > 20 && api.get(&path).status == 200
            });
        };
        let send = |n: usize| {
            let (api, urls) = (&api, urls(n));
            scope.spawn(move || submit(api, submitted[n], &urls))
        };
        let mut senders = vec![send(0)];
        under_way(submitted[0]);
        clock.ahead(Duration::from_secs(3 * 24 * 3600));
        senders.push(send(1));
        std::thread::sleep(Duration::from_secs(4));
        healthy("3 days ahead");
        clock.at_1970();
        senders.push(send(2));
        std::thread::sleep(Duration::from_secs(4));
        healthy("in 1970");
        clock.right();
        for sender in senders {
            sender.join().unwrap();
        }
        for id in submitted {
            finished(&api, id, TIMEOUT);
        }
        running.store(false, Ordering::Relaxed);
        load.join().unwrap()
    });
    for id in submitted {
        check_complete(&cloud, &api, id, 300);
    }
    wait_until("every event is sent", || api.get("/health").json()["uplink"]["backlog"] == 0);
    let uplink = api.get("/health").json()["uplink"].clone();
    assert_eq!((&uplink["lost"], &uplink["dead_lettered"]), (&json!(0), &json!(0)), "{uplink}");
    let records = cloud.results(TIMEOUT, |found| predictions(found).len() >= seen.acknowledged.len());
    let counts = predictions(&records);
    assert!(seen.acknowledged.iter().all(|id| counts.get(id) == Some(&1)));
    assert_eq!(counts.len(), seen.acknowledged.len());
    healthy("at the end");
    for daemon in [&api, &worker] {
        let panics: Vec<String> = daemon.log().into_iter().filter(|line| line.contains("panic")).collect();
        assert!(panics.is_empty(), "{panics:?}");
    }
}
