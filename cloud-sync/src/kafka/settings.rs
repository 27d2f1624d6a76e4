//! Settings of the connection to the broker, and the librdkafka properties made from them.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;

use crate::secret::Secret;

/// Security protocol, with Kafka's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated.
    Plaintext,
    /// Encrypted; only the broker is authenticated.
    Ssl,
    /// Authenticated, not encrypted.
    SaslPlaintext,
    /// Encrypted and authenticated, as in our deployments.
    SaslSsl,
}

impl SecurityProtocol {
    /// Kafka's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "PLAINTEXT",
            Self::Ssl => "SSL",
            Self::SaslPlaintext => "SASL_PLAINTEXT",
            Self::SaslSsl => "SASL_SSL",
        }
    }

    fn has_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    pub(super) fn has_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

/// SASL mechanism, with Kafka's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// SCRAM with SHA-512 (RFC 5802), as in our deployments.
    ScramSha512,
    /// SCRAM with SHA-256.
    ScramSha256,
    /// The password in plain text.
    Plain,
}

impl SaslMechanism {
    /// Kafka's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
        }
    }
}

/// Address, topics and login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// The security protocol.
    pub protocol: SecurityProtocol,
    /// The SASL mechanism, where the protocol uses SASL.
    pub mechanism: SaslMechanism,
    /// The user, where the protocol uses SASL.
    pub user: String,
    /// The password.
    pub password: Secret,
    /// PEM file of the authorities that may have signed the broker's certificate; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Topic of batch work.
    pub requests_topic: String,
    /// Topic of results and events.
    pub results_topic: String,
    /// Consumer group of the workers.
    pub group_id: String,
    /// Name of this process in the broker's logs.
    pub client_id: String,
    /// Maximum bytes of a record that is sent or received.
    pub max_message_bytes: usize,
    /// Session timeout: how long a member may be silent before its partitions are reassigned.
    pub session_timeout: Duration,
}

#[cfg(test)]
impl KafkaConfig {
    /// A broker that does not exist: nothing listens on the discard port of this machine.
    pub(crate) fn of_nobody(session_timeout: Duration) -> Self {
        Self {
            bootstrap_servers: "127.0.0.1:9".into(),
            protocol: SecurityProtocol::Plaintext,
            mechanism: SaslMechanism::ScramSha512,
            user: String::new(),
            password: Secret::default(),
            ca_file: None,
            requests_topic: "requests".into(),
            results_topic: "results".into(),
            group_id: "group".into(),
            client_id: "test".into(),
            max_message_bytes: 1 << 20,
            session_timeout,
        }
    }
}

impl KafkaConfig {
    /// The properties that all clients of this broker share.
    #[must_use]
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", &self.client_id)
            .set("security.protocol", self.protocol.name())
            .set("message.max.bytes", self.max_message_bytes.to_string())
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "10000");
        if self.protocol.has_sasl() {
            client
                .set("sasl.mechanism", self.mechanism.name())
                .set("sasl.username", &self.user)
                .set("sasl.password", self.password.expose());
        }
        if let Some(file) = self.ca_file.as_deref().filter(|_| self.protocol.has_tls()) {
            client.set("ssl.ca.location", file.to_string_lossy());
        }
        client
    }
}
