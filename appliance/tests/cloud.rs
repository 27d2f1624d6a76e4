//! Batches through a real broker, Redis and S3: submitted to an API process, processed by workers.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::cloud::{Cloud, finished, has_work, images, lines, metric};
use support::load::{assert_once, submit, wait_until};
use support::pictures::Images;

const TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn a_batch_is_processed_by_two_workers_and_has_one_results_object() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::serve();
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "50")]);
    let workers = [cloud.worker(&[]), cloud.worker(&[])];
    workers.iter().for_each(has_work);
    // Every third URL is invalid, in one of three ways.
    let url = |n: usize| match n % 9 {
        2 => pictures.missing(n),
        5 => pictures.text(),
        8 => "http://169.254.169.254/latest/meta-data/".to_owned(),
        _ => pictures.good(n),
    };
    let urls: Vec<String> = (0..900).map(url).collect();
    let body = json!({"request_id": "survey-7", "camera": "dock-3", "image_urls": urls}).to_string();
    let accepted = api.post("/batch/predict", &[("content-type", "application/json")], body.as_bytes());
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let accepted = accepted.json();
    assert_eq!((&accepted["request_id"], &accepted["total"]), (&json!("survey-7"), &json!(900)));
    assert_eq!(accepted["status_url"], "/batch/status/survey-7");
    // A repeated submission is the same batch.
    let again = api.post("/batch/predict", &[("content-type", "application/json")], body.as_bytes());
    assert_eq!((again.status, &again.json()["total"]), (202, &json!(900)), "{}", again.text());

    let status = finished(&api, "survey-7", TIMEOUT);
    assert_eq!((&status["status"], &status["total"]), (&json!("completed"), &json!(900)));
    assert_eq!((&status["completed"], &status["failed"]), (&json!(600), &json!(300)), "{status}");
    let uri = status["results_uri"].as_str().unwrap();
    assert!(uri.starts_with("s3://") && uri.ends_with("/results/survey-7.jsonl"), "{uri}");

    let lines = lines(&api, "survey-7");
    assert!(lines.iter().enumerate().all(|(n, line)| line["index"] == n && line["image_url"] == url(n)));
    let code = |n: usize| lines[n]["code"].as_str().unwrap_or("ok").to_owned();
    assert!((0..900).all(|n| (n % 3 == 2) == (lines[n]["status"] == "failed")));
    let codes: HashSet<String> = (0..900).map(code).collect();
    assert!(codes.len() >= 4, "each kind of failure has a code of its own: {codes:?}");

    let records = cloud.results(TIMEOUT, |seen| images(seen, "survey-7").len() == 900);
    let counts = images(&records, "survey-7");
    assert!(counts.values().all(|&count| count == 1), "each image has one result");
    let summaries = records.iter().filter(|r| r["kind"] == "batch").count();
    assert_eq!(summaries, 1);
    // Both worked.
    let node = |r: &Value| r["node"].as_str().map(str::to_owned);
    assert!(records.iter().filter_map(node).count() == records.len());
    for worker in &workers {
        assert!(metric(worker, "weir_batch_images_completed_total") > 0.0, "a worker had nothing to do");
    }
}

#[test]
fn a_batch_that_is_cancelled_stops_on_all_workers() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::slow(Duration::from_millis(100));
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "10")]);
    let workers = [
        cloud.worker(&[("WEIR__BATCH__CONCURRENT_FETCHES", "1")]),
        cloud.worker(&[("WEIR__BATCH__CONCURRENT_FETCHES", "1")]),
    ];
    workers.iter().for_each(has_work);
    let urls: Vec<String> = (0..1000).map(|n| pictures.good(n)).collect();
    submit(&api, "unwanted", &urls);
    wait_until("both workers are working", || {
        workers.iter().all(|worker| metric(worker, "weir_batch_images_completed_total") > 0.0)
    });
    let cancelled = api.delete("/batch/unwanted");
    assert_eq!(cancelled.status, 202, "{}", cancelled.text());
    let status = finished(&api, "unwanted", TIMEOUT);
    assert_eq!(status["status"], "cancelled");
    let lines = lines(&api, "unwanted");
    assert!((1..900).contains(&lines.len()), "{} images have a result", lines.len());
    assert_eq!(status["completed"], lines.len());
    // The partitions continue: later messages are processed and committed.
    submit(&api, "wanted", &urls[..20]);
    assert_eq!(finished(&api, "wanted", TIMEOUT)["completed"], 20);
    let records = cloud.results(TIMEOUT, |seen| {
        images(seen, "wanted").len() == 20 && seen.iter().filter(|r| r["kind"] == "batch").count() == 2
    });
    assert_once(&records, "unwanted", lines.len());
    wait_until("all messages have left the queue", || {
        workers.iter().all(|worker| metric(worker, "weir_batch_inflight") == 0.0)
    });
    assert_eq!(api.delete("/batch/unwanted").status, 200);
    assert_eq!(api.delete("/batch/wanted").status, 409);
}

