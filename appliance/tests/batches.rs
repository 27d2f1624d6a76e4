//! Batches in one process with an empty configuration: submitted, processed, and nothing lost or duplicated when the
//! process is killed or stopped or its clock jumps.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde_json::json;
use support::cloud::{finished, lines, metric, predictions};
use support::load::{
    RealTime, TIMEOUT, assert_once, check_results, percentile, post_batch, submit, wait_until,
};
use support::pictures::Images;
use support::{Daemon, pictures};
use test_services::clock::Clock;

const JSON: (&str, &str) = ("content-type", "application/json");
/// The pictures of the tests are on loopback.
const LOOPBACK: (&str, &str) = ("WEIR__FETCH__ALLOW_NETWORKS", "127.0.0.0/8");
/// Tests that measure run alone, the others in parallel.
static QUIET: RwLock<()> = RwLock::new(());

fn urls(pictures: &Images, count: usize) -> Vec<String> {
    (0..count).map(|n| pictures.good(n)).collect()
}

/// Waits until this many images of a batch are done.
fn is_under_way(api: &Daemon, request_id: &str, images: u64) {
    wait_until("the batch is under way", || {
        let status = api.get(&format!("/batch/status/{request_id}")).json();
        assert_ne!(status["status"], "completed", "it was over too soon");
        status["completed"].as_u64().unwrap_or(0) >= images
    });
}

/// Each image of the batch has one event in the outbox, and the batch has one.
fn check_events(api: &Daemon, request_id: &str, total: usize) {
    // Events are written after the status.
    wait_until("the last message has left the queue", || {
        metric(api, "weir_batch_waiting") == 0.0 && metric(api, "weir_batch_inflight") == 0.0
    });
    let events = api.events();
    assert_once(&events, request_id, total);
    let summaries = events.iter().filter(|e| e["kind"] == "batch" && e["request_id"] == request_id).count();
    assert_eq!(summaries, 1);
}

#[test]
fn a_batch_of_urls_is_processed_and_published_once() {
    let _others = QUIET.read();
    let pictures = Images::serve();
    let api = Daemon::start(&[LOOPBACK, ("WEIR__BATCH__CHUNK", "20")]);
    let url = |n: usize| if n % 3 == 2 { pictures.missing(n) } else { pictures.good(n) };
    let urls: Vec<String> = (0..90).map(url).collect();
    let accepted = post_batch(&api, "survey", &urls);
    assert_eq!((accepted.status, &accepted.json()["total"]), (202, &json!(90)), "{}", accepted.text());
    let status = finished(&api, "survey", TIMEOUT);
    assert_eq!((&status["completed"], &status["failed"]), (&json!(60), &json!(30)), "{status}");
    let lines = lines(&api, "survey");
    for (n, line) in lines.iter().enumerate() {
        assert!(line["index"] == n && line["image_url"] == url(n), "line {n}: {line}");
        assert_eq!(line["status"] == "failed", n % 3 == 2, "line {n}: {line}");
    }
    // The status contains up to 100 results.
    assert_eq!(status["results"].as_array().unwrap(), &lines);
    check_events(&api, "survey", 90);

    // The same submission is the same batch, whatever its state; another one with its id is refused.
    let served = pictures.served();
    let again = post_batch(&api, "survey", &urls);
    assert_eq!((again.status, &again.json()["status"]), (202, &json!("completed")), "{}", again.text());
    let other = post_batch(&api, "survey", &urls[1..]);
    assert_eq!((other.status, other.code().as_str()), (409, "request_id_taken"), "{}", other.text());
    assert_eq!(pictures.served(), served);
    check_events(&api, "survey", 90);

    let all_bad: Vec<String> = (0..3).map(|n| pictures.missing(n)).collect();
    submit(&api, "bad", &all_bad);
    assert_eq!(finished(&api, "bad", TIMEOUT)["status"], "failed");
    let unknown = api.get("/batch/status/nobody");
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "unknown_batch"), "{}", unknown.text());
}

