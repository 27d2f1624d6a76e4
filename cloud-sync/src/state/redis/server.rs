//! How one connection to the server is made.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The server, and how to log in there.
#[derive(Clone)]
pub(super) struct Server {
    client: Client,
    own_tls: Option<OwnTls>,
}

/// TLS that this crate sets up, where a CA file is named: the client library takes authorities, and no rule for the
/// certificates of servers that signed their own (see [`crate::tls`]).
#[derive(Clone)]
pub(super) struct OwnTls {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) name: ServerName<'static>,
    pub(super) config: Arc<ClientConfig>,
}

impl Server {
    pub(super) fn new(client: Client, own_tls: Option<OwnTls>) -> Self {
        Self { client, own_tls }
    }

    /// Connects and logs in, which takes no longer than `limit`; nor does a call on the connection.
    pub(super) async fn connect(&self, limit: Duration) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit));
        let Some(tls) = &self.own_tls else {
            return self.client.get_multiplexed_async_connection_with_config(&config).await;
        };
        let connecting = async {
            let tcp = TcpStream::connect((tls.host.as_str(), tls.port)).await?;
            tcp.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::clone(&tls.config));
            let stream = connector.connect(tls.name.clone(), tcp).await?;
            let login = self.client.get_connection_info().redis_settings();
            let (connection, driver) = MultiplexedConnection::new_with_config(login, stream, config).await?;
            // It ends with the last of the connection's clones.
            tokio::spawn(driver);
            Ok(connection)
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| {
            let what = format!("no connection within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, what).into())
        })
    }

    /// Where it is, without what logs in.
    pub(super) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }
}
