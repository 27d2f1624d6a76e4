//! Shared by all Kafka clients: settings, errors, positions and transactions.

mod check;
mod errors;
mod position;
mod settings;
mod transaction;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod wait;

pub use check::check;
pub(crate) use errors::{ClientErrors, down, explain, noted};
pub(crate) use position::committed;
pub use position::{Bookmark, Mark, Position};
pub use settings::{KafkaConfig, SaslMechanism, SecurityProtocol};
pub use transaction::{PublishError, Record, TransactionalProducer};
