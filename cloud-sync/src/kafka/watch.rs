//! What a client tells on its own: reports of its threads, its log lines, deliveries that failed.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

use super::errors::ClientErrors;

/// The callbacks of a client. Clones share what they have seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    trouble: Arc<ClientErrors>,
    refused: Arc<Mutex<Vec<(usize, RDKafkaErrorCode)>>>,
}

impl Watch {
    /// What the client's threads have reported.
    pub(crate) fn trouble(&self) -> &ClientErrors {
        &self.trouble
    }

    /// Whether a record could not be delivered since [`Watch::take_refused`].
    pub(super) fn has_refused(&self) -> bool {
        !self.refused.lock().is_empty()
    }

    /// A record was refused before it was sent.
    pub(super) fn refuse(&self, number: usize, code: RDKafkaErrorCode) {
        self.refused.lock().push((number, code));
    }

    /// The records that could not be delivered: the number each was sent with, and why.
    pub(super) fn take_refused(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        std::mem::take(&mut self.refused.lock())
    }
}

impl ClientContext for Watch {
    // While a broker is away librdkafka writes a line a try: the health of the link says it once.
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.note(&error, reason);
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Watch {}

impl ProducerContext for Watch {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            self.refused.lock().push((number, code));
        }
    }
}
