//! Errors and callbacks of librdkafka's clients. Errors name the broker, the topic and the remedy, never the
//! password.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

use super::KafkaConfig;
use crate::error::{Link, SyncError};
use crate::health::LinkHealth;
use crate::tls;

/// Errors reported by a client's own threads since the last successful call.
///
/// librdkafka retries forever by itself: a call only sees a timeout, and the cause (a refused password, a
/// certificate) is reported in a callback.
#[derive(Debug, Default)]
pub(crate) struct ClientErrors(Mutex<Option<Report>>);

#[derive(Debug, Clone)]
struct Report {
    code: Code,
    reason: String,
    first: Instant,
}

impl ClientErrors {
    /// Records an error of the client.
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut report = self.0.lock();
        match report.as_mut() {
            // Timeouts, and "all brokers are down", follow every other report: they explain less.
            Some(_) if is_silence(code) => {}
            Some(report) if report.code == code => {}
            _ => *report = Some(Report { code, reason: reason.to_owned(), first: Instant::now() }),
        }
    }

    /// A call succeeded: earlier reports are obsolete.
    pub(crate) fn clear(&self) {
        *self.0.lock() = None;
    }

    /// The permanent error that was reported at least `lasting` ago, if no call has succeeded since: a broker that is
    /// starting briefly refuses passwords too. (librdkafka repeats a report only every 30 seconds, so its absence
    /// means nothing.)
    pub(crate) fn lasting(
        &self,
        config: &KafkaConfig,
        attempt: &str,
        lasting: Duration,
    ) -> Option<SyncError> {
        let report = self.0.lock().clone()?;
        if report.first.elapsed() < lasting {
            return None;
        }
        let error = describe(config, attempt, report.code, &report.reason);
        (!error.is_transient()).then_some(error)
    }
}

/// The callbacks of a client. Clones share their state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    client_errors: Arc<ClientErrors>,
    refused: Arc<Mutex<Vec<(usize, Code)>>>,
}

impl Watch {
    /// Errors reported by the client's threads.
    pub(crate) fn client_errors(&self) -> &ClientErrors {
        &self.client_errors
    }

    /// Whether a record could not be delivered since [`Watch::take_refused`].
    pub(super) fn has_refused(&self) -> bool {
        !self.refused.lock().is_empty()
    }

    /// Records that a record was refused before it was sent.
    pub(super) fn refuse(&self, number: usize, code: Code) {
        self.refused.lock().push((number, code));
    }

    /// The records that could not be delivered: the index with which each was sent, and the error code.
    pub(super) fn take_refused(&self) -> Vec<(usize, Code)> {
        std::mem::take(&mut self.refused.lock())
    }
}

impl ClientContext for Watch {
    // While a broker is unavailable librdkafka logs a line per attempt: the health of the link reports it once.
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client_errors.note(&error, reason);
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Watch {}

impl ProducerContext for Watch {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
            self.refused.lock().push((number, code));
        }
    }
}

/// Marks the link as down, temporarily or until its configuration is corrected.
pub(crate) fn down(health: &LinkHealth, error: &SyncError) {
    if health.failed(error) {
        tracing::warn!(link = error.link().name(), error = error.in_full(), "the link is down");
    }
}

/// Counts `error` against the link if it is transient, and returns it.
pub(crate) fn noted(health: &LinkHealth, error: SyncError) -> SyncError {
    if error.is_transient() {
        down(health, &error);
    }
    error
}

/// Describes `error`, which occurred on the attempt to `attempt` ("publish to topic x"), with its remedy.
pub(crate) fn explain(
    config: &KafkaConfig,
    attempt: &str,
    error: KafkaError,
    client_errors: Option<&ClientErrors>,
) -> SyncError {
    let code = match &error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    // The text of a refused setting contains its value: for `sasl.password` that is the password.
    if let KafkaError::ClientConfig(_, _, key, _) = &error {
        let what =
            format!("cannot {attempt}: librdkafka does not accept the setting {key}: correct its value");
        return SyncError::permanent(Link::Kafka, what);
    }
    if let KafkaError::ClientCreation(reason) = &error {
        // The library reports it too, but without the file. The error may also have another cause, and the library
        // may accept a file that is refused here: so its own reason stays.
        let file = config.ca_file.as_ref().filter(|_| config.protocol.has_tls());
        let file = file.map(|file| tls::client_config(Link::Kafka, file));
        let unusable = file.and_then(Result::err).map(|error| format!(" ({})", error.in_full()));
        let unusable = unusable.unwrap_or_default();
        return SyncError::permanent(Link::Kafka, format!("cannot {attempt}: {reason}{unusable}"));
    }
    let Some(code) = code else {
        return SyncError::transient(Link::Kafka, at(config, attempt)).because(error);
    };
    let cause =
        client_errors.filter(|_| is_silence(code)).and_then(|client_errors| client_errors.0.lock().clone());
    match cause {
        Some(report) => describe(config, attempt, report.code, &report.reason),
        None => describe(config, attempt, code, "").because(error),
    }
}

/// Whether the code only means that no response arrived in time.
fn is_silence(code: Code) -> bool {
    use Code::{
        AllBrokersDown, BrokerTransportFailure, MessageTimedOut, OperationTimedOut, RequestTimedOut,
        WaitingForCoordinator,
    };
    let silence = [
        AllBrokersDown,
        BrokerTransportFailure,
        MessageTimedOut,
        OperationTimedOut,
        RequestTimedOut,
        WaitingForCoordinator,
    ];
    silence.contains(&code)
}