#[test]
fn a_batch_of_files_is_processed() {
    let _others = QUIET.read();
    let api = Daemon::start(&[("WEIR__BATCH__CHUNK", "20"), ("WEIR__BATCH__INLINE_RESULTS", "10")]);
    let form = |count: u32| {
        let mut body =
            b"--b\r\ncontent-disposition: form-data; name=\"request_id\"\r\n\r\nfiles\r\n".to_vec();
        for n in 0..count {
            let head =
                format!("--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{n}.bmp\"\r\n\r\n");
            body.extend_from_slice(head.as_bytes());
            // The last file is not a picture.
            let file = if n + 1 < count { pictures::bmp(40, 30, n) } else { b"no picture at all".to_vec() };
            body.extend_from_slice(&file);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--b--\r\n");
        api.post("/batch/predict", &[("content-type", "multipart/form-data; boundary=b")], &body)
    };
    let accepted = form(50);
    assert_eq!((accepted.status, &accepted.json()["total"]), (202, &json!(50)), "{}", accepted.text());
    let status = finished(&api, "files", TIMEOUT);
    assert_eq!((&status["completed"], &status["failed"]), (&json!(49), &json!(1)), "{status}");
    assert!(status["results"].is_null(), "50 are too many to stand in the status: {status}");
    let lines = lines(&api, "files");
    assert!(lines.iter().enumerate().all(|(n, line)| line["index"] == n));
    assert!(lines[..49].iter().all(|line| line["status"] == "ok"));
    check_events(&api, "files", 50);
    assert_eq!(form(50).status, 202);
    let other = form(49);
    assert_eq!((other.status, other.code().as_str()), (409, "request_id_taken"), "{}", other.text());
}

#[test]
fn a_cancelled_batch_stops_and_stays_cancelled_over_a_kill() {
    let _others = QUIET.read();
    let pictures = Images::slow(Duration::from_millis(100));
    let settings = [LOOPBACK, ("WEIR__BATCH__CHUNK", "10"), ("WEIR__BATCH__CONCURRENT_FETCHES", "1")];
    let urls = urls(&pictures, 1000);
    let api = Daemon::start(&settings);
    submit(&api, "unwanted", &urls);
    is_under_way(&api, "unwanted", 10);
    let cancelled = api.delete("/batch/unwanted");
    assert_eq!(
        (cancelled.status, &cancelled.json()["status"]),
        (202, &json!("cancelled")),
        "{}",
        cancelled.text()
    );
    let api = Daemon::start_in(api.kill(), &settings);
    let status = finished(&api, "unwanted", TIMEOUT);
    assert_eq!((&status["status"], &status["total"]), (&json!("cancelled"), &json!(1000)), "{status}");
    let lines = lines(&api, "unwanted");
    assert!((10..500).contains(&lines.len()), "{} images have a result", lines.len());
    assert_eq!(status["completed"], lines.len());
    assert!(lines.windows(2).all(|pair| pair[0]["index"].as_u64() < pair[1]["index"].as_u64()));
    check_events(&api, "unwanted", lines.len());
    let summary = api.events().into_iter().find(|event| event["kind"] == "batch").unwrap();
    assert_eq!(summary["status"], "cancelled");
    assert_eq!(metric(&api, "weir_batch_waiting"), 0.0, "its messages have left the queue");
    assert_eq!(metric(&api, "weir_batch_cancelled_total"), 1.0);

    // A repetition has the same result and does not restart the batch.
    let again = api.delete("/batch/unwanted");
    assert_eq!((again.status, again.json()), (200, status), "{}", again.text());
    assert_eq!(post_batch(&api, "unwanted", &urls).json()["status"], "cancelled");
    submit(&api, "wanted", &urls[..3]);
    finished(&api, "wanted", TIMEOUT);
    let refused = api.delete("/batch/wanted");
    assert_eq!((refused.status, refused.code().as_str()), (409, "batch_finished"), "{}", refused.text());
    let unknown = api.delete("/batch/nobody");
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "unknown_batch"), "{}", unknown.text());
}

