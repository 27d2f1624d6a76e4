//! What no single key of batches and links can say: values out of range and keys that contradict each other.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use cloud_sync::secret::Secret;
use url::Url;

use super::{Config, MAX_MESSAGE_IMAGES, Protocol, QueueChoice};

impl Config {
    /// What no single key of batches and links can say.
    ///
    /// # Errors
    /// The key, and a sentence that names the value and its bound.
    pub(super) fn validate_links(&self) -> Result<(), (&'static str, String)> {
        self.validate_batch()?;
        self.validate_kafka()?;
        let one = |key, password: &Secret, file: &Option<PathBuf>| match file {
            Some(_) if !password.is_empty() => {
                Err((key, "set beside the password itself; choose one".to_owned()))
            }
            _ => Ok(()),
        };
        one("kafka.password_file", &self.kafka.password, &self.kafka.password_file)?;
        one("redis.password_file", &self.redis.password, &self.redis.password_file)?;
        if self.redis.prefix.is_empty() || self.redis.prefix.contains(['{', '}', ' ']) {
            return Err((
                "redis.prefix",
                format!("{:?}: one or more characters, no braces or spaces", self.redis.prefix),
            ));
        }
        self.validate_addresses()?;
        for (key, value) in
            [("blobs.max_bytes", self.blobs.max_bytes), ("blobs.min_free", self.blobs.min_free)]
        {
            if value.as_u64() > 1 << 50 {
                return Err((key, format!("{value} is more than 1 PiB")));
            }
        }
        let (room, body) = (self.blobs.max_bytes, self.batch.max_body);
        if room < ByteSize::mib(1) {
            return Err(("blobs.max_bytes", format!("{room} is less than 1 MiB")));
        }
        // Else the largest batch would be told to come back, for ever.
        if self.batch.enabled && self.has_embedded_queue() && room.as_u64() / 2 < body.as_u64() {
            return Err(("blobs.max_bytes", format!("{room} is less than twice batch.max_body = {body}")));
        }
        if !(0.0..=1.0).contains(&self.capture.confidence_below) {
            return Err((
                "capture.confidence_below",
                format!("{} is not between 0 and 1", self.capture.confidence_below),
            ));
        }
        if !(0.0..=1.0).contains(&self.capture.sample) {
            return Err(("capture.sample", format!("{} is not between 0 and 1", self.capture.sample)));
        }
        Ok(())
    }

    /// Whether batches are worked off here; as [`QueueChoice`] says.
    fn has_embedded_queue(&self) -> bool {
        match self.batch.queue {
            QueueChoice::Embedded => true,
            QueueChoice::Kafka => false,
            QueueChoice::Auto => self.missing_link().is_some(),
        }
    }