#[test]
fn a_small_batch_is_finished_beside_a_large_one_of_slow_servers() {
    let cloud = Cloud::new(test_services::shared());
    let (slow, quick) = (Images::slow(Duration::from_secs(8)), Images::serve());
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "20")]);
    let worker = cloud.worker(&[]);
    has_work(&worker);
    submit(&api, "slow", &(0..2000).map(|n| slow.good(n)).collect::<Vec<_>>());
    wait_until("it is being processed", || api.get("/batch/status/slow").json()["status"] == "processing");
    submit(&api, "small", &(0..60).map(|n| quick.good(n)).collect::<Vec<_>>());
    assert_eq!(finished(&api, "small", TIMEOUT)["completed"], 60);
    let status = api.get("/batch/status/slow").json();
    assert_eq!(status["status"], "processing", "{status}");
    assert!(status["completed"].as_u64().unwrap() < 1000, "{status}");
    assert_eq!(api.delete("/batch/slow").status, 202);
}

#[test]
fn a_bare_url_from_kafkas_own_console_producer_is_answered_in_the_results_topic() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::serve();
    let _worker = cloud.worker(&[]);
    let mut producer = Command::new(test_services::program())
        .args(["console-producer", &cloud.requests])
        .args(["--dir", cloud.services.dir().to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let message = format!("{}\n", json!({"image_url": pictures.good(1)}));
    producer.stdin.take().unwrap().write_all(message.as_bytes()).unwrap();
    assert!(producer.wait().unwrap().success());
    let records = cloud.results(TIMEOUT, |seen| seen.iter().any(|r| r["kind"] == "batch_item"));
    let item = records.iter().find(|r| r["kind"] == "batch_item").unwrap();
    assert_eq!((&item["status"], &item["image_url"]), (&json!("ok"), &json!(pictures.good(1))));
    assert!(item["species"].is_string() && item["confidence"].is_number(), "{item}");
}

#[test]
fn invalid_messages_are_dead_lettered_and_the_partition_continues() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::serve();
    let api = cloud.serve(&[]);
    let _worker = cloud.worker(&[]);
    let huge = vec![b'x'; 10 << 20];
    let urls: Vec<String> = (0..3).map(|n| pictures.good(n)).collect();
    let old_form =
        json!({"request_id": "old", "image_urls": urls, "timestamp": 1.5, "num_images": 3}).to_string();
    let messages: [&[u8]; 6] = [
        b"not json",
        b"{}",
        &huge,
        b"{\"image_urls\": 7}",
        b"{\"image_url\": \"file:///etc/passwd\"}",
        old_form.as_bytes(),
    ];
    cloud.produce(&messages);
    let status = finished(&api, "old", TIMEOUT);
    assert_eq!((&status["status"], &status["completed"]), (&json!("completed"), &json!(3)));
    let bad = |r: &Value| r["kind"] == "batch_item" && r["status"] == "failed";
    let failed = |seen: &[Value]| seen.iter().filter(|r| bad(r)).count();
    let records = cloud.results(TIMEOUT, |seen| failed(seen) >= 5 && images(seen, "old").len() == 3);
    assert_eq!(failed(&records), 5, "each bad message has one failed item");
    for record in records.iter().filter(|r| bad(r)) {
        assert!(
            !record["error"].as_str().unwrap().is_empty() && !record["code"].as_str().unwrap().is_empty()
        );
    }
}

#[test]
fn the_python_sample_of_the_documentation_works() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::serve();
    let _worker = cloud.worker(&[]);
    let project = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let cache = test_services::cache();
    let made = Command::new(project.join("scripts/venv"))
        .current_dir(project)
        .args(["samples", "docs/samples/requirements.txt"])
        .env("WEIR_CACHE", &cache)
        .status()
        .unwrap();
    assert!(made.success());
    let urls: Vec<String> = (0..5).map(|n| pictures.good(n)).collect();
    let output = Command::new(cache.join("venv-samples/bin/python"))
        .arg(project.join("docs/samples/produce.py"))
        .args(["--request-id", "from-python"])
        .args(&urls)
        .envs(cloud.env())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let counts = images(&records, "from-python");
    assert!(counts.len() == 5 && counts.values().all(|&count| count == 1), "{lines}");
    assert!(records.iter().all(|record| record["status"] == "ok"));
}
