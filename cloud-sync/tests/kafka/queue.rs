//! Specific to the queue in Kafka: members join and leave, transactions are fenced, credentials are refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::error::{Link, SyncResult};
use cloud_sync::health::LinkHealth;
use cloud_sync::kafka::KafkaConfig;
use cloud_sync::queue::{Delivery, JobQueue, KafkaQueue, NewJob, ResultRecord, Settled};
use cloud_sync::secret::Secret;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use test_services::Services;

use super::support::{committed_when, config_of, ids, make_topic, nobody, queue_config};

const ARRIVES: Duration = Duration::from_secs(180);

fn with_topics(services: &Services, partitions: i32) -> KafkaConfig {
    let config = config_of(services);
    make_topic(&config, &config.requests_topic, partitions, &[("max.message.bytes", "20971520")]);
    make_topic(&config, &config.results_topic, 3, &[]);
    config
}

fn open(config: &KafkaConfig, inflight: usize) -> Arc<KafkaQueue> {
    Arc::new(KafkaQueue::new(config, &queue_config(inflight), LinkHealth::new(Link::Kafka)))
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("job-{n:05}")).collect()
}

async fn submit(queue: &KafkaQueue, names: &[String]) -> SyncResult<u64> {
    let job = |name: &String| Ok(NewJob { key: name.clone(), payload: name.clone().into() });
    queue.submit(&mut names.iter().map(job)).await
}

async fn receive(queue: &KafkaQueue) -> Delivery {
    let start = Instant::now();
    while start.elapsed() < ARRIVES {
        if let Some(delivery) = queue.receive(Duration::from_secs(1)).await.unwrap() {
            return delivery;
        }
    }
    panic!("no job: {:?}", queue.stats());
}

fn results(delivery: &Delivery) -> Vec<ResultRecord> {
    let id = String::from_utf8(delivery.payload.to_vec()).unwrap();
    vec![ResultRecord { key: id.clone(), payload: format!(r#"{{"id":"{id}"}}"#).into(), id }]
}

/// Receives jobs and settles each in a separate task, until `stop`. Returns how many were done.
async fn work(queue: Arc<KafkaQueue>, each: Duration, stop: Arc<AtomicBool>) -> usize {
    let mut tasks = tokio::task::JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(Some(delivery)) = queue.receive(Duration::from_millis(100)).await else { continue };
        let queue = Arc::clone(&queue);
        tasks.spawn(async move {
            tokio::time::sleep(each).await;
            let results = results(&delivery);
            queue.settle(&delivery, results).await.unwrap() == Settled::Done
        });
    }
    tasks.join_all().await.into_iter().filter(|done| *done).count()
}

async fn published(config: &KafkaConfig) -> Vec<String> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || ids(&config, &config.results_topic)).await.unwrap()
}