#[test]
fn ten_kills_inside_a_batch_of_500() {
    let _others = QUIET.read();
    let pictures = Images::slow(Duration::from_millis(50));
    let settings = [LOOPBACK, ("WEIR__BATCH__CHUNK", "10"), ("WEIR__BATCH__CONCURRENT_FETCHES", "2")];
    let urls = urls(&pictures, 500);
    let mut api = Daemon::start(&settings);
    submit(&api, "killed", &urls);
    for kill in 0..10 {
        // Each time at another point of the processing.
        let goal = pictures.served() + 3 + kill * 13 % 40;
        wait_until("the batch is being processed", || pictures.served() >= goal);
        let data = api.kill();
        api = Daemon::start_in(data, &settings);
        let status = api.get("/batch/status/killed").json();
        assert!(
            matches!(status["status"].as_str(), Some("queued" | "processing")),
            "kill {kill} came too late: {status}"
        );
        // A client that does not know the state may repeat the submission.
        assert_eq!(post_batch(&api, "killed", &urls).status, 202);
    }
    check_results(&api, "killed", 500);
    check_events(&api, "killed", 500);
    println!("{} pictures served for 500", pictures.served());
}

#[test]
fn a_shutdown_in_the_middle_of_a_batch_is_clean_and_the_next_start_continues() {
    let _others = QUIET.read();
    let pictures = Images::slow(Duration::from_millis(200));
    // A message takes 20 s, longer than the grace period.
    let settings = [
        LOOPBACK,
        ("WEIR__BATCH__CHUNK", "100"),
        ("WEIR__BATCH__CONCURRENT_FETCHES", "1"),
        ("WEIR__SHUTDOWN__GRACE", "15s"),
    ];
    let mut api = Daemon::start(&settings);
    submit(&api, "stopped", &urls(&pictures, 300));
    wait_until("the batch is being processed", || pictures.served() >= 20);
    let began = Instant::now();
    api.terminate();
    let ended = api.wait(Duration::from_secs(30)).expect("it did not end");
    println!("it ended after {:?}", began.elapsed());
    assert!(ended.success(), "{ended}: {:?}", api.log());
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert!(pictures.served() < 100, "the message was not cut short: {} pictures served", pictures.served());
    let data = api.kill();
    let quick = [LOOPBACK, ("WEIR__BATCH__CHUNK", "100")];
    let api = Daemon::start_in(data, &quick);
    check_results(&api, "stopped", 300);
    check_events(&api, "stopped", 300);
}

#[test]
fn a_clock_that_jumps_neither_loses_nor_duplicates_anything() {
    let _others = QUIET.read();
    let pictures = Images::slow(Duration::from_millis(20));
    let clock = Clock::new();
    let mut env = clock.env();
    let more = [LOOPBACK, ("WEIR__BATCH__CHUNK", "10"), ("WEIR__BATCH__CONCURRENT_FETCHES", "1")];
    env.extend(more.map(|(name, value)| (name.into(), value.into())));
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let api = Daemon::start(&env);
    let running = AtomicBool::new(true);
    let batches = [("before", 400), ("ahead", 100), ("in-1970", 100)];
    let seen = std::thread::scope(|scope| {
        let load = scope.spawn(|| RealTime::send(&api, &running, 0));
        let jump = |to: &str| {
            let health = api.get("/health");
            assert_eq!(
                (health.status, &health.json()["status"]),
                (200, &json!("ready")),
                "{to}: {}",
                health.text()
            );
            assert_eq!(api.get("/batch/status/before").json()["status"], "processing", "{to}");
        };
        submit(&api, "before", &urls(&pictures, 400));
        is_under_way(&api, "before", 10);
        // Longer than the retention of a batch's status: this one has changed recently and is kept.
        clock.ahead(Duration::from_secs(3 * 24 * 3600));
        jump("3 days ahead");
        submit(&api, "ahead", &urls(&pictures, 100));
        clock.at_1970();
        jump("in 1970");
        submit(&api, "in-1970", &urls(&pictures, 100));
        std::thread::sleep(Duration::from_secs(1));
        clock.right();
        for (id, _) in batches {
            finished(&api, id, TIMEOUT);
        }
        running.store(false, Ordering::Relaxed);
        load.join().unwrap()
    });
    for (id, total) in batches {
        check_results(&api, id, total);
        check_events(&api, id, total);
    }
    let counts: HashMap<String, usize> = predictions(&api.events());
    assert!(seen.acknowledged.iter().all(|id| counts.get(id) == Some(&1)));
    assert_eq!(counts.len(), seen.acknowledged.len());
    let panics: Vec<String> = api.log().into_iter().filter(|line| line.contains("panic")).collect();
    assert!(panics.is_empty(), "{panics:?}");
}