    /// The first setting that is empty of those that name the links of workers in other processes.
    fn missing_link(&self) -> Option<&'static str> {
        let links = [
            ("kafka.bootstrap_servers", &self.kafka.bootstrap_servers),
            ("redis.host", &self.redis.host),
            ("s3.bucket", &self.s3.bucket),
        ];
        links.into_iter().find(|(_, value)| value.is_empty()).map(|(key, _)| key)
    }

    /// Where the servers are. An address may hold a password that somebody put there, so then it is not repeated.
    fn validate_addresses(&self) -> Result<(), (&'static str, String)> {
        let redis = &self.redis;
        if redis.port == 0 {
            return Err(("redis.port", "0 is not between 1 and 65535".into()));
        }
        if redis.host.contains(['@', '/', '?']) {
            let what = "(hidden): a host name or an address only, no URL; redis.port, redis.user, redis.password and \
                        redis.tls say the rest";
            return Err(("redis.host", what.into()));
        }
        if let (Some(file), Some(false)) = (&redis.ca_file, redis.tls) {
            let file = file.display();
            return Err(("redis.tls", format!("false, while redis.ca_file = {file} is for TLS; choose one")));
        }
        if self.kafka.bootstrap_servers.contains(['@', '/', '?']) {
            let what = "(hidden): host:port only, several with commas between, no URL; kafka.user, kafka.password and \
                        kafka.security_protocol say the rest";
            return Err(("kafka.bootstrap_servers", what.into()));
        }
        let endpoint = &self.s3.endpoint;
        if endpoint.contains(['@', '?', '#']) {
            let what = "(hidden): scheme, host, port and path only; keys come from AWS_ACCESS_KEY_ID and \
                        AWS_SECRET_ACCESS_KEY or the other AWS places";
            return Err(("s3.endpoint", what.into()));
        }
        let scheme = Url::parse(endpoint).map(|url| url.scheme().to_owned());
        if !endpoint.is_empty() && !matches!(scheme.as_deref(), Ok("http" | "https")) {
            return Err(("s3.endpoint", format!("{endpoint:?} is no http or https URL")));
        }
        if let Some(bad) = self.s3.allow_prefixes.iter().find(|p| p.starts_with('/') || p.contains("//")) {
            return Err((
                "s3.allow_prefixes",
                format!("{bad:?}: no slash at the start, and no two in a row"),
            ));
        }
        Ok(())
    }

    fn validate_batch(&self) -> Result<(), (&'static str, String)> {
        let batch = &self.batch;
        for (key, value, high) in [
            ("batch.max_images", batch.max_images, 10_000_000),
            ("batch.chunk", batch.chunk as u64, MAX_MESSAGE_IMAGES),
            ("batch.inflight", batch.inflight as u64, 1000),
            ("batch.concurrent_fetches", batch.concurrent_fetches as u64, 1000),
            ("batch.attempts", u64::from(batch.attempts), 100),
            ("batch.max_body", batch.max_body.as_u64(), 1 << 40),
            ("batch.max_queued", batch.max_queued.as_u64(), 1 << 50),
        ] {
            if !(1..=high).contains(&value) {
                return Err((key, format!("{value} is not between 1 and {high}")));
            }
        }
        if batch.body_timeout.is_zero() {
            return Err(("batch.body_timeout", "0s: no batch could ever be taken".into()));
        }
        if batch.time_limit < Duration::from_secs(1) {
            return Err(("batch.time_limit", "less than 1s: no batch could ever be finished".into()));
        }
        if batch.inline_results > 10_000 {
            return Err(("batch.inline_results", format!("{} is more than 10000", batch.inline_results)));
        }
        if batch.status_ttl < Duration::from_secs(1) {
            return Err(("batch.status_ttl", "less than 1s: no status would ever be found".into()));
        }
        match self.missing_link() {
            Some(key) if batch.enabled && batch.queue == QueueChoice::Kafka => Err((
                "batch.queue",
                format!("kafka needs {key} too: workers in other processes share all three"),
            )),
            _ => Ok(()),
        }
    }

    fn validate_kafka(&self) -> Result<(), (&'static str, String)> {
        let kafka = &self.kafka;
        let topic = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            (1..=249).contains(&name.len()) && name.chars().all(allowed)
        };
        for (key, name) in
            [("kafka.requests_topic", &kafka.requests_topic), ("kafka.results_topic", &kafka.results_topic)]
        {
            if !topic(name) {
                return Err((
                    key,
                    format!("{name:?}: 1 to 249 letters, digits, dots, dashes and underscores"),
                ));
            }
        }
        if kafka.requests_topic == kafka.results_topic {
            return Err((
                "kafka.results_topic",
                "the same as kafka.requests_topic: results would be work".into(),
            ));
        }
        if !(64 << 10..=256 << 20).contains(&kafka.max_message.as_u64()) {
            return Err((
                "kafka.max_message",
                format!("{} is not between 64 KiB and 256 MiB", kafka.max_message),
            ));
        }
        if !(1..=1800).contains(&kafka.session_timeout.as_secs()) {
            return Err(("kafka.session_timeout", "not between 1s and 30m".into()));
        }
        if kafka.max_rejections == 0 {
            return Err(("kafka.max_rejections", "0: at least 1".into()));
        }
        if kafka.group_id.is_empty() {
            return Err(("kafka.group_id", "empty: workers share their work by it".into()));
        }
        if kafka.bootstrap_servers.is_empty() {
            return Ok(());
        }
        let sasl = matches!(kafka.security_protocol, Protocol::SaslPlaintext | Protocol::SaslSsl);
        let no_password = kafka.password.is_empty() && kafka.password_file.is_none();
        if kafka.user.is_empty() && sasl {
            return Err(("kafka.user", "empty, and kafka.security_protocol wants a login".into()));
        }
        if !kafka.user.is_empty() && no_password {
            return Err(("kafka.password", "empty, while kafka.user is set".into()));
        }
        if !kafka.user.is_empty() && matches!(kafka.security_protocol, Protocol::Plaintext | Protocol::Ssl) {
            return Err(("kafka.security_protocol", "has no login, while kafka.user is set".into()));
        }
        if let (Some(file), Protocol::Plaintext | Protocol::SaslPlaintext) =
            (&kafka.ca_file, kafka.protocol())
        {
            let file = file.display();
            return Err((
                "kafka.security_protocol",
                format!("is not encrypted, while kafka.ca_file = {file} is for TLS; choose one"),
            ));
        }
        Ok(())
    }
}
