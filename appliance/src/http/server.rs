//! A listener and its connections: limits on request heads and on connections, in total and per address, and a graceful stop.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use warp::Filter;
use warp::reply::Response;

use super::Surface;
use super::connections::{Admission, Connections, Place};
use super::front::{Front, Policy};
use super::sites::Sites;
use super::socket::{Socket, Times};
use crate::http::state::ServerState;
use crate::pace::Rate;
use crate::telemetry::ClosedFor;

/// Maximum size of a request's head in bytes: enough for cookies and headers of proxies.
const HEAD_BYTES: usize = 64 << 10;
/// Maximum bytes per read from a connection: a photo arrives in a few reads.
const READ_BYTES: usize = 512 << 10;
/// Connections of the listener for health and metrics.
const ADMIN_CONNECTIONS: usize = 64;
/// Refused connections that get a reply at once; more are closed without one.
const REFUSALS: usize = 16;
/// Timeout of such a reply.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
const REFUSAL_BODY: &str = r#"{"error":"this address has too many connections in use (http.max_connections_per_address)","code":"too_many_connections"}"#;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}: {source}. {}", remedy(source, key))]
pub struct BindError {
    address: SocketAddr,
    key: &'static str,
    #[source]
    source: io::Error,
}

fn remedy(error: &io::Error, key: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("Remedy: another process has this port; stop it, or choose another with {key}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("Remedy: ports under 1024 need a privilege; choose a higher one with {key}")
        }
        io::ErrorKind::AddrNotAvailable => {
            "Remedy: this box has no such address; 0.0.0.0 is all of its addresses".into()
        }
        _ => format!("Remedy: choose another address with {key}"),
    }
}

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    connections: Arc<Connections>,
    policy: Arc<Policy>,
}

impl Server {
    /// Binds `http.listen`. `most` is how many connections the process has file descriptors for.
    ///
    /// # Errors
    /// [`BindError`] with the remedy.
    pub async fn bind(state: &Arc<ServerState>, most: usize) -> Result<Self, BindError> {
        let config = &state.config().http;
        let limit = config.max_connections.min(most);
        let per_address = config.connections_per_address(limit);
        state.metrics().connection_limit(limit);
        let key = "--listen or http.listen";
        Self::open(state, Surface::of(state.role()), config.listen, key, Connections::new(limit, per_address))
            .await
    }

    /// Binds `http.admin_listen`, if it is set.
    ///
    /// # Errors
    /// [`BindError`] with the remedy.
    pub async fn bind_admin(state: &Arc<ServerState>) -> Result<Option<Self>, BindError> {
        let Some(address) = state.config().http.admin_listen else { return Ok(None) };
        let connections = Connections::new(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS);
        Self::open(state, Surface::Admin, address, "http.admin_listen", connections).await.map(Some)
    }

    async fn open(
        state: &Arc<ServerState>,
        surface: Surface,
        address: SocketAddr,
        key: &'static str,
        connections: Arc<Connections>,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError { address, key, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let http = &state.config().http;
        let policy = Policy {
            state: Arc::clone(state),
            surface,
            sites: Sites::new(state.config()),
            rate: Rate::of(http),
            bodies_per_address: http.inflight_per_address(),
            max_body: http.max_body_bytes(),
        };
        Ok(Self { listener, address, connections, policy: Arc::new(policy) })
    }

    /// The bound address, with the actual port if 0 was configured.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` turns true; then the listener closes, idle connections are closed, and active ones are closed after
    /// their current reply. Returns when all are closed.
    pub async fn run<F>(self, routes: F, mut stop: watch::Receiver<bool>)
    where
        F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
    {
        let http = &self.policy.state.config().http;
        // HTTP/1 only: detecting the version would wait without a limit for a connection's first byte.
        let mut builder = Builder::new();
        builder
            .timer(TokioTimer::new())
            // The timeouts of `socket` are stricter.
            .header_read_timeout(http.idle_timeout + http.header_timeout)
            .max_buf_size(READ_BYTES)
            .max_header_size(HEAD_BYTES)
            .max_headers(100);
        let service = TowerToHyperService::new(warp::service(routes));
        let graceful = GracefulShutdown::new();
        let times = Times { head: http.header_timeout, idle: http.idle_timeout };
        let refusals = Arc::new(Semaphore::new(REFUSALS));
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&refusals) => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let Some((stream, place)) = accepted else { continue };
            // Small replies must not wait for more data.
            let _ = stream.set_nodelay(true);
            let connection = Arc::clone(&place.0);
            let socket = Socket::new(stream, Arc::clone(&connection), times, self.policy.rate);
            let front = Front { policy: Arc::clone(&self.policy), connection, routes: service.clone() };
            let watched = graceful.watch(builder.serve_connection(TokioIo::new(socket), front));
            let state = Arc::clone(&self.policy.state);
            tokio::spawn(async move {
                let reason = tokio::select! {
                    ended = watched => ended.err().and_then(|error| {
                        tracing::debug!(%error, "connection ended");
                        reason(&error)
                    }),
                    () = place.0.closed_for_another() => Some(ClosedFor::Room),
                };
                if let Some(reason) = reason {
                    state.metrics().connection_closed(reason);
                }
                drop(place);
            });
        }
        drop(self.listener);
        graceful.shutdown().await;
    }

    /// The next connection, once there is a place for it.
    async fn accept(&self, refusals: &Arc<Semaphore>) -> Option<(TcpStream, Place)> {
        let (stream, peer) = match self.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Without file descriptors, for example, this loop would spin until some are free.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                return None;
            }
        };
        loop {
            match self.connections.admit(peer.ip()) {
                Admission::Admitted(place) => {
                    if self.policy.surface != Surface::Admin {
                        self.policy.state.metrics().connections(self.connections.open());
                    }
                    return Some((stream, place));
                }
                Admission::Wait => self.connections.changed().await,
                Admission::AddressFull => {
                    self.policy.state.metrics().connection_closed(ClosedFor::AddressLimit);
                    if let Ok(permit) = Arc::clone(refusals).try_acquire_owned() {
                        tokio::spawn(async move {
                            let _ = tokio::time::timeout(REFUSAL_TIME, refuse(stream)).await;
                            drop(permit);
                        });
                    }
                    return None;
                }
            }
        }
    }
}

/// Why the server closed a connection, if it did.
fn reason(error: &hyper::Error) -> Option<ClosedFor> {
    let mut cause = Some(error as &(dyn std::error::Error + 'static));
    let mut timed_out = false;
    while let Some(error) = cause {
        timed_out |= error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut);
        cause = error.source();
    }
    (error.is_timeout() || timed_out).then_some(ClosedFor::Slowness)
}

/// Replies with the reason, and reads until the client closes: with unread data the close would be a reset, and the reply lost.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{REFUSAL_BODY}",
        REFUSAL_BODY.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut block = [0; 4096];
    while stream.read(&mut block).await? > 0 {}
    Ok(())
}
