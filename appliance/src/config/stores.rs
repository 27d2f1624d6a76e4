//! `[redis]` and `[s3]`: the shared state and the object storage.

use std::path::PathBuf;
use std::time::Duration;

use cloud_sync::secret::Secret;
use serde::{Deserialize, Serialize};

use super::check::{Check, either, http_url};

/// The Redis server. Without `host` there is none.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisSection {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether the connection is encrypted. Unless set it is where a `ca_file` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// PEM file of the authorities that may have signed the server's certificate; the system's otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The user, where the server has several.
    pub user: String,
    /// The password.
    pub password: Secret,
    /// File that holds the password, in place of `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Database number.
    pub database: u16,
    /// Prefix of every key, so that several fleets can share a server.
    pub prefix: String,
    /// Timeout of a lookup in the shared cache; then the image is computed.
    #[serde(with = "humantime_serde")]
    pub cache_timeout: Duration,
}

impl Default for RedisSection {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 6379,
            tls: None,
            ca_file: None,
            user: String::new(),
            password: Secret::default(),
            password_file: None,
            database: 0,
            prefix: "weir".into(),
            cache_timeout: Duration::from_millis(5),
        }
    }
}

impl RedisSection {
    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.tls.unwrap_or(self.ca_file.is_some())
    }

    /// An address may contain a password by mistake, so a refused one is not repeated.
    pub(super) fn validate(&self) -> Check {
        either("redis.password_file", &self.password, self.password_file.as_ref(), "password")?;
        if self.prefix.is_empty() || self.prefix.contains(['{', '}', ' ']) {
            let what = format!("{:?}: one or more characters, no braces or spaces", self.prefix);
            return Err(("redis.prefix", what));
        }
        if self.port == 0 {
            return Err(("redis.port", "0 is not between 1 and 65535".into()));
        }
        if self.host.contains(['@', '/', '?']) {
            let what = "(hidden): a host name or an address only, no URL; redis.port, redis.user, redis.password and \
                        redis.tls say the rest";
            return Err(("redis.host", what.into()));
        }
        if let (Some(file), Some(false)) = (&self.ca_file, self.tls) {
            let file = file.display();
            return Err(("redis.tls", format!("false, while redis.ca_file = {file} is for TLS; choose one")));
        }
        Ok(())
    }
}

/// The object storage. Without `bucket` there is none. Credentials come from the usual AWS chain.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Section {
    /// The bucket.
    pub bucket: String,
    /// Prefix of every key.
    pub prefix: String,
    /// URL of the service; AWS's own otherwise.
    pub endpoint: String,
    /// Region.
    pub region: String,
    /// PEM file of the authorities that may have signed the server's certificate; the system's otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Other buckets that `s3://` URLs of images may name.
    pub allow_buckets: Vec<String>,
    /// Prefixes of keys in the own bucket that `s3://` URLs of images may name besides those under `prefix`.
    pub allow_prefixes: Vec<String>,
}

impl S3Section {
    pub(super) fn validate(&self) -> Check {
        let keys = "keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the other AWS places";
        http_url("s3.endpoint", &self.endpoint, keys)?;
        if let Some(bad) = self.allow_prefixes.iter().find(|p| p.starts_with('/') || p.contains("//")) {
            let what = format!("{bad:?}: no slash at the start, and no two in a row");
            return Err(("s3.allow_prefixes", what));
        }
        Ok(())
    }
}
