//! A listener and its connections: bounds on heads, on how many there are and from where, and a graceful end.

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

/// A request's head may have this many bytes; cookies and proxies' headers fit, a flood does not.
const HEAD_BYTES: usize = 64 << 10;
/// Most that is read from a connection at once: a photo arrives in a few reads.
const READ_BYTES: usize = 512 << 10;
/// Connections of the listener for health and metrics.
const ADMIN_CONNECTIONS: usize = 64;
/// Connections that are told at once why they are refused; more are only closed.
const REFUSALS: usize = 16;
/// Longest time to tell one.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
const REFUSAL_BODY: &str = r#"{"error":"this address has too many connections in use (http.max_connections_per_address)","code":"too_many_connections"}"#;

/// Why the server can't listen.
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
            "Remedy: this box has no such address; 0.0.0.0 stands for all it has".into()
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
    /// Binds `http.listen`. `most` is how many connections the process has files for.
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

    /// The address that is listened on; the port is real even if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` turns true; then the listener closes, idle connections end, and those in use end after the
    /// answer in hand. Returns when all have ended.
    pub async fn run<F>(self, routes: F, mut stop: watch::Receiver<bool>)
    where
        F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
    {
        let http = &self.policy.state.config().http;
        // HTTP/1 alone: telling versions apart would wait without bound for a connection's first byte.
        let mut builder = Builder::new();
        builder
            .timer(TokioTimer::new())
            // The socket's own clocks are stricter.
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
            // Small answers must not wait for more to be sent with them.
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

    /// The next connection, when there is room for it.
    async fn accept(&self, refusals: &Arc<Semaphore>) -> Option<(TcpStream, Place)> {
        let (stream, peer) = match self.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, say: without a pause this loop would spin until some are free.
                tracing::warn!(%error, "can't accept a connection");
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

/// Why a connection was closed before its client wanted it, if it was.
fn reason(error: &hyper::Error) -> Option<ClosedFor> {
    let mut cause = Some(error as &(dyn std::error::Error + 'static));
    let mut timed_out = false;
    while let Some(error) = cause {
        timed_out |= error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut);
        cause = error.source();
    }
    (error.is_timeout() || timed_out).then_some(ClosedFor::Slowness)
}

/// Says why, and reads what comes until the client closes: with unread data the close would be a reset, and the answer lost.
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
