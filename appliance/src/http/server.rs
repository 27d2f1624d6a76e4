//! The listener and its connections: bounds on heads and on how many there are, and a graceful end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use warp::Filter;
use warp::reply::Response;

use crate::config::HttpConfig;

/// A request's head may have this many bytes; cookies and proxies' headers fit, a flood does not.
const HEAD_BYTES: usize = 64 << 10;
/// Most that is read from a connection at once: a photo arrives in a few reads.
const READ_BYTES: usize = 512 << 10;

/// Why the server can't listen.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}: {source}. {}", remedy(source))]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "Remedy: another process has this port; stop it, or choose another with --listen or http.listen"
        }
        io::ErrorKind::PermissionDenied => {
            "Remedy: ports under 1024 need a privilege; choose a higher one with --listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "Remedy: this box has no such address; 0.0.0.0 stands for all it has"
        }
        _ => "Remedy: choose another address with --listen or http.listen",
    }
}

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    header_timeout: Duration,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Binds the configured address.
    ///
    /// # Errors
    /// [`BindError`] with the remedy.
    pub async fn bind(config: &HttpConfig) -> Result<Self, BindError> {
        let failed = |source| BindError { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let connections = Arc::new(Semaphore::new(config.max_connections));
        Ok(Self { listener, address, header_timeout: config.header_timeout, connections })
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
        // HTTP/1 alone: telling versions apart would wait without bound for a connection's first byte.
        let mut builder = Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(READ_BYTES)
            .max_header_size(HEAD_BYTES)
            .max_headers(100);
        let service = TowerToHyperService::new(warp::service(routes));
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &self.connections) => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let Some((stream, permit)) = accepted else { continue };
            // Small answers must not wait for more to be sent with them.
            let _ = stream.set_nodelay(true);
            let connection = builder.serve_connection(TokioIo::new(stream), service.clone());
            let watched = graceful.watch(connection);
            tokio::spawn(async move {
                if let Err(error) = watched.await {
                    tracing::debug!(%error, "connection ended");
                }
                drop(permit);
            });
        }
        drop(self.listener);
        graceful.shutdown().await;
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            // Out of file descriptors, say: without a pause this loop would spin until some are free.
            tracing::warn!(%error, "can't accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}
