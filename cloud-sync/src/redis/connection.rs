//! One connection to Redis for all callers: established on demand, replaced when it breaks.
//!
//! The `redis` crate's own connection manager is not used because it keeps the error of a failed login forever, and
//! makes each call wait for its own attempt while the server is unavailable. Here one attempt runs at a time, on a
//! separate task (a caller with a deadline of milliseconds may be gone before it ends), and between
//! attempts calls fail immediately.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::backoff::Backoff;

/// Waits between attempts to connect. Short, so that a recovered server is used promptly.
const BACKOFF_INITIAL: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

type Attempt = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// The connection. Clones are the same one.
#[derive(Clone)]
pub(super) struct Connector {
    server: Server,
    timeout: Duration,
    slot: Arc<Mutex<Slot>>,
}

struct Slot {
    /// Counts attempts, so that a late failure does not discard a newer connection.
    generation: u64,
    /// The connection, or the attempt to establish it; none before the first call and after a failure.
    attempt: Option<Attempt>,
    /// Until when not to retry, and why.
    unavailable: Option<(Instant, RedisError)>,
    backoff: Backoff,
}

impl fmt::Debug for Connector {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: its settings contain the password.
        write!(to, "{}", self.server.address())
    }
}

impl Connector {
    /// A connection on which a call, connecting included, takes no longer than `timeout`.
    pub(super) fn new(server: Server, timeout: Duration) -> Self {
        let backoff = Backoff::new(BACKOFF_INITIAL, BACKOFF_MAX);
        let slot = Slot { generation: 0, attempt: None, unavailable: None, backoff };
        Self { server, timeout, slot: Arc::new(Mutex::new(slot)) }
    }

    /// Runs `work` on the connection. When the connection turns out to have been closed meanwhile (the server was
    /// restarted), it runs once more on a new one: so it must be safe to repeat.
    pub(super) async fn call<T, F>(&self, work: impl Fn(MultiplexedConnection) -> F) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut first = true;
        loop {
            let (generation, attempt) = self.attempt()?;
            let fresh = attempt.peek().is_none();
            let connection = timeout_at(deadline, attempt).await.unwrap_or_else(|_| Err(self.timed_out()))?;
            let result =
                timeout_at(deadline, work(connection)).await.unwrap_or_else(|_| Err(self.timed_out()));
            let Err(error) = result else {
                self.succeeded();
                return result;
            };
            if error.is_io_error() || error.is_unrecoverable_error() {
                let closed = error.is_connection_dropped();
                self.lost(generation, None);
                if closed && first && !fresh {
                    first = false;
                    continue;
                }
            }
            return Err(error);
        }
    }

    /// Returns the connection, or the attempt to establish it, which is started if there is none.
    fn attempt(&self) -> RedisResult<(u64, Attempt)> {
        let mut slot = self.slot.lock();
        if let Some(attempt) = &slot.attempt {
            return Ok((slot.generation, attempt.clone()));
        }
        if let Some((until, why)) = &slot.unavailable
            && Instant::now() < *until
        {
            return Err(why.clone());
        }
        let (server, limit) = (self.server.clone(), self.timeout);
        let attempt = async move { server.connect(limit).await }.boxed().shared();
        slot.generation += 1;
        slot.attempt = Some(attempt.clone());
        let (this, generation, outcome) = (self.clone(), slot.generation, attempt.clone());
        tokio::spawn(async move {
            if let Err(error) = outcome.await {
                this.lost(generation, Some(error));
            }
        });
        Ok((slot.generation, attempt))
    }

    fn succeeded(&self) {
        let mut slot = self.slot.lock();
        if slot.backoff.failures() > 0 {
            slot.backoff.succeed();
        }
    }

    /// Discards a broken connection; after a failed attempt (`connect_error`) the next one waits.
    fn lost(&self, generation: u64, connect_error: Option<RedisError>) {
        let mut slot = self.slot.lock();
        if slot.generation == generation && slot.attempt.take().is_some() {
            slot.unavailable = connect_error.map(|error| (Instant::now() + slot.backoff.fail(), error));
        }
    }

    fn timed_out(&self) -> RedisError {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", self.timeout)).into()
    }
}

/// The server and its login.
#[derive(Clone)]
pub(super) struct Server {
    client: Client,
    own_tls: Option<OwnTls>,
}

/// TLS that this crate configures where a CA file is set: the client library accepts authorities, but no rule for
/// self-signed server certificates (see [`crate::tls`]).
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

    /// Connects and logs in within `limit`, which is also the timeout of a call on the connection.
    async fn connect(&self, limit: Duration) -> RedisResult<MultiplexedConnection> {
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
            // It ends when the last clone of the connection is dropped.
            tokio::spawn(driver);
            Ok(connection)
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| {
            let what = format!("no connection within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, what).into())
        })
    }

    /// Its address, without the login.
    fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }
}
