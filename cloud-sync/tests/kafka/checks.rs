//! `weir doctor` on a broker: everything in order, and each possible fault.

use std::time::{Duration, Instant};

use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use cloud_sync::kafka::{KafkaConfig, check};
use cloud_sync::queue::{JobQueue, KafkaQueue, NewJob, Settled};
use cloud_sync::secret::Secret;

use super::support::{committed_when, config_of, ids, make_topic, nobody, queue_config};

/// For steps that succeed or fail by the response of the broker.
const STEP: Duration = Duration::from_secs(60);

/// Whether each step succeeded, and the texts of all.
fn outcome(config: &KafkaConfig) -> (Vec<bool>, String) {
    outcome_of(config, false, STEP)
}

fn outcome_of(config: &KafkaConfig, batches: bool, step: Duration) -> (Vec<bool>, String) {
    let steps = check(config, batches, step);
    let worked = steps.iter().map(|step| step.outcome.is_ok()).collect();
    let text = |step: &cloud_sync::check::CheckStep| match &step.outcome {
        Ok(found) => format!("{}: {found}\n", step.what),
        Err(error) => format!("{}: {}\n", step.what, error.in_full()),
    };
    let text = steps.iter().map(text).collect::<String>();
    assert!(!text.contains(config.password.expose()), "{text}");
    (worked, text)
}

#[test]
fn a_broker_in_order_passes_and_nobody_sees_the_probe() {
    let config = config_of(test_services::shared());
    make_topic(&config, &config.requests_topic, 3, &[]);
    make_topic(&config, &config.results_topic, 1, &[]);
    let (worked, text) = outcome(&config);
    assert_eq!(worked, [true; 5], "{text}");
    assert!(text.contains("3 partitions") && text.contains(&config.user), "{text}");
    assert_eq!(ids(&config, &config.results_topic), Vec::<String>::new());
}

#[test]
fn each_fault_is_named_with_its_remedy() {
    let right = config_of(test_services::shared());
    make_topic(&right, &right.requests_topic, 1, &[]);
    let (worked, text) = outcome(&right);
    assert_eq!(worked, [true, true, false], "{text}");
    assert!(
        text.contains(&format!("find topic {}", right.results_topic)) && text.contains("create it"),
        "{text}"
    );
    let wrong = KafkaConfig { password: Secret::new("wrong-horse-battery"), ..right.clone() };
    let (worked, text) = outcome_of(&wrong, false, Duration::from_secs(15));
    assert_eq!(worked, [false]);
    assert!(text.contains("check the user, the password") && text.contains(&right.user), "{text}");
    let (worked, text) = outcome_of(&nobody(), false, Duration::from_secs(5));
    assert_eq!(worked, [false]);
    assert!(text.contains("127.0.0.1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_batches_wait_in_kafka_their_topic_and_group_are_tried_and_workers_notice_nothing() {
    let config = config_of(test_services::shared());
    make_topic(&config, &config.requests_topic, 1, &[]);
    make_topic(&config, &config.results_topic, 1, &[]);
    // A group without members and a topic without messages, as on the first day.
    let (worked, text) = tokio::task::block_in_place(|| outcome_of(&config, true, STEP));
    assert_eq!(worked, [true; 7], "{text}");
    assert!(text.contains("partition 0 is empty") && text.contains("no worker sees it"), "{text}");
    let queue = KafkaQueue::new(&config, &queue_config(4), LinkHealth::new(Link::Kafka));
    let job = |name: &'static str| Ok(NewJob { key: name.into(), payload: name.into() });
    let receive = async || {
        let start = Instant::now();
        loop {
            if let Some(delivery) = queue.receive(Duration::from_secs(1)).await.unwrap() {
                return delivery;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no job: {:?}", queue.stats());
        }
    };
    queue.submit(&mut [job("before"), job("under way")].into_iter()).await.unwrap();
    let before = receive().await;
    assert_eq!(&before.payload[..], b"before");
    assert_eq!(queue.settle(&before, Vec::new()).await.unwrap(), Settled::Done);
    let under_way = receive().await;
    let (worked, text) = tokio::task::block_in_place(|| outcome_of(&config, true, STEP));
    assert_eq!(worked, [true; 7], "{text}");
    assert!(text.contains("partition 0 has messages"), "{text}");
    queue.submit(&mut [job("after")].into_iter()).await.unwrap();
    let after = receive().await;
    assert_eq!(&after.payload[..], b"after");
    // The member is still in the group: it can commit both.
    assert_eq!(queue.settle(&under_way, Vec::new()).await.unwrap(), Settled::Done);
    assert_eq!(queue.settle(&after, Vec::new()).await.unwrap(), Settled::Done);
    queue.close().await;
    let seen = tokio::task::block_in_place(|| committed_when(&config, &config.requests_topic, 3));
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn a_topic_of_requests_that_takes_nothing_is_named() {
    let config = config_of(test_services::shared());
    make_topic(&config, &config.requests_topic, 1, &[("max.message.bytes", "10")]);
    make_topic(&config, &config.results_topic, 1, &[]);
    let (worked, text) = outcome_of(&config, true, STEP);
    assert_eq!(worked, [true, true, true, true, false, true, true], "{text}");
    assert!(text.contains("max.message.bytes") && text.contains(&config.requests_topic), "{text}");
}