fn at(config: &KafkaConfig, attempt: &str) -> String {
    format!("cannot {attempt} at {}", config.bootstrap_servers)
}

/// The error of a code: transient or permanent, and its remedy.
fn describe(config: &KafkaConfig, attempt: &str, code: Code, reason: &str) -> SyncError {
    let user = &config.user;
    let remedy = match code {
        Code::Authentication | Code::SaslAuthenticationFailed => Some(format!(
            "user `{user}` is refused with {}: check the user, the password and the mechanism",
            config.mechanism.name()
        )),
        Code::UnsupportedSASLMechanism => {
            Some(format!("the broker does not offer {}: use one that it does", config.mechanism.name()))
        }
        Code::SSL if is_certificate_error(reason) => Some(match &config.ca_file {
            Some(file) => format!(
                "the broker's certificate is not one of {}: give the authority that signed it as the CA file, \
                 and use a host name that the certificate names",
                file.display()
            ),
            None => "the broker's certificate is not signed by an authority that this system knows: give the CA file"
                .to_owned(),
        }),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            Some("there is no such topic: create it, or correct its name".to_owned())
        }
        Code::TopicAuthorizationFailed => {
            Some(format!("user `{user}` may not use the topic: grant READ, WRITE and DESCRIBE on it"))
        }
        Code::GroupAuthorizationFailed => {
            Some(format!("user `{user}` may not use the consumer group: grant READ on it"))
        }
        Code::TransactionalIdAuthorizationFailed => Some(format!(
            "user `{user}` may not use transactions: grant WRITE on the transactional ids that begin with `weir-`"
        )),
        Code::ClusterAuthorizationFailed => {
            Some(format!("user `{user}` may not write idempotently: grant IDEMPOTENT_WRITE on the cluster"))
        }
        Code::InvalidTransactionTimeout => Some(
            "the broker allows only shorter transactions: raise its transaction.max.timeout.ms to 60000"
                .to_owned(),
        ),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => Some(format!(
            "the record is larger than allowed: here {} bytes are, and the topic has its own max.message.bytes",
            config.max_message_bytes
        )),
        Code::InvalidRecord => Some("the broker does not accept this record".to_owned()),
        Code::InvalidTimestamp => Some(
            "the clocks differ: set the time of this machine, or let the topic go by the broker's time \
             (message.timestamp.type=LogAppendTime)"
                .to_owned(),
        ),
        Code::UnsupportedVersion | Code::UnsupportedFeature => {
            Some("the broker is too old: Kafka 2.5 or newer is needed".to_owned())
        }
        _ => None,
    };
    let mut text = at(config, attempt);
    // A clock may be corrected at any time.
    let permanent = remedy.is_some() && code != Code::InvalidTimestamp;
    if let Some(remedy) = remedy {
        text = format!("{text}: {remedy}");
    }
    if !reason.is_empty() {
        text = format!("{text} ({reason})");
    }
    if permanent { SyncError::permanent(Link::Kafka, text) } else { SyncError::transient(Link::Kafka, text) }
}

/// Whether a code refuses this record permanently.
pub(super) fn refuses_record(code: Code) -> bool {
    is_too_large(code) || code == Code::InvalidRecord
}

/// Whether a code means that the record, or the batch in which it was sent, is too large.
pub(super) fn is_too_large(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize)
}

/// Whether a code means that another producer has taken over the transactional id.
pub(super) fn is_fenced(code: Code) -> bool {
    matches!(code, Code::ProducerFenced | Code::InvalidProducerEpoch | Code::Fenced)
}

/// Whether a code means that the consumer group has rebalanced without this member.
pub(super) fn is_lost_group(code: Code) -> bool {
    let lost =
        [Code::IllegalGeneration, Code::UnknownMemberId, Code::FencedInstanceId, Code::RebalanceInProgress];
    lost.contains(&code)
}

/// Parts of the reason of a TLS failure that is about the broker's certificate.
///
/// librdkafka has one code for all of TLS (`RD_KAFKA_RESP_ERR__SSL`), and OpenSSL's error only as text. But a certificate
/// that is not trusted stays so until somebody changes it, and a broker that goes away during a handshake is soon back. The
/// texts are those of librdkafka 2.x and OpenSSL 3; the tests check them against a real broker. A failure with an unknown
/// text is transient: it is retried forever and reported as it is.
const CERTIFICATE_ERRORS: [&str; 4] = [
    "certificate verify failed",
    "verify broker certificate",
    "did not provide a certificate",
    "hostname mismatch",
];

fn is_certificate_error(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    CERTIFICATE_ERRORS.iter().any(|text| reason.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::SecurityProtocol;

    #[test]
    fn a_client_that_cannot_be_made_gives_its_own_reason_beside_that_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = KafkaConfig {
            protocol: SecurityProtocol::SaslSsl,
            ca_file: Some(file.path().to_owned()),
            ..KafkaConfig::of_nobody(Duration::from_secs(45))
        };
        let error = KafkaError::ClientCreation("no more threads".into());
        let text = explain(&config, "publish", error, None).in_full();
        assert!(text.starts_with("kafka: cannot publish: no more threads ("), "{text}");
        assert!(text.contains(&file.path().display().to_string()), "{text}");
    }
}
