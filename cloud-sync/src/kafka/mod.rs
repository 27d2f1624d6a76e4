//! What everything that speaks to Kafka shares: where the broker is, and how to log in.

mod settings;

pub use settings::{KafkaConfig, SaslMechanism, SecurityProtocol};
