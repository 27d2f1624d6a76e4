//! The broker's state for an identity: who may publish under it, and the position reached.

use std::time::Duration;

use super::identity::Identity;
use super::{UplinkConfig, UplinkError};
use crate::error::SyncResult;
use crate::health::LinkHealth;
use crate::kafka::{Bookmark, KafkaConfig, PublishError, Record, TransactionalProducer};
use crate::outbox::Epochs;

#[derive(Debug)]
pub(super) struct Account {
    kafka: KafkaConfig,
    node: String,
    timeout: Duration,
    health: LinkHealth,
    identity: Identity,
    producer: TransactionalProducer,
    /// Created at the first attempt: an invalid setting is reported by the status.
    bookmark: Option<Bookmark>,
}

/// The position of an identity, and the history it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) upto: u64,
    pub(super) epochs: Epochs,
}

impl Account {
    pub(super) fn open(
        kafka: &KafkaConfig,
        config: &UplinkConfig,
        identity: Identity,
        health: LinkHealth,
    ) -> Self {
        let name = name(&config.node, &identity);
        Self {
            producer: TransactionalProducer::open(kafka, &name, config.timeout, health.clone()),
            kafka: kafka.clone(),
            node: config.node.clone(),
            timeout: config.timeout,
            health,
            identity,
            bookmark: None,
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Switches to a new identity, which has sent nothing yet.
    pub(super) fn renew(&mut self) -> Result<(), UplinkError> {
        self.identity.renew()?;
        let name = name(&self.node, &self.identity);
        self.producer = TransactionalProducer::open(&self.kafka, &name, self.timeout, self.health.clone());
        self.bookmark = None;
        Ok(())
    }

    /// Fences any other publisher under this identity, and reads from the broker what is sent. The result holds until
    /// [`Account::publish`] changes it or fails with [`PublishError::Fenced`] or [`PublishError::Anew`].
    pub(super) fn take_over(&mut self) -> SyncResult<Sent> {
        // First it ends a transaction that a crash has left open: its outcome decides.
        self.producer.recover()?;
        let timeout = self.timeout;
        let mark = self.bookmark()?.read(timeout)?;
        Ok(mark.map_or(Sent { upto: 0, epochs: Epochs::default() }, |mark| Sent {
            upto: u64::try_from(mark.value).unwrap_or(0),
            // Versions without history wrote none.
            epochs: match mark.note.as_str() {
                "" => Epochs::unknown(),
                note => Epochs::parse(note).unwrap_or_default(),
            },
        }))
    }

    /// Publishes `records`; with them everything up to `sent` is sent.
    pub(super) fn publish(&mut self, records: &[Record<'_>], sent: &Sent) -> Result<(), PublishError> {
        let upto = i64::try_from(sent.upto).unwrap_or(i64::MAX);
        self.bookmark().map_err(PublishError::Failed)?;
        let position = self.bookmark.as_ref().map(|bookmark| bookmark.at(upto, &sent.epochs.to_string()));
        let position = position.transpose().map_err(PublishError::Failed)?;
        self.producer.publish_next(&self.kafka.results_topic, records, position.as_ref())
    }

    fn bookmark(&mut self) -> SyncResult<&Bookmark> {
        let bookmark = match self.bookmark.take() {
            Some(bookmark) => bookmark,
            None => {
                let name = name(&self.node, &self.identity);
                Bookmark::new(&self.kafka, &name, &self.kafka.results_topic, self.health.clone())?
            }
        };
        Ok(self.bookmark.insert(bookmark))
    }
}

/// The transactional id and the consumer group of an identity.
fn name(node: &str, identity: &Identity) -> String {
    format!("weir-uplink-{node}-{}", identity.id())
}
