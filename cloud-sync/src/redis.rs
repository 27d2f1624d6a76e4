//! The content cache and the status of batches in Redis, shared by every process that uses the same server and prefix.

mod batch_status;
mod connection;
mod failure;
mod scripts;
mod settings;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Script, ScriptInvocation};
use ulid::Ulid;

use connection::Connector;
use scripts::Scripts;

pub use settings::RedisConfig;

use crate::batch_status::BatchStatusStore;
use crate::cache::ContentCache;
use crate::check::{CheckStep, Steps};
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;

/// A [`ContentCache`] and [`BatchStatusStore`] in Redis. It connects on first use, and again when the connection breaks;
/// while the server is unavailable calls fail within the timeout, most of them immediately. Every call may be repeated.
///
/// Keys are `<prefix>:cache:<digest>`, `<prefix>:batch:{<id>}` and `<prefix>:work:{<position>}`.
pub struct RedisStore {
    config: RedisConfig,
    connector: Connector,
    scripts: Scripts,
    health: LinkHealth,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("RedisStore").field("config", &self.config).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Creates a store that is not connected yet. Its calls update `health`.
    ///
    /// # Errors
    /// When a setting is invalid, or the CA file cannot be read.
    pub fn open(config: RedisConfig, health: LinkHealth) -> SyncResult<Self> {
        config.validate()?;
        let connector = Connector::new(config.server()?, config.timeout);
        Ok(Self { config, connector, scripts: Scripts::new(), health })
    }

    /// Checks what a user of the store needs: log in, set a key, get it, remove it, run a script.
    pub async fn check(&self) -> Vec<CheckStep> {
        let mut steps = Steps::default();
        let ping = self.query::<String>("connect", &redis::cmd("PING")).await;
        let remark = |_: &String| {
            let Self { config, .. } = self;
            format!("{}:{}{}", config.host, config.port, if config.tls { ", encrypted" } else { "" })
        };
        if steps.note("connect and log in", ping, remark).is_none() {
            return steps.finish();
        }
        if steps.note("one server, not a cluster", self.refuse_cluster().await, |()| String::new()).is_none()
        {
            return steps.finish();
        }
        let key = *blake3::hash(Ulid::generate().to_string().as_bytes()).as_bytes();
        let value = Bytes::from_static(b"written by a check");
        let ttl = Duration::from_secs(60);
        if steps
            .note("set a key", self.put(&key, value.clone(), ttl).await, |()| self.cache_key(&key))
            .is_none()
        {
            return steps.finish();
        }
        let got = self.get(&key).await.and_then(|got| match got {
            Some(got) if got == value => Ok(()),
            _ => {
                let what = "the key that was set came back with another value: does the server evict keys immediately?";
                Err(SyncError::permanent(Link::Redis, what))
            }
        });
        steps.note("get it and compare", got, |()| "the same".into());
        steps.note("remove it", self.put(&key, value, Duration::ZERO).await, |()| "done".into());
        // The status of batches needs scripts, which the server or the user's rights may not allow.
        let id = format!("weir-check-{}", Ulid::generate());
        steps.note("run a script", self.batch_submitted(&id).await, |()| "done".into());
        steps.finish()
    }

    /// # Errors
    /// When the server is a node of a Redis Cluster, which answers most keys with MOVED.
    async fn refuse_cluster(&self) -> SyncResult<()> {
        let info = self.query::<String>("query the cluster mode", redis::cmd("INFO").arg("cluster")).await;
        // A user may lack the right to INFO; the following steps then show what works.
        match info {
            Ok(info) if is_cluster(&info) => {
                let what = "the server is a node of a Redis Cluster, which this client does not follow from node to \
                            node. Remedy: name a server that is not clustered (one Redis, or one with replicas), or \
                            a proxy or managed endpoint with cluster mode disabled, in redis.host";
                Err(SyncError::permanent(Link::Redis, what))
            }
            _ => Ok(()),
        }
    }

    /// Runs `work` on the connection and records the result in the health of the link.
    async fn call<T, F>(&self, what: &str, work: impl Fn(MultiplexedConnection) -> F) -> SyncResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let result = self.connector.call(work).await;
        let result = result.map_err(|error| {
            let (error, is_link_error) = failure::classify(&self.config, what, error);
            // A refused login is permanent, and still a failure of the link.
            if is_link_error && !error.is_transient() && self.health.failed(&error) {
                tracing::warn!(link = "redis", error = error.in_full(), "the link is down");
            }
            error
        });
        self.health.note(result)
    }

    async fn query<T: redis::FromRedisValue>(&self, what: &str, command: &redis::Cmd) -> SyncResult<T> {
        self.call(what, |mut to| async move { command.query_async(&mut to).await }).await
    }

    /// Runs a script on one key; `add_arguments` adds its arguments after the time to live.
    async fn script<T: redis::FromRedisValue>(
        &self,
        key: String,
        what: &str,
        script: &Script,
        add_arguments: impl Fn(&mut ScriptInvocation<'_>),
    ) -> SyncResult<T> {
        let mut invocation = script.prepare_invoke();
        invocation.key(key).arg(millis(self.config.status_ttl));
        add_arguments(&mut invocation);
        self.call(what, |mut to| {
            let invocation = &invocation;
            async move { invocation.invoke_async(&mut to).await }
        })
        .await
    }

    fn cache_key(&self, key: &[u8; 32]) -> String {
        format!("{}:cache:{}", self.config.prefix, blake3::Hash::from_bytes(*key).to_hex())
    }
}

#[async_trait]
impl ContentCache for RedisStore {
    async fn get(&self, key: &[u8; 32]) -> SyncResult<Option<Bytes>> {
        let command = redis::Cmd::get(self.cache_key(key));
        self.query("get a cached value", &command).await
    }

    async fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) -> SyncResult<()> {
        let key = self.cache_key(key);
        let command = match millis(ttl) {
            0 if ttl.is_zero() => redis::Cmd::del(key),
            ttl => redis::Cmd::pset_ex(key, &value[..], ttl.max(1)),
        };
        self.query("put a cached value", &command).await
    }
}

/// Whole milliseconds, limited to less than Redis accepts as a time to live (about 292 years, counted from 1970).
fn millis(time: Duration) -> u64 {
    const MAX_TTL_MS: u64 = 100 * 365 * 24 * 3600 * 1000;
    u64::try_from(time.as_millis()).unwrap_or(MAX_TTL_MS).min(MAX_TTL_MS)
}

/// Whether the response to INFO cluster is that of a cluster node.
fn is_cluster(info: &str) -> bool {
    info.lines().any(|line| line.trim() == "cluster_enabled:1")
}
