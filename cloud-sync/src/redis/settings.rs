//! Settings of the Redis store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use rustls::pki_types::ServerName;

use super::connection::{OwnTls, Server};
use crate::error::{Link, SyncError, SyncResult};
use crate::secret::Secret;
use crate::tls;

/// Address, login and limits of the Redis store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Name or address of the server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// PEM file with the authorities that may have signed the server's certificate, or with the certificate
    /// itself where it is self-signed. The system's authorities when absent.
    pub ca_file: Option<PathBuf>,
    /// The user; empty for the default one.
    pub user: String,
    /// The password; empty for none.
    pub password: Secret,
    /// Database number.
    pub database: u16,
    /// Prefix of all keys, before a colon.
    pub prefix: String,
    /// Time to live of a batch after its last change.
    pub status_ttl: Duration,
    /// Timeout of a call, connecting included.
    pub timeout: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 6379,
            tls: false,
            ca_file: None,
            user: String::new(),
            password: Secret::default(),
            database: 0,
            prefix: "weir".into(),
            status_ttl: Duration::from_secs(7 * 24 * 3600),
            timeout: Duration::from_secs(1),
        }
    }
}

impl RedisConfig {
    /// # Errors
    /// When a setting is invalid.
    pub(super) fn validate(&self) -> SyncResult<()> {
        let refuse = |what: String| Err(SyncError::permanent(Link::Redis, what));
        let prefix = &self.prefix;
        let plain = |c: char| c.is_ascii_graphic() && !"{}".contains(c);
        if prefix.is_empty() || prefix.len() > 100 || !prefix.chars().all(plain) {
            return refuse(format!(
                "the prefix {prefix:?} must have 1 to 100 visible ASCII characters, without braces"
            ));
        }
        if self.host.is_empty() || self.timeout.is_zero() || self.status_ttl < Duration::from_millis(1) {
            let (host, timeout, ttl) = (&self.host, self.timeout, self.status_ttl);
            return refuse(format!(
                "host {host:?}, timeout {timeout:?} and status_ttl {ttl:?}: none may be empty or zero"
            ));
        }
        Ok(())
    }

    /// The server with these settings, not connected.
    pub(super) fn server(&self) -> SyncResult<Server> {
        let config = self;
        let at = format!("{}:{}", config.host, config.port);
        let failed = |error: redis::RedisError| {
            SyncError::permanent(Link::Redis, format!("the settings for {at} are invalid")).because(error)
        };
        let mut login = RedisConnectionInfo::default().set_db(i64::from(config.database));
        if !config.user.is_empty() {
            login = login.set_username(&config.user);
        }
        if !config.password.is_empty() {
            login = login.set_password(config.password.expose());
        }
        let (host, port) = (config.host.clone(), config.port);
        let address = if config.tls {
            // The client library uses the process's crypto provider, which may not be installed yet. An error only
            // means that there is one.
            let _ = rustls::crypto::ring::default_provider().install_default();
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let info: ConnectionInfo = address.into_connection_info().map_err(failed)?.set_redis_settings(login);
        let client = Client::open(info).map_err(failed)?;
        let Some(file) = config.ca_file.as_deref().filter(|_| config.tls) else {
            return Ok(Server::new(client, None));
        };
        let tls = Arc::new(tls::client_config(Link::Redis, file)?);
        let name = ServerName::try_from(config.host.clone()).map_err(|error| {
            let what = format!("the host {:?} is not a valid name for a certificate", config.host);
            SyncError::permanent(Link::Redis, what).because(error.to_string())
        })?;
        let (host, port) = (config.host.clone(), config.port);
        Ok(Server::new(client, Some(OwnTls { host, port, name, config: tls })))
    }
}