async fn until_published(config: &KafkaConfig, count: usize) -> Vec<String> {
    let start = Instant::now();
    loop {
        let seen = published(config).await;
        if seen.len() >= count {
            return seen;
        }
        assert!(start.elapsed() < ARRIVES, "{} of {count} results", seen.len());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_share_and_the_jobs_of_one_that_leaves_go_to_the_other() {
    let config = with_topics(test_services::shared(), 4);
    let (stays, leaves) = (open(&config, 8), open(&config, 8));
    let all = names(400);
    submit(&stays, &all).await.unwrap();
    let each = Duration::from_millis(15);
    let stop = Arc::new(AtomicBool::new(false));
    let workers =
        [&stays, &leaves].map(|queue| tokio::spawn(work(Arc::clone(queue), each, Arc::clone(&stop))));
    let start = Instant::now();
    while leaves.stats().partitions < 2 || stays.stats().partitions < 2 {
        assert!(start.elapsed() < ARRIVES, "{:?} {:?}", stays.stats(), leaves.stats());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while stays.stats().waiting.is_none() {
        assert!(start.elapsed() < ARRIVES, "{:?}", stays.stats());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(stays.stats().waiting.is_some_and(|waiting| waiting < 400));
    let left = Instant::now();
    leaves.close().await;
    assert!(left.elapsed() < Duration::from_secs(50), "{:?}", left.elapsed());
    assert_eq!(until_published(&config, 400).await, all);
    // The member that stays learns of it at its next heartbeat.
    while stays.stats().partitions < 4 {
        assert!(start.elapsed() < ARRIVES, "{:?}", stays.stats());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((stays.stats().partitions, leaves.stats().partitions), (4, 0));
    stop.store(true, Ordering::Relaxed);
    stays.close().await;
    let mut done = 0;
    for worker in workers {
        done += worker.await.unwrap();
    }
    assert_eq!((done, until_published(&config, 400).await), (400, all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_the_broker_is_away_killed_or_frozen() {
    let services = Services::own(&["kafka"]);
    let config = with_topics(&services, 3);
    let queue = open(&config, 16);
    let all = names(1500);
    submit(&queue, &all).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let worker = tokio::spawn(work(Arc::clone(&queue), Duration::from_millis(60), Arc::clone(&stop)));
    for (number, fault) in ["stop", "kill", "pause"].into_iter().enumerate() {
        let start = Instant::now();
        let enough = 100 * (number + 1);
        until_published(&config, enough).await;
        assert!(start.elapsed() < ARRIVES);
        let services = &services;
        tokio::task::block_in_place(move || {
            match fault {
                "stop" => services.stop("kafka"),
                "kill" => services.kill("kafka"),
                _ => services.pause("kafka"),
            }
            std::thread::sleep(Duration::from_secs(3));
            if fault == "pause" { services.resume("kafka") } else { services.start("kafka") }
        });
    }
    assert_eq!(until_published(&config, all.len()).await, all);
    // New jobs, too: the same queue still works.
    submit(&queue, &["after".to_owned()]).await.unwrap();
    assert_eq!(until_published(&config, all.len() + 1).await.len(), all.len() + 1);
    stop.store(true, Ordering::Relaxed);
    queue.close().await;
    worker.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_password_and_an_unknown_topic_are_told_by_receive_and_submit() {
    let right = config_of(test_services::shared());
    let wrong = KafkaConfig { password: Secret::new("wrong-horse-battery"), ..right.clone() };
    for (config, word) in [(&wrong, &right.user), (&right, &right.requests_topic)] {
        let queue = KafkaQueue::new(
            config,
            &cloud_sync::queue::KafkaQueueConfig {
                submit_timeout: Duration::from_secs(60),
                ..queue_config(1)
            },
            LinkHealth::new(Link::Kafka),
        );
        let start = Instant::now();
        let received = loop {
            match queue.receive(Duration::from_millis(500)).await {
                Ok(job) => assert!(job.is_none() && start.elapsed() < ARRIVES),
                Err(error) => break error,
            }
        };
        let submitted = submit(&queue, &names(1)).await.unwrap_err();
        for error in [received, submitted] {
            let text = error.in_full();
            assert!(!error.is_transient() && text.contains(word.as_str()), "{text}");
            assert!(!text.contains(config.password.expose()), "{text}");
        }
        queue.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_not_there_is_waited_for_and_shows_in_the_health() {
    let health = LinkHealth::new(Link::Kafka);
    let config =
        cloud_sync::queue::KafkaQueueConfig { submit_timeout: Duration::from_secs(2), ..queue_config(1) };
    let queue = KafkaQueue::new(&nobody(), &config, health.clone());
    let start = Instant::now();
    while health.state().up != Some(false) {
        assert!(queue.receive(Duration::from_secs(1)).await.unwrap().is_none());
        assert!(start.elapsed() < ARRIVES, "{:?}", health.state());
    }
    let start = Instant::now();
    let error = submit(&queue, &names(1)).await.unwrap_err();
    assert!(error.is_transient() && error.in_full().contains("127.0.0.1"), "{}", error.in_full());
    assert!(start.elapsed() < Duration::from_secs(30));
    queue.close().await;
    assert!(start.elapsed() < Duration::from_secs(90), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_ten_megabytes_comes_through_and_so_do_its_neighbours() {
    let config = with_topics(test_services::shared(), 1);
    let queue = open(&config, 4);
    let mut large = vec![0; 10 << 20];
    fastrand::Rng::with_seed(1).fill(&mut large);
    let payloads = [Bytes::from_static(b"before"), large.into(), Bytes::from_static(b"after")];
    let job = |payload: &Bytes| Ok(NewJob { key: "k".into(), payload: payload.clone() });
    queue.submit(&mut payloads.iter().map(job)).await.unwrap();
    for payload in &payloads {
        let delivery = receive(&queue).await;
        assert!(delivery.payload == *payload, "{} bytes", delivery.payload.len());
        assert_eq!(queue.settle(&delivery, Vec::new()).await.unwrap(), Settled::Done);
    }
    let error = queue.submit(&mut [job(&vec![0; 17 << 20].into())].into_iter()).await.unwrap_err();
    let text = error.in_full();
    assert!(!error.is_transient() && text.contains("17825792") && text.contains("16777216"), "{text}");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_the_broker_refuses_is_told_to_its_job_alone() {
    let config = with_topics(test_services::shared(), 1);
    let queue = open(&config, 8);
    let all = names(4);
    submit(&queue, &all).await.unwrap();
    let mut settling = Vec::new();
    for n in 0..4 {
        let delivery = receive(&queue).await;
        let mut results = results(&delivery);
        if n == 1 {
            let mut noise = vec![0; 3 << 20];
            fastrand::Rng::with_seed(1).fill(&mut noise);
            results.push(ResultRecord { id: "too-large".into(), key: "k".into(), payload: noise.into() });
        }
        let queue = Arc::clone(&queue);
        settling.push(tokio::spawn(async move { (queue.settle(&delivery, results).await, delivery) }));
    }
    let refused = settling.remove(1).await.unwrap();
    let error = refused.0.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("too-large"), "{}", error.in_full());
    assert_eq!(queue.settle(&refused.1, results(&refused.1)).await.unwrap(), Settled::Done);
    for task in settling {
        assert_eq!(task.await.unwrap().0.unwrap(), Settled::Done);
    }
    assert_eq!(until_published(&config, all.len()).await, all);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saturated_member_stops_fetching_and_goes_on_where_it_stopped() {
    let config = with_topics(test_services::shared(), 2);
    let queue = open(&config, 4);
    let all = names(200);
    submit(&queue, &all).await.unwrap();
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    while seen.len() < 200 {
        while out.len() < 4 && seen.len() < 200 {
            let delivery = receive(&queue).await;
            assert!(seen.insert(delivery.position.clone()), "{} came twice", delivery.position);
            out.push(delivery);
        }
        assert!(queue.stats().paused || seen.len() == 200);
        if seen.len() % 40 == 0 {
            // Long enough for the client to be paused and to discard what it had prefetched.
            assert!(queue.receive(Duration::from_millis(150)).await.unwrap().is_none());
        }
        let done = out.drain(..).map(|delivery| {
            let queue = Arc::clone(&queue);
            async move {
                let results = results(&delivery);
                assert_eq!(queue.settle(&delivery, results).await.unwrap(), Settled::Done);
            }
        });
        futures_util::future::join_all(done).await;
    }
    let read = config.clone();
    let seen =
        tokio::task::spawn_blocking(move || committed_when(&read, &read.results_topic, 200)).await.unwrap();
    assert_eq!(seen.len(), 200);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_results_of_one_job_are_committed_in_time_and_hold_up_no_other_partition() {
    let config = with_topics(test_services::shared(), 3);
    let queue = open(&config, 16);
    let all = names(12);
    submit(&queue, &all).await.unwrap();
    let mut settling = tokio::task::JoinSet::new();
    let mut begun = Instant::now();
    for n in 0..12 {
        let delivery = receive(&queue).await;
        if n == 0 {
            // The join of the group does not count.
            begun = Instant::now();
        }
        let (queue, large) = (Arc::clone(&queue), n == 0);
        settling.spawn(async move {
            let mut results = results(&delivery);
            let id = results[0].id.clone();
            // As long as the result of a good image.
            let filler = format!("{:032x}", fastrand::u128(..)).repeat(28);
            results.extend((1..if large { 10_000 } else { 1 }).map(|n| ResultRecord {
                id: format!("{id}/{n:05}"),
                key: id.clone(),
                payload: format!(r#"{{"id":"{id}/{n:05}","filler":"{filler}"}}"#).into(),
            }));
            assert_eq!(queue.settle(&delivery, results).await.unwrap(), Settled::Done);
            (large, begun.elapsed())
        });
    }
    for (large, took) in settling.join_all().await {
        println!("{}: {took:?}", if large { "10,000 results" } else { "a neighbour" });
        // The transaction may take 24 s, as long as three groups of the usual size; a loaded machine gets more.
        assert!(took < Duration::from_secs(60), "{took:?}");
    }
    assert_eq!(until_published(&config, 12 + 9_999).await.len(), 12 + 9_999);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_stands_behind_the_end_of_the_log_gets_all_that_comes() {
    let config = with_topics(test_services::shared(), 1);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&config.requests_topic, 0, Offset::Offset(1000)).unwrap();
    let mut client = config.client();
    let consumer: BaseConsumer = client.set("group.id", &config.group_id).create().unwrap();
    tokio::task::block_in_place(|| consumer.commit(&list, CommitMode::Sync)).unwrap();
    drop(consumer);
    let queue = open(&config, 4);
    // It joins, and learns where the partition ends, before anything is there.
    let start = Instant::now();
    while queue.stats().waiting.is_none() {
        assert!(queue.receive(Duration::from_millis(200)).await.unwrap().is_none());
        assert!(start.elapsed() < ARRIVES, "{:?}", queue.stats());
    }
    submit(&queue, &names(3)).await.unwrap();
    for n in 0..3 {
        let delivery = receive(&queue).await;
        assert!(delivery.position.ends_with(&format!("-0-{n}")), "{}", delivery.position);
        assert_eq!(queue.settle(&delivery, results(&delivery)).await.unwrap(), Settled::Done);
    }
    assert_eq!(until_published(&config, 3).await, names(3));
    queue.close().await;
}
