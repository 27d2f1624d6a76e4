//! Where the broker is and how to log in, as settings and as librdkafka's properties.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;

use crate::secret::Secret;

/// How the connection is secured. Kafka's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated.
    Plaintext,
    /// Encrypted; the broker authenticates.
    Ssl,
    /// Authenticated, not encrypted.
    SaslPlaintext,
    /// Encrypted and authenticated: the deployment's.
    SaslSsl,
}

impl SecurityProtocol {
    /// Kafka's own name.
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

/// How the user proves who they are. Kafka's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// SCRAM with SHA-512 (RFC 5802): the deployment's.
    ScramSha512,
    /// SCRAM with SHA-256.
    ScramSha256,
    /// The password itself.
    Plain,
}

impl SaslMechanism {
    /// Kafka's own name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
        }
    }
}

/// The broker, the topics and the login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port`, several with commas between.
    pub bootstrap_servers: String,
    /// How the connection is secured.
    pub protocol: SecurityProtocol,
    /// How the user logs in, where the protocol has SASL.
    pub mechanism: SaslMechanism,
    /// The user, where the protocol has SASL.
    pub user: String,
    /// Their password.
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
    /// Largest record that is sent or taken, in bytes.
    pub max_message_bytes: usize,
    /// How long a session may be silent before its partitions go to others.
    pub session_timeout: Duration,
}

#[cfg(test)]
impl KafkaConfig {
    /// A broker that is not there: nobody listens on the discard port of this machine.
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
    /// The properties that every client of this broker shares.
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
