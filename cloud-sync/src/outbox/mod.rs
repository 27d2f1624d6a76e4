//! The outbox: an append-before-acknowledge log of events, on disk.
//!
//! An append is acknowledged once its event is durable. Sending the events reads from here, asynchronously.
//!
//! # On disk
//!
//! ```text
//! <dir>/lock                       locked by the one writer
//! <dir>/cursor                     sequence up to which the consumer has committed
//! <dir>/ages                       ages of the segments, in observed time
//! <dir>/reserve                    space reserved for further segments
//! <dir>/epochs                     which opening assigned which sequences
//! <dir>/open                       present while events may be only buffered
//! <dir>/00000000000000000001.seg   events 1, 2, 3, ...
//! <dir>/00000000000000000412.seg   events 412, ...
//! ```
//! A segment is a header and records; see `segment` and `record` for the format. The segment that is being written
//! ends with zeros, which the next records overwrite (`space` says why).
//!
//! # Invariants
//!
//! 1. An acknowledged event is readable after any crash, until retention deletes it (and counts it).
//! 2. Sequences increase in the order of appending, by one within a segment, and are never reused within an epoch
//!    (`epochs`). They have gaps where appends failed.
//! 3. Records are only written after the last record of a segment, at the end of the file or over durable zeros. A
//!    failed write or fsync closes the segment permanently (`writer`).
//! 4. Every segment but the last is complete, and ends with its last record. A torn tail and zeros are truncated when
//!    the outbox is opened; damage elsewhere is skipped and never prevents the start (`recovery`).
//! 5. Size (of the files, including the zeros), age, and the number of pending appends are limited (`retention`,
//!    [`OutboxConfig`]).
//! 6. Unsent bulk events take at most their share of the size, and never cause the deletion of an unsent event
//!    (`quota`).
//! 7. No step of the wall clock deletes an event.
//! 8. When the end of the log was lost, as far as that can be detected, opening reports it ([`LostEnd`]).
//! 9. A failed append may still be seen by a reader, under a sequence of its own. Delivery to consumers is at least
//!    once in any case.
//!
//! # Map
//!
//! `quota` the share of bulk events; `writer` the one thread that writes; `space` the disk space prepared for it;
//! `retention` what it deletes, `clock` by what time; `disk` its file operations; `recovery` what opening does, and
//! whether the end was lost; `epochs` distinguishes a restored or copied log from the original; `cursor` the
//! consumer's position; `ledger` the statistics; `reader` reading, from any process; `record`, `segment` the format.

mod clock;
mod config;
mod cursor;
mod disk;
mod epochs;
mod error;
mod ledger;
mod quota;
mod reader;
mod record;
mod recovery;
mod retention;
mod segment;
mod space;
mod writer;

use std::fs::{File, TryLockError};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};

use crossbeam_channel::{Sender, TrySendError};
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use config::{Durability, MAX_BULK_SHARE, MIN_MAX_BYTES, OutboxConfig, WhenFull};
pub use epochs::Epochs;
pub use error::OutboxError;
pub use ledger::Stats;
pub use quota::{BulkRoom, BulkTicket};
pub use reader::{Reader, StoredEvent};
pub use recovery::{Damage, LostEnd, Recovery};

use crate::durable;
use crate::event::Event;
use clock::{Ages, Clock};
use config::Settled;
use cursor::Cursor;
use disk::Disk;
use ledger::Shared;
use space::Reserve;
use writer::{Job, Pending, Writer};

/// An open outbox. It can be shared between threads; one process at a time may have it open.
#[derive(Debug)]
pub struct Outbox {
    dir: PathBuf,
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    /// None once closed: another process may then own the directory.
    cursor: Mutex<Option<Cursor>>,
    writer: Mutex<Option<JoinHandle<Result<(), OutboxError>>>>,
    max_payload: usize,
    max_pending: usize,
    max_bytes: u64,
    epochs: Epochs,
}