#[test]
fn real_time_requests_go_before_a_large_batch() {
    let _alone = QUIET.write();
    let pictures = Images::serve();
    let api = Daemon::start(&[LOOPBACK]);
    let measure = |seed: u32| {
        let mut seen = RealTime::default();
        for n in 0..150 {
            seen.one(&api, seed + n);
            std::thread::sleep(Duration::from_millis(5));
        }
        seen.times.into_iter().map(|(_, took)| took).collect::<Vec<_>>()
    };
    measure(0);
    let before = measure(1000);
    submit(&api, "large", &urls(&pictures, 20_000));
    is_under_way(&api, "large", 1);
    let began = Instant::now();
    let done = || metric(&api, "weir_batch_images_completed_total");
    let at_first = done();
    let meanwhile = measure(2000);
    let rate = (done() - at_first) / began.elapsed().as_secs_f64();
    assert_eq!(api.get("/batch/status/large").json()["status"], "processing", "the batch was too small");
    let (before, quickest) = (percentile(before, 50), percentile(meanwhile.clone(), 10));
    let meanwhile = percentile(meanwhile, 50);
    println!("p50 {before:?} without, {meanwhile:?} beside a batch at {rate:.0} images/s, p10 {quickest:?}");
    assert!(rate > 1.0, "the batch stood still");
    // A busy machine delays some requests; behind the batch images that are queued for the lanes all of them would take
    // a hundred milliseconds or more.
    assert!(quickest < before * 3 + Duration::from_millis(15), "p10 {quickest:?} against {before:?}");
    assert!(meanwhile < before * 3 + Duration::from_secs(1), "{meanwhile:?} against {before:?}");
}

#[test]
fn a_hundred_thousand_urls_are_never_in_memory_at_once() {
    let _alone = QUIET.write();
    let api = Daemon::start(&[]);
    let body = |id: &str, images: usize| {
        let path = "a-name-that-a-camera-could-give-to-a-picture-of-fish-in-the-morning";
        let urls: Vec<String> =
            (0..images).map(|n| format!("http://169.254.169.254/{n:08}/{path}.jpg")).collect();
        json!({"request_id": id, "image_urls": urls}).to_string().into_bytes()
    };
    // First with a tenth, so that the fixed cost of a first batch (file caches, thread buffers) is not counted.
    assert_eq!(api.post("/batch/predict", &[JSON], &body("small", 10_000)).status, 202);
    assert_eq!(finished(&api, "small", TIMEOUT)["failed"], 10_000);
    let before = api.memory("VmHWM");
    let large = body("large", 100_000);
    let began = Instant::now();
    let accepted = api.post("/batch/predict", &[JSON], &large);
    assert_eq!((accepted.status, &accepted.json()["total"]), (202, &json!(100_000)), "{}", accepted.text());
    let (taken, when_taken) = (api.memory("VmHWM").saturating_sub(before), began.elapsed());
    let status = finished(&api, "large", TIMEOUT);
    assert_eq!((&status["status"], &status["failed"]), (&json!("failed"), &json!(100_000)), "{status}");
    let (done, when_done) = (api.memory("VmHWM").saturating_sub(before), began.elapsed());
    println!(
        "{} bytes on {} KiB: taken after {when_taken:?} with {} KiB more, finished after {when_done:?} with {} KiB more",
        large.len(),
        before >> 10,
        taken >> 10,
        done >> 10
    );
    assert!(done < 30 << 20, "{taken} bytes more when it was taken, {done} when it was finished");
    assert_eq!(lines(&api, "large").len(), 100_000);
    wait_until("the last message has left the queue", || metric(&api, "weir_batch_inflight") == 0.0);
    assert_once(&api.events(), "large", 100_000);
}
