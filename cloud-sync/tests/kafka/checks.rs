//! What `weir doctor` says of a broker: everything in order, and each thing that may be wrong.

use std::time::Duration;

use cloud_sync::kafka::{KafkaConfig, check};
use cloud_sync::secret::Secret;

use super::support::{config_of, ids, make_topic, nobody};

const STEP: Duration = Duration::from_secs(5);

/// Whether each step worked, and the texts of all.
fn outcome(config: &KafkaConfig) -> (Vec<bool>, String) {
    let steps = check(config, STEP);
    let worked = steps.iter().map(|step| step.result.is_ok()).collect();
    let text = |step: &cloud_sync::kafka::CheckStep| match &step.result {
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
    let (worked, text) = outcome(&wrong);
    assert_eq!(worked, [false]);
    assert!(text.contains("check the user, the password") && text.contains(&right.user), "{text}");
    let (worked, text) = outcome(&nobody());
    assert_eq!(worked, [false]);
    assert!(text.contains("127.0.0.1"), "{text}");
}