impl Outbox {
    /// Opens the outbox in `config.dir`, creates it if it does not exist, and returns what was found. Every segment
    /// is read and checked: a fraction of a second per gigabyte if it is in the page cache, otherwise the time that
    /// the disk takes to read it.
    ///
    /// # Errors
    /// [`OutboxError::Config`], [`OutboxError::Locked`], [`OutboxError::Version`], and [`OutboxError::Io`] when the
    /// directory cannot be used. Damaged events are no error: see [`Recovery`].
    pub fn open(config: OutboxConfig) -> Result<(Self, Recovery), OutboxError> {
        let disk = Disk::new(&config.dir);
        Self::open_on(disk, Clock::new(), config)
    }

    fn open_on(disk: Disk, clock: Clock, config: OutboxConfig) -> Result<(Self, Recovery), OutboxError> {
        let settled = config.settle()?;
        let lock = take_lock(disk.dir())?;
        let (cursor, cursor_lost) = Cursor::load(disk.dir())?;
        let ages = Ages::load(disk.dir())?;
        let mut resumed = recovery::resume(&disk, &settled, &ages, cursor.upto())?;
        resumed.report.cursor_lost = cursor_lost;
        let Settled { max_payload, config: OutboxConfig { max_pending, max_bytes, durability, .. }, .. } =
            settled;
        let last = resumed.ledger.segments.back().map(|segment| segment.last);
        resumed.report.lost_end = recovery::detect_loss(disk.dir(), durability, last, cursor.upto())?;
        let reserve = Reserve::open(disk.dir(), settled.config.reserve)
            .map_err(|e| OutboxError::io("reserve space in", disk.dir(), e))?;
        let epochs = Epochs::open(disk.dir(), resumed.next_sequence)?;
        let shared = Arc::new(Shared { ledger: Mutex::new(resumed.ledger), committed: cursor.upto().into() });
        let (jobs, waiting) = crossbeam_channel::bounded(max_pending);
        let path = disk.dir().to_owned();
        let writer = Writer {
            disk,
            settled,
            shared: Arc::clone(&shared),
            clock,
            ages,
            reserve,
            active: resumed.active,
            next_sequence: resumed.next_sequence,
            freed_without_effect: false,
            lock,
        };
        let writer = thread::Builder::new()
            .name("outbox".into())
            .spawn(move || writer.run(&waiting))
            .map_err(|e| OutboxError::io("start the writer of", &path, e))?;
        let outbox = Self {
            dir: path,
            jobs,
            shared,
            cursor: Mutex::new(Some(cursor)),
            writer: Mutex::new(Some(writer)),
            max_payload,
            max_pending,
            max_bytes,
            epochs,
        };
        Ok((outbox, resumed.report))
    }

    /// Its directory, for [`Reader::open`].
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which opening of the outbox assigned which sequences.
    #[must_use]
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Maximum bytes of one event.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Passes `payload` to the writer immediately, and returns a future for its acknowledgement.
    ///
    /// # Errors
    /// The future returns [`OutboxError::Busy`] immediately when `max_pending` appends are already pending (it never
    /// blocks: the caller tells its client to retry), [`OutboxError::TooLarge`], [`OutboxError::Closed`], and
    /// [`OutboxError::Full`], [`OutboxError::Bound`] or [`OutboxError::Io`] when the event could not be made durable.
    /// A later append may succeed.
    pub fn append(&self, payload: Vec<u8>) -> Append {
        if payload.len() > self.max_payload {
            return Append::refused(OutboxError::TooLarge { bytes: payload.len(), max: self.max_payload });
        }
        let (done, answer) = oneshot::channel();
        match self.hand_over(Pending { payload, bulk: false, reserved: 0, done }) {
            Ok(()) => Append::waiting(answer),
            Err(error) => Append::refused(error),
        }
    }

    fn hand_over(&self, pending: Pending) -> Result<(), OutboxError> {
        self.jobs.try_send(Job::Append(pending)).map_err(|error| match error {
            TrySendError::Full(_) => OutboxError::Busy { max_pending: self.max_pending },
            TrySendError::Disconnected(_) => OutboxError::Closed,
        })
    }

