//! Load for tests of faults: batches that are submitted until they are taken, and requests in real time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Reply, post};
use super::cloud::{Cloud, finished, images, lines};
use super::{Daemon, pictures};

/// How long anything may take that must come to an end.
pub const TIMEOUT: Duration = Duration::from_secs(240);

/// Posts a batch of URLs, once.
pub fn post_batch(api: &Daemon, request_id: &str, urls: &[String]) -> Reply {
    let body = json!({"request_id": request_id, "image_urls": urls}).to_string();
    post(api.address, "/batch/predict", &[("content-type", "application/json")], body.as_bytes())
}

/// Posts a batch until it is taken: whoever is told to come back may, with the same id.
pub fn submit(api: &Daemon, request_id: &str, urls: &[String]) {
    let until = Instant::now() + TIMEOUT;
    loop {
        let reply = post_batch(api, request_id, urls);
        if reply.status == 202 {
            return;
        }
        assert!(matches!(reply.status, 429 | 503), "{}", reply.text());
        assert!(reply.header("retry-after").is_some() && Instant::now() < until, "{}", reply.text());
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Waits until `ready`, and fails with `what` when that takes too long.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !ready() {
        assert!(Instant::now() < until, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The batch is completed, and its results have each image once, in order, classified.
pub fn check_results(api: &Daemon, request_id: &str, total: usize) {
    let status = finished(api, request_id, TIMEOUT);
    assert_eq!((&status["status"], &status["completed"]), (&json!("completed"), &json!(total)), "{status}");
    let lines = lines(api, request_id);
    assert_eq!(lines.len(), total);
    for (n, line) in lines.iter().enumerate() {
        assert!(line["index"] == n && line["status"] == "ok", "line {n}: {line}");
    }
}

/// The same, and every image has one result for readers of the topic. Returns what these see.
pub fn check_complete(cloud: &Cloud<'_>, api: &Daemon, request_id: &str, total: usize) -> Vec<Value> {
    check_results(api, request_id, total);
    let records = cloud.results(TIMEOUT, |seen| images(seen, request_id).len() == total);
    assert_once(&records, request_id, total);
    records
}

/// Each image of a batch has one result among these records.
pub fn assert_once(records: &[Value], request_id: &str, total: usize) {
    let counts = images(records, request_id);
    let repeated: Vec<_> = counts.iter().filter(|&(_, &count)| count > 1).map(|(&index, _)| index).collect();
    for record in records.iter().filter(|r| r["request_id"] == request_id) {
        if record["index"].as_u64().is_some_and(|index| repeated.contains(&index)) {
            eprintln!(
                "twice: {} {} at {} by {}",
                record["index"], record["id"], record["place"], record["node"]
            );
        }
    }
    assert_eq!((counts.len(), repeated.len()), (total, 0), "images with a result, and with more than one");
}

/// Requests in real time.
#[derive(Default)]
pub struct RealTime {
    /// Ids of those that were acknowledged.
    pub acknowledged: Vec<String>,
    /// When each was sent, and how long it took.
    pub times: Vec<(Instant, Duration)>,
}

impl RealTime {
    /// Sends one request every 20 ms, each with a picture of its own, for as long as `running` says.
    pub fn send(api: &Daemon, running: &AtomicBool, seed: u32) -> Self {
        let mut seen = Self::default();
        for n in seed.. {
            if !running.load(Ordering::Relaxed) {
                break;
            }
            seen.one(api, n);
            let (_, took) = seen.times[seen.times.len() - 1];
            std::thread::sleep(Duration::from_millis(20).saturating_sub(took));
        }
        seen
    }

    /// Sends one.
    pub fn one(&mut self, api: &Daemon, seed: u32) {
        let began = Instant::now();
        let reply = api.post("/predict?camera=dock-1", &[], &pictures::bmp(64, 48, seed));
        assert_eq!(reply.status, 200, "{}", reply.text());
        self.times.push((began, began.elapsed()));
        self.acknowledged.push(reply.json()["request_id"].as_str().unwrap().to_owned());
    }
}

/// The time that `percent` of these are within.
pub fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}
