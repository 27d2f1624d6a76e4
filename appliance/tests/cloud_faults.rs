//! What goes wrong with the cloud: servers that go and come back, workers that die or leave. Nothing acknowledged is
//! lost, nothing is there twice, and real-time requests don't notice.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cloud::{Cloud, finished, images, lines};
use support::images::Images;
use support::{Daemon, pictures};
use test_services::Services;

const PATIENCE: Duration = Duration::from_secs(180);
/// How long a server is away: longer than a client's own retries of one call.
const AWAY: Duration = Duration::from_secs(6);

fn submit(api: &Daemon, request_id: &str, urls: &[String]) {
    let body = json!({"request_id": request_id, "image_urls": urls}).to_string();
    let until = Instant::now() + PATIENCE;
    loop {
        let reply = api.post("/batch/predict", &[("content-type", "application/json")], body.as_bytes());
        if reply.status == 202 {
            return;
        }
        // Whoever is told to come back may, with the same id.
        assert!(matches!(reply.status, 429 | 503), "{}", reply.text());
        assert!(reply.header("retry-after").is_some() && Instant::now() < until, "{}", reply.text());
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// The batch is complete, and every image has one result: in its object, and for readers of the topic.
fn check_complete(cloud: &Cloud<'_>, api: &Daemon, request_id: &str, total: usize) -> Vec<Value> {
    let status = finished(api, request_id, PATIENCE);
    assert_eq!((&status["status"], &status["completed"]), (&json!("completed"), &json!(total)), "{status}");
    let lines = lines(api, request_id);
    assert_eq!(lines.len(), total);
    assert!(lines.iter().enumerate().all(|(n, line)| line["index"] == n && line["status"] == "ok"));
    let records = cloud.results(PATIENCE, |seen| images(seen, request_id).len() == total);
    let repeated = images(&records, request_id).values().filter(|&&count| count > 1).count();
    assert_eq!(repeated, 0, "images with more than one result");
    records
}

#[test]
fn a_worker_killed_twenty_times_inside_a_batch_of_2000() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::serve();
    // Small messages, so that a killed worker's successor has not the whole batch to do again; a short session, so
    // that it need not wait long for the partitions of the dead.
    let settings = [("WEIR__KAFKA__SESSION_TIMEOUT", "6s"), ("WEIR__BATCH__INFLIGHT", "2")];
    let urls: Vec<String> = (0..2000).map(|n| pictures.good(n)).collect();
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "25")]);
    submit(&api, "killed", &urls);
    for round in 0..20 {
        let mut worker = cloud.worker(&settings);
        let before = pictures.served();
        let until = Instant::now() + Duration::from_secs(40);
        // Into the work, and each time a little further.
        while pictures.served() < before + 1 + round * 4 && Instant::now() < until {
            let status = api.get("/batch/status/killed");
            if status.status == 200 && status.json()["status"] == "completed" {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        worker.child.kill().unwrap();
        worker.child.wait().unwrap();
    }
    let _last = cloud.worker(&settings);
    check_complete(&cloud, &api, "killed", 2000);
}

#[test]
fn of_two_workers_one_leaves_and_its_work_goes_on() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::serve();
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "20")]);
    let _stays = cloud.worker(&[]);
    let mut leaves = cloud.worker(&[]);
    let urls: Vec<String> = (0..1200).map(|n| pictures.good(n)).collect();
    submit(&api, "shared", &urls);
    let until = Instant::now() + PATIENCE;
    while pictures.served() < 200 {
        assert!(Instant::now() < until, "nobody works");
        std::thread::sleep(Duration::from_millis(10));
    }
    leaves.terminate();
    let ended = leaves.wait(Duration::from_secs(30)).expect("it did not end");
    assert!(ended.success(), "{ended}");
    let left = Instant::now();
    check_complete(&cloud, &api, "shared", 1200);
    // Its partitions went over at once: no session had to time out first (45 s).
    assert!(left.elapsed() < Duration::from_secs(40), "{:?}", left.elapsed());
}

