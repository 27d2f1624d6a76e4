//! The state store in Redis, shared by every process that names the same server and prefix.

mod connection;
mod failure;
mod scripts;
mod server;
mod settings;
mod status;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Script, ScriptInvocation};
use ulid::Ulid;

use connection::Connector;
use scripts::{FIELDS, Scripts};
pub use settings::RedisConfig;
use status::{Fields, parse_phase, phase_name, status, work_starts};

use super::{
    BatchOutcome, BatchPhase, BatchSpec, BatchStatus, ChunkDone, ChunkStart, Created, StateStore, WorkStarts,
};
use crate::check::{CheckStep, Steps};
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;

/// State in Redis. It connects when it is first used, and again when the connection breaks; while the
/// server is away calls fail within the timeout, most of them at once. Every call may be repeated.
///
/// Keys are `<prefix>:cache:<digest>` and `<prefix>:batch:{<id>}` and `<prefix>:work:{<position>}`.
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
    /// A store that is not connected yet. `health` shows how its calls fare.
    ///
    /// # Errors
    /// When a setting cannot be, or the CA file cannot be read.
    pub fn open(config: RedisConfig, health: LinkHealth) -> SyncResult<Self> {
        config.validate()?;
        let connector = Connector::new(config.server()?, config.timeout);
        Ok(Self { config, connector, scripts: Scripts::new(), health })
    }

    /// Tries what a user of the store needs: log in, set a key, get it, remove it.
    pub async fn check(&self) -> Vec<CheckStep> {
        let mut steps = Steps::default();
        let ping = self
            .call("connect", |mut to| async move { redis::cmd("PING").query_async::<String>(&mut to).await });
        let remark = |_: &String| {
            let Self { config, .. } = self;
            format!("{}:{}{}", config.host, config.port, if config.tls { ", encrypted" } else { "" })
        };
        if steps.note("connect and log in", ping.await, remark).is_none() {
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
                let what = "the key that was set came back otherwise: does the server evict at once?";
                Err(SyncError::permanent(Link::Redis, what))
            }
        });
        steps.note("get it and compare", got, |()| "the same".into());
        steps.note("remove it", self.put(&key, value, Duration::ZERO).await, |()| "done".into());
        // The batches need scripts, which a server or a user may not be allowed.
        let id = format!("weir-check-{}", Ulid::generate());
        steps.note("run a script", self.batch_submitted(&id).await, |()| "done".into());
        steps.finish()
    }

    /// # Errors
    /// When the server is a node of a Redis Cluster, which answers most keys with MOVED.
    async fn refuse_cluster(&self) -> SyncResult<()> {
        let asked = self.call("ask for the mode", |mut to| async move {
            redis::cmd("INFO").arg("cluster").query_async::<String>(&mut to).await
        });
        // A user may lack the right to INFO; the steps that follow then show what works.
        match asked.await {
            Ok(info) if is_cluster(&info) => {
                let what = "the server is a node of a Redis Cluster, which this client does not follow from node to \
                            node. Remedy: name a server that is not clustered (one Redis, or one with replicas), or \
                            a proxy or managed endpoint with cluster mode disabled, in redis.host";
                Err(SyncError::permanent(Link::Redis, what))
            }
            _ => Ok(()),
        }
    }

    async fn call<T, F>(&self, what: &str, work: impl Fn(MultiplexedConnection) -> F) -> SyncResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let result = self.connector.call(work).await;
        let result = result.map_err(|error| {
            let (error, of_the_link) = failure::classify(&self.config, what, error);
            // A refused login is permanent, and still the link's.
            if of_the_link && !error.is_transient() && self.health.failed(&error) {
                tracing::warn!(link = "redis", error = error.in_full(), "the link is down");
            }
            error
        });
        self.health.note(result)
    }

    /// Calls a script on a batch; `more` adds its own arguments.
    async fn script<T: redis::FromRedisValue>(
        &self,
        what: &str,
        request_id: &str,
        script: &Script,
        more: impl Fn(&mut ScriptInvocation<'_>),
    ) -> SyncResult<T> {
        let key = self.batch_key(request_id);
        self.script_on(key, &format!("{what} {request_id:?}"), script, more).await
    }

    /// Calls a script on the starts of the work on a message; `more` adds its own arguments.
    async fn work_script<T: redis::FromRedisValue>(
        &self,
        position: &str,
        script: &Script,
        more: impl Fn(&mut ScriptInvocation<'_>),
    ) -> SyncResult<T> {
        let key = self.work_key(position);
        self.script_on(key, &format!("note the work on message {position:?}"), script, more).await
    }

    async fn script_on<T: redis::FromRedisValue>(
        &self,
        key: String,
        what: &str,
        script: &Script,
        more: impl Fn(&mut ScriptInvocation<'_>),
    ) -> SyncResult<T> {
        let mut invocation = script.prepare_invoke();
        invocation.key(key).arg(millis(self.config.status_ttl));
        more(&mut invocation);
        self.call(what, |mut to| {
            let invocation = &invocation;
            async move { invocation.invoke_async(&mut to).await }
        })
        .await
    }

    fn cache_key(&self, key: &[u8; 32]) -> String {
        format!("{}:cache:{}", self.config.prefix, blake3::Hash::from_bytes(*key).to_hex())
    }

    fn batch_key(&self, request_id: &str) -> String {
        format!("{}:batch:{{{request_id}}}", self.config.prefix)
    }

    fn work_key(&self, position: &str) -> String {
        format!("{}:work:{{{position}}}", self.config.prefix)
    }
}

#[async_trait]
impl StateStore for RedisStore {
    async fn get(&self, key: &[u8; 32]) -> SyncResult<Option<Bytes>> {
        let command = redis::Cmd::get(self.cache_key(key));
        self.call("get a cached value", |mut to| {
            let command = &command;
            async move { command.query_async(&mut to).await }
        })
        .await
    }

    async fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) -> SyncResult<()> {
        let key = self.cache_key(key);
        let command = match millis(ttl) {
            0 if ttl.is_zero() => redis::Cmd::del(key),
            ttl => redis::Cmd::pset_ex(key, &value[..], ttl.max(1)),
        };
        self.call("keep a cached value", |mut to| {
            let command = &command;
            async move { command.query_async(&mut to).await }
        })
        .await
    }

    async fn create_batch(&self, spec: &BatchSpec) -> SyncResult<Created> {
        let (created, found): (bool, Option<Fields>) = self
            .script("create batch", &spec.request_id, &self.scripts.create, |to| {
                describe(to, spec).arg(&FIELDS);
            })
            .await?;
        match found {
            Some(fields) if !created => {
                let status = status(fields).map_err(|what| self.strange(&spec.request_id, &what))?;
                Ok(Created::Existing(Box::new(status)))
            }
            _ => Ok(Created::New),
        }
    }

    async fn batch_submitted(&self, request_id: &str) -> SyncResult<()> {
        self.script("note as submitted batch", request_id, &self.scripts.submitted, |_| {}).await
    }

    async fn start_chunk(&self, spec: &BatchSpec, chunk: u32) -> SyncResult<ChunkStart> {
        let (created, done_by, finished, cancelled) = self
            .script("start a chunk of batch", &spec.request_id, &self.scripts.start, |to| {
                describe(to, spec).arg(chunk);
            })
            .await?;
        Ok(ChunkStart { created, done_by, finished, cancelled })
    }

    async fn complete_chunk(
        &self,
        spec: &BatchSpec,
        chunk: u32,
        position: &str,
        completed: u64,
        failed: u64,
    ) -> SyncResult<ChunkDone> {
        let (owner, chunks_done, to_finish) = self
            .script("complete a chunk of batch", &spec.request_id, &self.scripts.complete, |to| {
                describe(to, spec).arg(chunk).arg(position).arg(completed).arg(failed);
            })
            .await?;
        Ok(ChunkDone { owner, chunks_done, to_finish })
    }

    async fn finish_batch(&self, spec: &BatchSpec, outcome: &BatchOutcome) -> SyncResult<BatchPhase> {
        let text = json(outcome)?;
        let phase: String = self
            .script("finish batch", &spec.request_id, &self.scripts.finish, |to| {
                let phase = phase_name(outcome.phase);
                describe(to, spec).arg(&text).arg(phase).arg(outcome.completed).arg(outcome.failed);
            })
            .await?;
        parse_phase(&phase).ok_or_else(|| self.strange(&spec.request_id, &format!("phase is {phase:?}")))
    }

    async fn cancel_batch(&self, spec: &BatchSpec) -> SyncResult<BatchStatus> {
        let fields: Fields = self
            .script("cancel batch", &spec.request_id, &self.scripts.cancel, |to| {
                describe(to, spec).arg(&FIELDS);
            })
            .await?;
        status(fields).map_err(|what| self.strange(&spec.request_id, &what))
    }

    async fn batch(&self, request_id: &str) -> SyncResult<Option<BatchStatus>> {
        // By name: a large batch has thousands of fields more.
        let command = redis::Cmd::hmget(self.batch_key(request_id), &FIELDS);
        let fields: Fields = self
            .call(&format!("read batch {request_id:?}"), |mut to| {
                let command = &command;
                async move { command.query_async(&mut to).await }
            })
            .await?;
        if fields.iter().all(Option::is_none) {
            return Ok(None);
        }
        status(fields).map(Some).map_err(|what| self.strange(request_id, &what))
    }

    async fn forget_batch(&self, request_id: &str) -> SyncResult<()> {
        let command = redis::Cmd::del(self.batch_key(request_id));
        self.call(&format!("forget batch {request_id:?}"), |mut to| {
            let command = &command;
            async move { command.query_async(&mut to).await }
        })
        .await
    }

    async fn work_starts(&self, position: &str) -> SyncResult<WorkStarts> {
        let command = redis::Cmd::hgetall(self.work_key(position));
        let fields: BTreeMap<String, u64> = self
            .call(&format!("read the starts of {position:?}"), |mut to| {
                let command = &command;
                async move { command.query_async(&mut to).await }
            })
            .await?;
        Ok(work_starts(&fields))
    }

    async fn begin_work(&self, position: &str, image: Option<u64>, step: u64) -> SyncResult<()> {
        let image = image.map_or_else(String::new, |image| image.to_string());
        self.work_script(position, &self.scripts.begin_work, |to| {
            to.arg(&image).arg(step);
        })
        .await
    }

    async fn end_work(&self, position: &str, step: Option<u64>) -> SyncResult<()> {
        let step = step.map_or_else(String::new, |step| step.to_string());
        self.work_script(position, &self.scripts.end_work, |to| {
            to.arg(&step);
        })
        .await
    }
}

impl RedisStore {
    fn strange(&self, request_id: &str, what: &str) -> SyncError {
        let key = self.batch_key(request_id);
        SyncError::permanent(Link::Redis, format!("{key} holds no batch of ours: {what}"))
    }
}

fn describe<'a, 'b>(to: &'a mut ScriptInvocation<'b>, spec: &BatchSpec) -> &'a mut ScriptInvocation<'b> {
    to.arg(&spec.request_id).arg(spec.total).arg(spec.chunks).arg(&spec.digest)
}

fn json(outcome: &BatchOutcome) -> SyncResult<String> {
    serde_json::to_string(outcome)
        .map_err(|error| SyncError::permanent(Link::Redis, "cannot write an outcome as JSON").because(error))
}

/// Whole milliseconds, at most what Redis takes as a time to live (about 292 years, counted from 1970).
fn millis(time: Duration) -> u64 {
    const MAX_TTL_MS: u64 = 100 * 365 * 24 * 3600 * 1000;
    u64::try_from(time.as_millis()).unwrap_or(MAX_TTL_MS).min(MAX_TTL_MS)
}

/// Whether the answer to INFO cluster is that of a cluster's node.
fn is_cluster(info: &str) -> bool {
    info.lines().any(|line| line.trim() == "cluster_enabled:1")
}
