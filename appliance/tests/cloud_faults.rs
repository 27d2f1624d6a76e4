//! Workers that are killed or stopped in the middle of a batch: nothing acknowledged is lost or duplicated.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use support::cloud::{Cloud, has_work, metric};
use support::load::{TIMEOUT, check_complete, submit, wait_until};
use support::pictures::Images;

#[test]
fn a_worker_is_killed_twenty_times_inside_a_batch_of_2000() {
    let cloud = Cloud::new(test_services::shared());
    // Slow enough for the batch to outlast the kills.
    let pictures = Images::slow(Duration::from_millis(60));
    // A short session, so that the partitions of killed workers are reassigned quickly.
    let settings = [
        ("WEIR__KAFKA__SESSION_TIMEOUT", "6s"),
        ("WEIR__BATCH__CONCURRENT_FETCHES", "2"),
        ("WEIR__BATCH__INFLIGHT", "2"),
    ];
    let urls: Vec<String> = (0..2000).map(|n| pictures.good(n)).collect();
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "10")]);
    submit(&api, "killed", &urls);
    let mut workers = vec![cloud.worker(&settings), cloud.worker(&settings)];
    let began = Instant::now();
    for kill in 0..20 {
        // The next worker that reaches this count is killed: each time at another point of the processing.
        let goal = f64::from(1 + kill * 23 % 61);
        let mut victim = 0;
        wait_until("a worker is in the middle of its work", || {
            let is_there = |worker| {
                metric(worker, "weir_batch_inflight") > 0.0
                    && metric(worker, "weir_batch_images_completed_total") >= goal
            };
            victim = workers.iter().position(is_there).unwrap_or(workers.len());
            victim < workers.len()
        });
        drop(workers.remove(victim).kill());
        let status = api.get("/batch/status/killed").json();
        assert_eq!(status["status"], "processing", "kill {kill} came too late: {status}");
        workers.push(cloud.worker(&settings));
    }
    println!("20 kills in {:?}", began.elapsed());
    check_complete(&cloud, &api, "killed", 2000);
    println!("complete after {:?}; {} pictures served for 2000", began.elapsed(), pictures.served());
    assert!(pictures.served() > 2000, "no kill has cost any work");
}

#[test]
fn when_one_of_two_workers_stops_the_other_takes_over() {
    let cloud = Cloud::new(test_services::shared());
    let pictures = Images::slow(Duration::from_millis(20));
    let api = cloud.serve(&[("WEIR__BATCH__CHUNK", "20")]);
    let settings = [("WEIR__BATCH__CONCURRENT_FETCHES", "2")];
    let stays = cloud.worker(&settings);
    let mut leaves = cloud.worker(&settings);
    [&stays, &leaves].into_iter().for_each(has_work);
    let urls: Vec<String> = (0..1200).map(|n| pictures.good(n)).collect();
    submit(&api, "shared", &urls);
    wait_until("both work", || {
        [&stays, &leaves].into_iter().all(|worker| metric(worker, "weir_batch_images_completed_total") > 40.0)
    });
    let left = Instant::now();
    leaves.terminate();
    let ended = leaves.wait(Duration::from_secs(30)).expect("it did not end");
    assert!(ended.success(), "{ended}");
    let gone = left.elapsed();
    // The reassignment does not wait for the session timeout of 45 seconds.
    wait_until("the other has all partitions", || metric(&stays, "weir_batch_partitions") >= 3.0);
    let over = left.elapsed();
    println!("it ended after {gone:?}, and its partitions were with the other after {over:?}");
    assert!(over < gone + Duration::from_secs(30), "{over:?}");
    let status = api.get("/batch/status/shared").json();
    assert_eq!(status["status"], "processing", "it left too late: {status}");
    check_complete(&cloud, &api, "shared", 1200);
    assert!(left.elapsed() < TIMEOUT);
}
