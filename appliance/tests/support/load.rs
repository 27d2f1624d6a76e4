//! Load for tests of faults: batches that are submitted until they are accepted, and real-time requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Reply, post};
use super::cloud::{Cloud, finished, images, lines};
use super::{Daemon, pictures};

/// Longest wait for an expected event.
pub const TIMEOUT: Duration = Duration::from_secs(240);

/// Posts a batch of URLs, once.
pub fn post_batch(api: &Daemon, request_id: &str, urls: &[String]) -> Reply {
    let body = json!({"request_id": request_id, "image_urls": urls}).to_string();
    post(api.address, "/batch/predict", &[("content-type", "application/json")], body.as_bytes())
}

/// Posts a batch until it is accepted, with the same id after a 429 or 503.
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

/// Waits until `ready` is true, and fails with `what` after [`TIMEOUT`].
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !ready() {
        assert!(Instant::now() < until, "timed out waiting: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asserts that the batch is completed and its results contain each image once, in order, classified.
pub fn check_results(api: &Daemon, request_id: &str, total: usize) {
    let status = finished(api, request_id, TIMEOUT);
    assert_eq!((&status["status"], &status["completed"]), (&json!("completed"), &json!(total)), "{status}");
    let lines = lines(api, request_id);
    assert_eq!(lines.len(), total);
    for (n, line) in lines.iter().enumerate() {
        assert!(line["index"] == n && line["status"] == "ok", "line {n}: {line}");
    }
}

/// The same, and every image has one result in the topic. Returns its committed records.
pub fn check_complete(cloud: &Cloud<'_>, api: &Daemon, request_id: &str, total: usize) -> Vec<Value> {
    check_results(api, request_id, total);
    let records = cloud.results(TIMEOUT, |seen| images(seen, request_id).len() == total);
    assert_once(&records, request_id, total);
    records
}

/// Asserts that each image of a batch has one result in these records.
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

/// Real-time requests.
#[derive(Default)]
pub struct RealTime {
    /// Ids of those that were acknowledged.
    pub acknowledged: Vec<String>,
    /// Start and duration of each.
    pub times: Vec<(Instant, Duration)>,
}

impl RealTime {
    /// Sends one request every 20 ms, each with a different picture, while `running` is true.
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

    /// Sends one request.
    pub fn one(&mut self, api: &Daemon, seed: u32) {
        let began = Instant::now();
        let reply = api.post("/predict?camera=dock-1", &[], &pictures::bmp(64, 48, seed));
        assert_eq!(reply.status, 200, "{}", reply.text());
        self.times.push((began, began.elapsed()));
        self.acknowledged.push(reply.json()["request_id"].as_str().unwrap().to_owned());
    }
}

/// A percentile of these times.
pub fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}
