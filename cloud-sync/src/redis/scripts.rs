//! Changes of a batch in Redis: each is one Lua script, so that it is atomic for every process.
//!
//! A batch is one hash, so that a server with eviction removes all of it or nothing. Beside the fields of its status it
//! has one for each completed chunk, `c:<chunk>`: the position of the delivery that completed it.
//! Times are those of the Redis server, in milliseconds, because the workers' clocks differ. They never run backwards.

use redis::Script;

/// The fields of a batch's hash that make up its status, in the order in which they are read.
pub(super) const FIELDS: [&str; 12] = [
    "request_id",
    "total",
    "chunks",
    "digest",
    "phase",
    "submitted",
    "completed",
    "failed",
    "done",
    "created",
    "updated",
    "outcome",
];

/// Common part of the batch scripts. KEYS: the batch. ARGV: milliseconds to live, then, where the script
/// may create the batch, its id, total, chunks and digest, then its own.
const COMMON: &str = r"
local batch = KEYS[1]

local function has(field)
    return redis.call('HEXISTS', batch, field) == 1
end

local function touch()
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local before = tonumber(redis.call('HGET', batch, 'updated') or '0')
    if before > now then
        now = before
    end
    redis.call('HSET', batch, 'updated', string.format('%.0f', now))
    redis.call('HSETNX', batch, 'created', string.format('%.0f', now))
    redis.call('PEXPIRE', batch, ARGV[1])
end

local function create(submitted)
    if redis.call('EXISTS', batch) == 1 then
        return false
    end
    redis.call('HSET', batch, 'request_id', ARGV[2], 'total', ARGV[3], 'chunks', ARGV[4], 'digest', ARGV[5],
        'phase', 'queued', 'submitted', submitted, 'completed', '0', 'failed', '0', 'done', '0')
    touch()
    return true
end

local function begin()
    if redis.call('HGET', batch, 'phase') == 'queued' then
        redis.call('HSET', batch, 'phase', 'processing')
    end
end
";

/// -> {created, the fields of the existing batch}
const CREATE: &str = r"
if create('0') then
    return {1, false}
end
return {0, redis.call('HMGET', batch, unpack(ARGV, 6))}
";

const SUBMITTED: &str = r"
if redis.call('HGET', batch, 'submitted') == '0' then
    redis.call('HSET', batch, 'submitted', '1')
    touch()
end
return 0
";

/// ARGV: chunk -> {created, position that completed it, has an outcome, is cancelled}
const START: &str = r"
local created = create('1')
begin()
local finished = has('outcome')
if not finished then
    touch()
end
return {created and 1 or 0, redis.call('HGET', batch, 'c:' .. ARGV[6]), finished and 1 or 0,
    redis.call('HGET', batch, 'phase') == 'cancelled' and 1 or 0}
";

/// ARGV: chunk, position, classified, failed -> {position that completed it, chunks done, to finish}
const COMPLETE: &str = r"
create('1')
local finished = has('outcome')
local owner = 'c:' .. ARGV[6]
if redis.call('HSETNX', batch, owner, ARGV[7]) == 1 then
    redis.call('HINCRBY', batch, 'done', 1)
    if not finished then
        redis.call('HINCRBY', batch, 'completed', ARGV[8])
        redis.call('HINCRBY', batch, 'failed', ARGV[9])
        begin()
    end
    touch()
end
local done = redis.call('HGET', batch, 'done')
local all = tonumber(done) >= tonumber(redis.call('HGET', batch, 'chunks'))
return {redis.call('HGET', batch, owner), done, (all and not finished) and 1 or 0}
";

/// ARGV: outcome, phase, classified, failed -> phase
const FINISH: &str = r"
create('1')
if not has('outcome') then
    if redis.call('HGET', batch, 'phase') ~= 'cancelled' then
        redis.call('HSET', batch, 'phase', ARGV[7])
    end
    redis.call('HSET', batch, 'outcome', ARGV[6], 'completed', ARGV[8], 'failed', ARGV[9])
    touch()
end
return redis.call('HGET', batch, 'phase')
";

/// ARGV: the names of the fields -> the fields
const CANCEL: &str = r"
create('1')
if not has('outcome') and redis.call('HGET', batch, 'phase') ~= 'cancelled' then
    redis.call('HSET', batch, 'phase', 'cancelled')
    touch()
end
return redis.call('HMGET', batch, unpack(ARGV, 6))
";

/// KEYS: the starts of the work on a message: `starts`, `image`, `step`, and for each image at which
/// one ended `e:<image>`. ARGV: milliseconds to live, image or nothing, step
const BEGIN_WORK: &str = r"
local work = KEYS[1]
if redis.call('HGET', work, 'step') == ARGV[3] then
    redis.call('PEXPIRE', work, ARGV[1])
    return 0
end
local image = redis.call('HGET', work, 'image')
if image then
    redis.call('HINCRBY', work, 'e:' .. image, 1)
    redis.call('HDEL', work, 'image')
end
redis.call('HINCRBY', work, 'starts', 1)
redis.call('HSET', work, 'step', ARGV[3])
if ARGV[2] ~= '' then
    redis.call('HSET', work, 'image', ARGV[2])
end
redis.call('PEXPIRE', work, ARGV[1])
return 0
";

/// ARGV: milliseconds to live, step, or nothing when the message is done
const END_WORK: &str = r"
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
elseif redis.call('HGET', KEYS[1], 'step') == ARGV[2] then
    redis.call('HDEL', KEYS[1], 'image', 'step')
    if redis.call('HINCRBY', KEYS[1], 'starts', -1) < 1 then
        redis.call('DEL', KEYS[1])
    end
end
return 0
";

/// The scripts, each with the digest under which Redis caches it.
pub(super) struct Scripts {
    pub(super) create: Script,
    pub(super) submitted: Script,
    pub(super) start: Script,
    pub(super) complete: Script,
    pub(super) finish: Script,
    pub(super) begin_work: Script,
    pub(super) cancel: Script,
    pub(super) end_work: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let script = |own: &str| Script::new(&format!("{COMMON}{own}"));
        Self {
            create: script(CREATE),
            submitted: script(SUBMITTED),
            start: script(START),
            complete: script(COMPLETE),
            finish: script(FINISH),
            begin_work: Script::new(BEGIN_WORK),
            cancel: script(CANCEL),
            end_work: Script::new(END_WORK),
        }
    }
}
