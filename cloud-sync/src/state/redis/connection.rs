//! One connection to Redis for all callers: made when it is needed, replaced when it breaks.
//!
//! The `redis` crate's own manager is not used because it keeps the error of a failed login for good, and
//! makes each call wait for its own attempt while the server is away. Here one attempt runs at a time, on a
//! task of its own (a caller with a deadline of milliseconds may not live to see it end), and between
//! attempts calls fail at once.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::time::{Instant, timeout_at};

use super::server::Server;
use crate::backoff::Backoff;

/// Shortest and longest wait between attempts to connect. Short: a server that is back is used at once.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

type Attempt = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// The connection. Clones are the same one.
#[derive(Clone)]
pub(super) struct Connector {
    server: Server,
    timeout: Duration,
    slot: Arc<Mutex<Slot>>,
}

struct Slot {
    /// Counts attempts, so that a late failure does not take away a newer connection.
    generation: u64,
    /// The connection, or the attempt to make it; none before the first call and after a failure.
    attempt: Option<Attempt>,
    /// Until when not to try again, and why.
    away: Option<(Instant, RedisError)>,
    backoff: Backoff,
}

impl fmt::Debug for Connector {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: its settings hold the password.
        write!(to, "{}", self.server.address())
    }
}

impl Connector {
    /// A connection that takes no longer than `timeout` for a call, connecting included.
    pub(super) fn new(server: Server, timeout: Duration) -> Self {
        let [first, longest] = PAUSES;
        let backoff = Backoff::new(first, longest);
        let slot = Slot { generation: 0, attempt: None, away: None, backoff };
        Self { server, timeout, slot: Arc::new(Mutex::new(slot)) }
    }

    /// Does `work` on the connection. When that turns out to have been closed meanwhile (a server that was
    /// restarted), it is done once more on a new one: so it must be safe to repeat.
    pub(super) async fn call<T, F>(&self, work: impl Fn(MultiplexedConnection) -> F) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut first = true;
        loop {
            let (generation, attempt) = self.attempt()?;
            let fresh = attempt.peek().is_none();
            let connection = timeout_at(deadline, attempt).await.unwrap_or_else(|_| Err(self.too_slow()))?;
            let result =
                timeout_at(deadline, work(connection)).await.unwrap_or_else(|_| Err(self.too_slow()));
            let Err(error) = result else {
                self.worked();
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

    /// The connection, or the attempt to make it, which is begun where there is none.
    fn attempt(&self) -> RedisResult<(u64, Attempt)> {
        let mut slot = self.slot.lock();
        if let Some(attempt) = &slot.attempt {
            return Ok((slot.generation, attempt.clone()));
        }
        if let Some((until, why)) = &slot.away
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

    fn worked(&self) {
        let mut slot = self.slot.lock();
        if slot.backoff.failures() > 0 {
            slot.backoff.succeed();
        }
    }

    /// The connection is broken, or could not be made: then there is a pause.
    fn lost(&self, generation: u64, not_made: Option<RedisError>) {
        let mut slot = self.slot.lock();
        if slot.generation == generation && slot.attempt.take().is_some() {
            slot.away = not_made.map(|error| (Instant::now() + slot.backoff.fail(), error));
        }
    }

    fn too_slow(&self) -> RedisError {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", self.timeout)).into()
    }
}
