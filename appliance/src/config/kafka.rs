//! `[kafka]`: the Kafka broker.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use cloud_sync::secret::Secret;
use serde::{Deserialize, Serialize};

use super::check::{Check, either};

/// The Kafka broker. Without `bootstrap_servers` there is none.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSection {
    /// `host:port`, several with commas between.
    pub bootstrap_servers: String,
    /// Encryption and authentication.
    pub security_protocol: Protocol,
    /// How the user logs in.
    pub sasl_mechanism: Mechanism,
    /// The user.
    pub user: String,
    /// Their password.
    pub password: Secret,
    /// File that holds the password, in place of `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities that may have signed the broker's certificate; the system's otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Topic of batch work.
    pub requests_topic: String,
    /// Topic of results and events.
    pub results_topic: String,
    /// Consumer group of the workers.
    pub group_id: String,
    /// Whether `serve` sends its events to the results topic.
    pub publish_events: bool,
    /// Maximum consecutive events that the results topic may refuse; after that events wait in the outbox.
    pub max_rejections: u32,
    /// Maximum size of a record, in either direction.
    pub max_message: ByteSize,
    /// Time without a sign of life after which a worker's messages go to others.
    #[serde(with = "humantime_serde")]
    pub session_timeout: Duration,
}

impl Default for KafkaSection {
    fn default() -> Self {
        Self {
            bootstrap_servers: String::new(),
            security_protocol: Protocol::default(),
            sasl_mechanism: Mechanism::default(),
            user: String::new(),
            password: Secret::default(),
            password_file: None,
            ca_file: None,
            requests_topic: "fish-classification-requests".into(),
            results_topic: "fish-classification-results".into(),
            group_id: "ml-workers".into(),
            publish_events: true,
            max_rejections: 100,
            max_message: ByteSize::mib(16),
            session_timeout: Duration::from_secs(45),
        }
    }
}

/// How a Kafka connection is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Protocol {
    /// `SASL_SSL` where a user is set, else `SSL` where a `ca_file` is, else `PLAINTEXT`.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Neither encrypted nor authenticated.
    #[serde(rename = "PLAINTEXT")]
    Plaintext,
    /// Encrypted.
    #[serde(rename = "SSL")]
    Ssl,
    /// Authenticated.
    #[serde(rename = "SASL_PLAINTEXT")]
    SaslPlaintext,
    /// Encrypted and authenticated.
    #[serde(rename = "SASL_SSL")]
    SaslSsl,
}

/// How a user logs in to Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Mechanism {
    /// SCRAM with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// SCRAM with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The password itself.
    #[serde(rename = "PLAIN")]
    Plain,
}

impl KafkaSection {
    /// How the connection is secured; never [`Protocol::Auto`].
    pub fn protocol(&self) -> Protocol {
        match self.security_protocol {
            Protocol::Auto if !self.user.is_empty() => Protocol::SaslSsl,
            Protocol::Auto if self.ca_file.is_some() => Protocol::Ssl,
            Protocol::Auto => Protocol::Plaintext,
            set => set,
        }
    }

    pub(super) fn validate(&self) -> Check {
        topic("kafka.requests_topic", &self.requests_topic)?;
        topic("kafka.results_topic", &self.results_topic)?;
        if self.requests_topic == self.results_topic {
            let what = "the same as kafka.requests_topic: results would be work";
            return Err(("kafka.results_topic", what.into()));
        }
        if !(64 << 10..=256 << 20).contains(&self.max_message.as_u64()) {
            let what = format!("{} is not between 64 KiB and 256 MiB", self.max_message);
            return Err(("kafka.max_message", what));
        }
        if !(1..=1800).contains(&self.session_timeout.as_secs()) {
            return Err(("kafka.session_timeout", "not between 1s and 30m".into()));
        }
        if self.max_rejections == 0 {
            return Err(("kafka.max_rejections", "0: at least 1".into()));
        }
        if self.group_id.is_empty() {
            return Err(("kafka.group_id", "empty: workers share their work by it".into()));
        }
        if !self.bootstrap_servers.is_empty() {
            self.validate_security()?;
        }
        either("kafka.password_file", &self.password, self.password_file.as_ref(), "password")?;
        // An address may contain a password by mistake, so it is not repeated.
        if self.bootstrap_servers.contains(['@', '/', '?']) {
            let what = "(hidden): host:port only, several with commas between, no URL; kafka.user, kafka.password and \
                        kafka.security_protocol say the rest";
            return Err(("kafka.bootstrap_servers", what.into()));
        }
        Ok(())
    }

    /// Login and encryption.
    fn validate_security(&self) -> Check {
        let protocol = self.security_protocol;
        let needs_login = matches!(protocol, Protocol::SaslPlaintext | Protocol::SaslSsl);
        let no_password = self.password.is_empty() && self.password_file.is_none();
        if self.user.is_empty() && needs_login {
            return Err(("kafka.user", "empty, and kafka.security_protocol wants a login".into()));
        }
        if !self.user.is_empty() && no_password {
            return Err(("kafka.password", "empty, while kafka.user is set".into()));
        }
        if !self.user.is_empty() && matches!(protocol, Protocol::Plaintext | Protocol::Ssl) {
            return Err(("kafka.security_protocol", "has no login, while kafka.user is set".into()));
        }
        let is_encrypted = !matches!(self.protocol(), Protocol::Plaintext | Protocol::SaslPlaintext);
        match &self.ca_file {
            Some(file) if !is_encrypted => {
                let file = file.display();
                let what = format!("is not encrypted, while kafka.ca_file = {file} is for TLS; choose one");
                Err(("kafka.security_protocol", what))
            }
            _ => Ok(()),
        }
    }
}

fn topic(key: &'static str, name: &str) -> Check {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match (1..=249).contains(&name.len()) && name.chars().all(allowed) {
        true => Ok(()),
        false => Err((key, format!("{name:?}: 1 to 249 letters, digits, dots, dashes and underscores"))),
    }
}
