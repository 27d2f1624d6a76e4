//! Batches through one process with nothing but a data directory: taken, worked off, killed, gone on with.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cloud::{finished, lines};
use support::images::Images;
use support::{Daemon, pictures, sample};

const PATIENCE: Duration = Duration::from_secs(120);
const LOOPBACK: (&str, &str) = ("WEIR__FETCH__ALLOW_NETWORKS", "127.0.0.0/8");

fn post(daemon: &Daemon, body: &Value) -> support::Reply {
    let json = [("content-type", "application/json")];
    daemon.post("/batch/predict", &json, body.to_string().as_bytes())
}

/// How often each image of a batch is among the outbox's events.
fn published(daemon: &Daemon, request_id: &str) -> HashMap<u64, usize> {
    let mut counts = HashMap::new();
    for event in daemon.events() {
        if event["kind"] == "batch_item" && event["request_id"] == request_id {
            *counts.entry(event["index"].as_u64().unwrap()).or_default() += 1;
        }
    }
    counts
}

fn resident_peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_batch_by_url_with_every_third_bad_has_a_result_for_each() {
    let (daemon, pictures) = (Daemon::start(&[LOOPBACK]), Images::serve());
    let url = |n: usize| if n % 3 == 2 { pictures.missing(n) } else { pictures.good(n) };
    let urls: Vec<String> = (0..60).map(url).collect();
    let batch = json!({"request_id": "night-1", "camera": "dock-1", "top_k": 2, "image_urls": urls});
    let accepted = post(&daemon, &batch);
    assert_eq!((accepted.status, &accepted.json()["total"]), (202, &json!(60)), "{}", accepted.text());
    let status = finished(&daemon, "night-1", PATIENCE);
    assert_eq!((&status["completed"], &status["failed"]), (&json!(40), &json!(20)), "{status}");
    let inline = status["results"].as_array().expect("a small batch has its results in the status");
    let lines = lines(&daemon, "night-1");
    assert_eq!(inline, &lines);
    for (n, line) in lines.iter().enumerate() {
        let expected = if n % 3 == 2 { "failed" } else { "ok" };
        assert_eq!((&line["index"], &line["status"]), (&json!(n), &json!(expected)), "{line}");
        assert!(n % 3 == 2 || line["predictions"].as_array().unwrap().len() == 2);
    }
    // The same is the same; another content is not.
    let again = post(&daemon, &batch);
    assert_eq!((again.status, &again.json()["status"]), (202, &json!("completed")), "{}", again.text());
    let other = post(&daemon, &json!({"request_id": "night-1", "image_urls": [pictures.good(1)]}));
    assert_eq!((other.status, other.code().as_str()), (409, "request_id_taken"));
    let counts = published(&daemon, "night-1");
    assert!(counts.len() == 60 && counts.values().all(|&count| count == 1), "{counts:?}");
    assert_eq!(daemon.get("/batch/status/never-sent").status, 404);
}

#[test]
fn files_in_the_request_are_a_batch_too() {
    let daemon = Daemon::start(&[]);
    let (picture, label) = sample();
    let mut body = Vec::new();
    for (name, bytes) in
        [("a.jpg", picture.as_slice()), ("b.txt", b"no picture"), ("c.bmp", &pictures::bmp(40, 30, 7))]
    {
        let head =
            format!("--cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--cut--\r\n");
    let accepted =
        daemon.post("/batch/predict", &[("content-type", "multipart/form-data; boundary=cut")], &body);
    assert_eq!((accepted.status, &accepted.json()["total"]), (202, &json!(3)), "{}", accepted.text());
    let id = accepted.json()["request_id"].as_str().unwrap().to_owned();
    let status = finished(&daemon, &id, PATIENCE);
    assert_eq!((&status["completed"], &status["failed"]), (&json!(2), &json!(1)), "{status}");
    let lines = lines(&daemon, &id);
    assert_eq!((&lines[0]["species"], &lines[1]["status"]), (&json!(label), &json!("failed")));
}

#[test]
fn killed_ten_times_inside_a_batch_it_still_has_each_result_once() {
    let pictures = Images::serve();
    let urls: Vec<String> = (0..500).map(|n| pictures.good(n)).collect();
    let settings = [LOOPBACK, ("WEIR__BATCH__CHUNK", "20"), ("WEIR__BATCH__INFLIGHT", "2")];
    let mut daemon = Daemon::start(&settings);
    let accepted = post(&daemon, &json!({"request_id": "killed", "image_urls": urls}));
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    for round in 0..10 {
        let before = pictures.served();
        let until = Instant::now() + PATIENCE;
        while pictures.served() < before + 5 + 3 * round {
            if daemon.get("/batch/status/killed").json()["status"] == "completed" {
                break;
            }
            assert!(Instant::now() < until, "nobody works");
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        let data = std::mem::replace(&mut daemon.data, tempfile::tempdir().unwrap());
        daemon = Daemon::start_in(data, &settings);
    }
    let status = finished(&daemon, "killed", PATIENCE);
    assert_eq!((&status["completed"], &status["total"]), (&json!(500), &json!(500)), "{status}");
    assert_eq!(lines(&daemon, "killed").len(), 500);
    let until = Instant::now() + PATIENCE;
    while published(&daemon, "killed").len() < 500 {
        assert!(Instant::now() < until, "results are missing among the events");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(published(&daemon, "killed").values().all(|&count| count == 1), "a result is there twice");
}

#[test]
fn a_stop_in_the_middle_is_in_order_and_the_next_start_goes_on() {
    let pictures = Images::serve();
    let urls: Vec<String> = (0..3000).map(|n| pictures.good(n)).collect();
    let settings = [LOOPBACK, ("WEIR__SHUTDOWN__GRACE", "3s")];
    let mut daemon = Daemon::start(&settings);
    assert_eq!(post(&daemon, &json!({"request_id": "stopped", "image_urls": urls})).status, 202);
    while pictures.served() < 50 {
        std::thread::sleep(Duration::from_millis(5));
    }
    daemon.terminate();
    let ended = daemon.wait(Duration::from_secs(20)).expect("it did not end");
    assert!(ended.success(), "{ended}");
    let data = std::mem::replace(&mut daemon.data, tempfile::tempdir().unwrap());
    let daemon = Daemon::start_in(data, &settings);
    let status = finished(&daemon, "stopped", PATIENCE);
    assert_eq!(status["completed"], json!(3000), "{status}");
}

#[test]
fn a_hundred_thousand_urls_are_taken_without_being_held_in_memory() {
    // Nothing may be reached, so that each fails at once and only the taking is measured.
    let daemon = Daemon::start(&[]);
    post(&daemon, &json!({"request_id": "warm", "image_urls": ["http://10.0.0.1/0.jpg"]}));
    let before = resident_peak(&daemon);
    let urls: Vec<String> = (0..100_000)
        .map(|n| format!("http://10.1.2.3/archive/2026/november/camera-{}/{n:07}.jpg", n % 16))
        .collect();
    let accepted = post(&daemon, &json!({"request_id": "archive", "image_urls": urls}));
    assert_eq!((accepted.status, &accepted.json()["total"]), (202, &json!(100_000)), "{}", accepted.text());
    let grown = resident_peak(&daemon) - before;
    assert!(grown < 40 << 20, "{} MiB more", grown >> 20);
    let known = daemon.get("/batch/status/archive").json();
    assert!(["queued", "processing", "failed"].contains(&known["status"].as_str().unwrap()), "{known}");
}