    /// Appends an event as JSON.
    ///
    /// # Errors
    /// As [`Self::append`], and [`OutboxError::Encode`].
    pub fn append_event(&self, event: &Event) -> Append {
        match event.to_json() {
            Ok(payload) => self.append(payload),
            Err(e) => Append::refused(OutboxError::Encode(Arc::new(e))),
        }
    }

    /// Records, durably, that the consumer has processed every event up to and including `upto`. A lower value has no
    /// effect. Blocks for an fsync; not for async code.
    ///
    /// # Errors
    /// [`OutboxError::Commit`] above the last acknowledged event, and errors of writing the file. After those the
    /// commit holds until the process ends, and the next commit writes the file again.
    pub fn commit(&self, upto: u64) -> Result<(), OutboxError> {
        let last = self.shared.last_sequence();
        if upto > last {
            return Err(OutboxError::Commit { upto, last });
        }
        let mut cursor = self.cursor.lock();
        let cursor = cursor.as_mut().ok_or(OutboxError::Closed)?;
        let stored = cursor.store(upto);
        // The commit holds anyway: on a full disk it is what frees space, for the cursor as well.
        self.shared.committed.fetch_max(upto, Ordering::AcqRel);
        stored
    }

    /// Sequence up to which the consumer has committed, 0 before the first commit.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.shared.committed()
    }

    /// Sequence of the last acknowledged event, 0 before the first.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.shared.last_sequence()
    }

    /// Statistics, from memory.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats(self.jobs.len())
    }

    /// Writes pending appends, ends the writer and unlocks the directory. Later appends return
    /// [`OutboxError::Closed`]. A second call does nothing. Blocks until all is written.
    ///
    /// # Errors
    /// When events that were only buffered could not be synced to disk.
    pub fn close(&self) -> Result<(), OutboxError> {
        self.cursor.lock().take();
        let Some(writer) = self.writer.lock().take() else { return Ok(()) };
        // A writer that has already ended has nothing left to close.
        let _ = self.jobs.send(Job::Close);
        writer.join().unwrap_or(Err(OutboxError::Closed))
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(error = error.in_full(), "cannot close the outbox cleanly");
        }
    }
}

/// A pending append. It resolves to the event's sequence once the event is as durable as the outbox is configured to
/// make it.
///
/// The writer already has the event: dropping this only discards the result. It needs no runtime; [`Append::wait`] is
/// for callers that are not async.
#[derive(Debug)]
#[must_use = "the event is not durable until this has given its sequence"]
pub struct Append(State);

#[derive(Debug)]
enum State {
    Waiting(oneshot::Receiver<Result<u64, OutboxError>>),
    Refused(OutboxError),
}

impl Append {
    fn waiting(done: oneshot::Receiver<Result<u64, OutboxError>>) -> Self {
        Self(State::Waiting(done))
    }

    fn refused(error: OutboxError) -> Self {
        Self(State::Refused(error))
    }

    /// Blocks the calling thread until the event is durable, and returns its sequence. Not for async code, where it
    /// would block the other tasks of the thread.
    ///
    /// # Errors
    /// Those of [`Outbox::append`].
    pub fn wait(self) -> Result<u64, OutboxError> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut this = pin!(self);
        loop {
            if let Poll::Ready(result) = this.as_mut().poll(&mut context) {
                return result;
            }
            thread::park();
        }
    }
}

impl Future for Append {
    type Output = Result<u64, OutboxError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // On closing, the writer drops the channels of the appends that it no longer writes.
            State::Waiting(done) => {
                Pin::new(done).poll(context).map(|answer| answer.unwrap_or(Err(OutboxError::Closed)))
            }
            State::Refused(error) => Poll::Ready(Err(error.clone())),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn take_lock(dir: &Path) -> Result<File, OutboxError> {
    durable::create_dir_all(dir).map_err(|e| OutboxError::storage("create", dir, 0, e))?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| OutboxError::storage("create", &path, 0, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OutboxError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(e)) => Err(OutboxError::io("lock", &path, e)),
    }
}

#[cfg(test)]
mod tests;
