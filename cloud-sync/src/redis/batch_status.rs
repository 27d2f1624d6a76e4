//! The status of batches in Redis: each call one script, and the parsing of what a batch's hash holds.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::{Script, ScriptInvocation};

use super::RedisStore;
use super::scripts::FIELDS;
use crate::batch_status::{
    BatchOutcome, BatchPhase, BatchSpec, BatchStatus, BatchStatusStore, ChunkDone, ChunkStart, Created,
    WorkStarts,
};
use crate::error::{Link, SyncError, SyncResult};

/// Fields of a batch, in the order of [`FIELDS`].
type Fields = Vec<Option<String>>;

impl RedisStore {
    /// Runs a script on a batch; `add_arguments` adds its own arguments.
    async fn batch_script<T: redis::FromRedisValue>(
        &self,
        what: &str,
        request_id: &str,
        script: &Script,
        add_arguments: impl Fn(&mut ScriptInvocation<'_>),
    ) -> SyncResult<T> {
        let key = self.batch_key(request_id);
        self.script(key, &format!("{what} {request_id:?}"), script, add_arguments).await
    }

    /// Runs a script on the starts of the work on a message; `add_arguments` adds its own arguments.
    async fn work_script<T: redis::FromRedisValue>(
        &self,
        position: &str,
        script: &Script,
        add_arguments: impl Fn(&mut ScriptInvocation<'_>),
    ) -> SyncResult<T> {
        let key = self.work_key(position);
        self.script(key, &format!("record the work on message {position:?}"), script, add_arguments).await
    }

    fn batch_key(&self, request_id: &str) -> String {
        format!("{}:batch:{{{request_id}}}", self.config.prefix)
    }

    fn work_key(&self, position: &str) -> String {
        format!("{}:work:{{{position}}}", self.config.prefix)
    }

    fn invalid_batch(&self, request_id: &str, what: &str) -> SyncError {
        let key = self.batch_key(request_id);
        SyncError::permanent(Link::Redis, format!("{key} is not a valid batch: {what}"))
    }
}

#[async_trait]
impl BatchStatusStore for RedisStore {
    async fn create_batch(&self, spec: &BatchSpec) -> SyncResult<Created> {
        let (created, found): (bool, Option<Fields>) = self
            .batch_script("create batch", &spec.request_id, &self.scripts.create, |to| {
                add_spec(to, spec).arg(&FIELDS);
            })
            .await?;
        match found {
            Some(fields) if !created => {
                let status = status(fields).map_err(|what| self.invalid_batch(&spec.request_id, &what))?;
                Ok(Created::Existing(Box::new(status)))
            }
            _ => Ok(Created::New),
        }
    }

    async fn batch_submitted(&self, request_id: &str) -> SyncResult<()> {
        self.batch_script("record the submission of batch", request_id, &self.scripts.submitted, |_| {}).await
    }

    async fn start_chunk(&self, spec: &BatchSpec, chunk: u32) -> SyncResult<ChunkStart> {
        let (created, done_by, finished, cancelled) = self
            .batch_script("start a chunk of batch", &spec.request_id, &self.scripts.start, |to| {
                add_spec(to, spec).arg(chunk);
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
            .batch_script("complete a chunk of batch", &spec.request_id, &self.scripts.complete, |to| {
                add_spec(to, spec).arg(chunk).arg(position).arg(completed).arg(failed);
            })
            .await?;
        Ok(ChunkDone { owner, chunks_done, to_finish })
    }

    async fn finish_batch(&self, spec: &BatchSpec, outcome: &BatchOutcome) -> SyncResult<BatchPhase> {
        let text = json(outcome)?;
        let phase: String = self
            .batch_script("finish batch", &spec.request_id, &self.scripts.finish, |to| {
                let phase = phase_name(outcome.phase);
                add_spec(to, spec).arg(&text).arg(phase).arg(outcome.completed).arg(outcome.failed);
            })
            .await?;
        parse_phase(&phase)
            .ok_or_else(|| self.invalid_batch(&spec.request_id, &format!("phase is {phase:?}")))
    }

    async fn cancel_batch(&self, spec: &BatchSpec) -> SyncResult<BatchStatus> {
        let fields: Fields = self
            .batch_script("cancel batch", &spec.request_id, &self.scripts.cancel, |to| {
                add_spec(to, spec).arg(&FIELDS);
            })
            .await?;
        status(fields).map_err(|what| self.invalid_batch(&spec.request_id, &what))
    }

    async fn batch(&self, request_id: &str) -> SyncResult<Option<BatchStatus>> {
        // By name: a large batch has thousands of other fields.
        let command = redis::Cmd::hmget(self.batch_key(request_id), &FIELDS);
        let fields: Fields = self.query(&format!("read batch {request_id:?}"), &command).await?;
        if fields.iter().all(Option::is_none) {
            return Ok(None);
        }
        status(fields).map(Some).map_err(|what| self.invalid_batch(request_id, &what))
    }

    async fn forget_batch(&self, request_id: &str) -> SyncResult<()> {
        let command = redis::Cmd::del(self.batch_key(request_id));
        self.query(&format!("forget batch {request_id:?}"), &command).await
    }

    async fn work_starts(&self, position: &str) -> SyncResult<WorkStarts> {
        let command = redis::Cmd::hgetall(self.work_key(position));
        let fields: BTreeMap<String, u64> =
            self.query(&format!("read the starts of {position:?}"), &command).await?;
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

fn add_spec<'a, 'b>(to: &'a mut ScriptInvocation<'b>, spec: &BatchSpec) -> &'a mut ScriptInvocation<'b> {
    to.arg(&spec.request_id).arg(spec.total).arg(spec.chunks).arg(&spec.digest)
}

fn json(outcome: &BatchOutcome) -> SyncResult<String> {
    serde_json::to_string(outcome)
        .map_err(|error| SyncError::permanent(Link::Redis, "cannot serialize an outcome").because(error))
}

/// Parses a batch from its fields; the error names the invalid one.
fn status(fields: Fields) -> Result<BatchStatus, String> {
    let mut fields = fields.into_iter();
    let mut next = || fields.next().flatten();
    let mut text = |name: &str| next().ok_or_else(|| format!("{name} is missing"));
    let number = |name: &str, text: String| text.parse::<u64>().map_err(|_| format!("{name} is {text:?}"));
    let small = |name: &str, text: String| text.parse::<u32>().map_err(|_| format!("{name} is {text:?}"));
    let time = |name: &str, text: String| {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number(name, text)?));
        at.ok_or_else(|| format!("{name} is out of range"))
    };
    let spec = BatchSpec {
        request_id: text("request_id")?,
        total: number("total", text("total")?)?,
        chunks: small("chunks", text("chunks")?)?,
        digest: text("digest")?,
    };
    let phase = text("phase")?;
    let phase = parse_phase(&phase).ok_or_else(|| format!("phase is {phase:?}"))?;
    Ok(BatchStatus {
        spec,
        phase,
        submitted: text("submitted")? == "1",
        completed: number("completed", text("completed")?)?,
        failed: number("failed", text("failed")?)?,
        chunks_done: small("done", text("done")?)?,
        created: time("created", text("created")?)?,
        updated: time("updated", text("updated")?)?,
        outcome: next()
            .map(|text| serde_json::from_str(&text).map_err(|error| format!("outcome: {error}")))
            .transpose()?
            // The batch may have been cancelled before its outcome was recorded.
            .map(|outcome: BatchOutcome| BatchOutcome { phase, ..outcome }),
    })
}

fn phase_name(phase: BatchPhase) -> &'static str {
    match phase {
        BatchPhase::Queued => "queued",
        BatchPhase::Processing => "processing",
        BatchPhase::Completed => "completed",
        BatchPhase::Failed => "failed",
        BatchPhase::Cancelled => "cancelled",
    }
}

fn parse_phase(name: &str) -> Option<BatchPhase> {
    let all = [
        BatchPhase::Queued,
        BatchPhase::Processing,
        BatchPhase::Completed,
        BatchPhase::Failed,
        BatchPhase::Cancelled,
    ];
    all.into_iter().find(|phase| phase_name(*phase) == name)
}

/// Parses the starts of the work on a message from the fields of their hash.
fn work_starts(fields: &BTreeMap<String, u64>) -> WorkStarts {
    let narrow = |count: &u64| u32::try_from(*count).unwrap_or(u32::MAX);
    let ended = fields.iter().filter_map(|(name, count)| {
        let image = name.strip_prefix("e:")?.parse().ok()?;
        Some((image, narrow(count)))
    });
    let starts = fields.get("starts").map_or(0, narrow);
    let (image, step) = (fields.get("image").copied(), fields.get("step").copied());
    WorkStarts { starts, image, step, ended_at: ended.collect() }.so_far()
}