/// Requests in real time, at a steady pace, for as long as `running` says.
struct RealTime {
    /// Ids of those that were acknowledged.
    acknowledged: Vec<String>,
    /// When each was sent, and how long it took.
    times: Vec<(Instant, Duration)>,
}

fn real_time(api: &Daemon, running: &AtomicBool, seed: u32) -> RealTime {
    let mut seen = RealTime { acknowledged: Vec::new(), times: Vec::new() };
    let mut n = seed;
    while running.load(Ordering::Relaxed) {
        n += 1;
        let began = Instant::now();
        let reply = api.post("/predict?camera=dock-1", &[], &pictures::bmp(64, 48, n));
        assert_eq!(reply.status, 200, "{}", reply.text());
        seen.times.push((began, began.elapsed()));
        seen.acknowledged.push(reply.json()["request_id"].as_str().unwrap().to_owned());
        std::thread::sleep(Duration::from_millis(20).saturating_sub(began.elapsed()));
    }
    seen
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[test]
fn each_server_goes_away_under_load_and_nothing_is_lost_or_doubled() {
    let services = Services::own(&["kafka", "redis", "s3"]);
    let cloud = Cloud::new(&services);
    let pictures = Images::serve();
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "20")]);
    let _workers = [cloud.worker(&[]), cloud.worker(&[])];
    let running = AtomicBool::new(true);
    let away: Mutex<Vec<(Instant, Instant)>> = Mutex::new(Vec::new());
    let mut batches = Vec::new();
    let seen = std::thread::scope(|scope| {
        let load = scope.spawn(|| real_time(&api, &running, 0));
        std::thread::sleep(Duration::from_secs(3));
        for (n, (server, hard)) in
            [("redis", true), ("kafka", false), ("s3", true), ("kafka", true)].into_iter().enumerate()
        {
            let request_id = format!("during-{n}-{server}");
            let urls: Vec<String> = (0..400).map(|i| pictures.good(n * 1000 + i)).collect();
            submit(&api, &request_id, &urls);
            std::thread::sleep(Duration::from_millis(300));
            let began = Instant::now();
            if hard {
                services.kill(server);
            } else {
                services.stop(server);
            }
            std::thread::sleep(AWAY);
            let health = api.get("/health").json();
            assert_ne!(health["status"], "starting", "{health}");
            away.lock().unwrap().push((began, Instant::now()));
            services.start(server);
            batches.push(request_id);
            // It is found again before the next one goes.
            finished(&api, &batches[n], PATIENCE);
        }
        running.store(false, Ordering::Relaxed);
        load.join().unwrap()
    });
    let mut records = Vec::new();
    for request_id in &batches {
        records = check_complete(&cloud, &api, request_id, 400);
    }
    // Every acknowledged prediction is in the topic, once.
    let acknowledged: HashSet<&str> = seen.acknowledged.iter().map(String::as_str).collect();
    let predictions = |records: &[Value]| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for record in records.iter().filter(|r| r["kind"] == "prediction") {
            *counts.entry(record["request_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        counts
    };
    if predictions(&records).len() < acknowledged.len() {
        records = cloud.results(PATIENCE, |seen| predictions(seen).len() >= acknowledged.len());
    }
    let counts = predictions(&records);
    let missing = acknowledged.iter().filter(|id| !counts.contains_key(**id)).count();
    assert_eq!(missing, 0, "of {} acknowledged predictions", acknowledged.len());
    assert!(counts.values().all(|&count| count == 1), "a prediction is there twice");

    let away = away.into_inner().unwrap();
    let within = |at: &Instant| away.iter().any(|(from, to)| (from..to).contains(&at));
    let (during, before): (Vec<_>, Vec<_>) = seen.times.iter().partition(|(at, _)| within(at));
    let (during, before) =
        (p99(during.iter().map(|t| t.1).collect()), p99(before.iter().map(|t| t.1).collect()));
    println!("p99 while a server is away {during:?}, otherwise {before:?}");
    // The machine is shared by servers, workers and tests: a request that waited for a network would take seconds.
    assert!(during < before * 3 + Duration::from_millis(50), "{during:?} against {before:?}");
}
