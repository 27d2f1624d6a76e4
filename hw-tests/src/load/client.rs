//! One request at a time, waited for: what the benches ask a server beside load.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::connection::{Connection, Failure};
use super::request::{Options, Request};
use super::response::Reply;
use super::target::Target;
use crate::frames::Frame;

/// A client with one connection, opened when it is needed.
#[derive(Debug)]
pub struct Client {
    target: Target,
    limit: Duration,
    runtime: Runtime,
    connection: Option<Connection>,
}

impl Client {
    /// A client of the target's server; every request may take `limit`.
    ///
    /// # Errors
    /// When the system gives no event queue.
    pub fn new(target: Target, limit: Duration) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { target, limit, runtime, connection: None })
    }

    /// GETs a path.
    ///
    /// # Errors
    /// When there is no response.
    pub fn get(&mut self, path: &str) -> Result<Reply, Failure> {
        self.ask(&Request::get(&self.target.with_path(path)))
    }

    /// Posts a file as it is to the target.
    ///
    /// # Errors
    /// When there is no response.
    pub fn post(&mut self, frame: &Frame) -> anyhow::Result<Reply> {
        let request = Request::post(&self.target, frame, &Options::default())?;
        Ok(self.ask(&request)?)
    }

    /// Sends a request and waits for its response.
    ///
    /// # Errors
    /// When there is none.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, Failure> {
        let mut prefix = Vec::new();
        request.fill(&mut prefix, 0, 0);
        let Self { target, limit, runtime, connection } = self;
        runtime.block_on(async {
            let mut open = match connection.take().filter(|open| !open.is_stale()) {
                Some(open) => open,
                None => Connection::open(target.address, None, *limit).await?,
            };
            let exchange = timeout(*limit, open.exchange(&prefix, request.rest())).await;
            let answer = exchange.unwrap_or(Err(Failure::Timeout))?;
            if answer.reply.keep_alive && answer.unsent == 0 {
                *connection = Some(open);
            }
            Ok(answer.reply)
        })
    }
}
