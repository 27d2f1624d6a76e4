//! Servers that stop and restart while batches and real-time requests are processed: nothing acknowledged is lost or
//! duplicated, and real-time requests are not delayed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::cloud::{Cloud, finished, has_work, predictions};
use support::load::{RealTime, TIMEOUT, assert_once, check_results, percentile, submit, wait_until};
use support::pictures::Images;
use test_services::Services;

/// How long a server is stopped: longer than a client's retries of one call.
const AWAY: Duration = Duration::from_secs(6);
/// Images of a batch.
const IMAGES: usize = 300;

#[test]
fn each_server_stops_under_load_and_nothing_is_lost_or_duplicated() {
    let services = Services::own(&["kafka", "redis", "s3"]);
    let cloud = Cloud::new(&services);
    let pictures = Images::slow(Duration::from_millis(20));
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "20")]);
    let workers = [
        cloud.worker(&[("WEIR__BATCH__CONCURRENT_FETCHES", "2")]),
        cloud.worker(&[("WEIR__BATCH__CONCURRENT_FETCHES", "2")]),
    ];
    workers.iter().for_each(has_work);
    let running = AtomicBool::new(true);
    let mut batches: Vec<String> = Vec::new();
    let mut away: Vec<(&str, Instant, Instant)> = Vec::new();
    let urls = |n: usize| -> Vec<String> { (0..IMAGES).map(|i| pictures.good(n * IMAGES + i)).collect() };
    let seen = std::thread::scope(|scope| {
        let load = scope.spawn(|| RealTime::send(&api, &running, 0));
        // The baseline with all servers running.
        submit(&api, "before", &urls(0));
        finished(&api, "before", TIMEOUT);
        batches.push("before".into());
        for (server, hard) in [("redis", true), ("kafka", false), ("s3", true), ("kafka", true)] {
            let name = |when: &str| format!("{server}-{hard}-{when}");
            let (under_way, meanwhile) = (name("under-way"), name("meanwhile"));
            submit(&api, &under_way, &urls(batches.len()));
            let status = format!("/batch/status/{under_way}");
            wait_until("it is being processed", || {
                api.get(&status).json()["completed"].as_u64().unwrap_or(0) > 0
            });
            let began = Instant::now();
            if hard {
                services.kill(server);
            } else {
                services.stop(server);
            }
            // Repeated until it is accepted, immediately or when the server is running again.
            let later = urls(batches.len() + 1);
            let second = scope.spawn({
                let (api, id) = (&api, meanwhile.clone());
                move || submit(api, &id, &later)
            });
            wait_until("the outage is noticed", || {
                let links = |daemon: &support::Daemon| {
                    daemon.get("/health").json()["links"][server]["status"] == "down"
                };
                links(&api) || workers.iter().any(links)
            });
            std::thread::sleep(AWAY.saturating_sub(began.elapsed()));
            let health = api.get("/health");
            assert_eq!(
                (health.status, &health.json()["status"]),
                (200, &"ready".into()),
                "{}",
                health.text()
            );
            let back = Instant::now();
            away.push((server, began, back));
            services.start(server);
            println!("{server}, hard: {hard}: away for {:?}, start took {:?}", back - began, back.elapsed());
            let up = Instant::now();
            second.join().unwrap();
            for id in [under_way, meanwhile] {
                finished(&api, &id, TIMEOUT);
                batches.push(id);
            }
            println!("both batches were finished {:?} later", up.elapsed());
        }
        running.store(false, Ordering::Relaxed);
        load.join().unwrap()
    });
    for request_id in &batches {
        check_results(&api, request_id, IMAGES);
    }
    // Every acknowledged prediction and every image is in the topic exactly once.
    let acknowledged: HashSet<&str> = seen.acknowledged.iter().map(String::as_str).collect();
    assert_eq!(acknowledged.len(), seen.acknowledged.len());
    let complete = |records: &[serde_json::Value]| {
        predictions(records).len() >= acknowledged.len()
            && records.iter().filter(|r| r["kind"] == "batch").count() >= batches.len()
    };
    let records = cloud.results(TIMEOUT, complete);
    for request_id in &batches {
        assert_once(&records, request_id, IMAGES);
    }
    let counts = predictions(&records);
    assert!(acknowledged.iter().all(|id| counts.contains_key(*id)));
    assert!(counts.values().all(|&count| count == 1), "a prediction is there twice");

    // The slowest of the few requests of an outage may have waited for one slow fsync.
    let p90 = |wanted: &dyn Fn(Instant) -> bool| {
        let times = seen.times.iter().filter(|(at, _)| wanted(*at)).map(|(_, took)| *took);
        percentile(times.collect(), 90)
    };
    let there = p90(&|at| !away.iter().any(|(_, from, to)| (*from..*to).contains(&at)));
    println!("{} predictions; p90 with every server there {there:?}", acknowledged.len());
    for (server, from, to) in &away {
        let during = p90(&|at| (*from..*to).contains(&at));
        println!("p90 without {server}: {during:?}");
        // The machine is shared by servers, workers and tests: a request that waited for a network would take seconds.
        assert!(
            during < there * 3 + Duration::from_secs(1),
            "without {server} {during:?}, with it {there:?}"
        );
    }
}
