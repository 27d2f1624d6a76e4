//! The outbox: an append-before-acknowledge log of events, on disk.
//!
//! An append is answered once its event is durable. Everything after that (sending it away) reads from
//! here, in its own time.
//!
//! # On disk
//!
//! ```text
//! <dir>/lock                       held by the one writer
//! <dir>/cursor                     up to where the consumer has committed
//! <dir>/ages                       how old the segments are, in observed time
//! <dir>/reserve                    space for further segments that nobody else gets
//! <dir>/epochs                     which opening gave out which sequences
//! <dir>/open                       there while events may be only buffered
//! <dir>/00000000000000000001.seg   events 1, 2, 3, ...
//! <dir>/00000000000000000412.seg   events 412, ...
//! ```
//! A segment is a header and records; see `segment` and `record` for the bytes. The one that is being
//! written has zeros behind them, which the next records overwrite (`ahead` says why).
//!
//! # Invariants
//!
//! 1. An acknowledged event is readable after any crash, until retention deletes it (and counts it).
//! 2. Sequences rise in the order of appending, by one within a segment, and are never used twice within an
//!    epoch (`epochs`). They have gaps where appends failed.
//! 3. Records are only ever written behind the last one of a segment, where nothing is or durable zeros are.
//!    A failed write or fsync ends the segment for good (`writer`).
//! 4. Every segment but the last is complete, and ends with its last record. A torn tail and zeros are cut
//!    off when the outbox is opened; damage elsewhere is passed over, never a reason not to start (`recovery`).
//! 5. Size (of the files, so with the zeros), age, and the number of waiting appends are bounded (`retention`, [`OutboxConfig`]).
//! 6. Unsent bulk events take at most their share of the size, and have no event deleted that is still to be sent (`quota`).
//! 7. No step of the wall clock deletes an event.
//! 8. Where the end of the log was lost, as far as that can be known, opening says so ([`LostEnd`]).
//! 9. An append that failed may still be seen by a reader, under a sequence of its own. Consumers must
//!    live with at-least-once anyhow.
//!
//! # Map
//!
//! `append` the wait for an acknowledgement; `quota` the share of bulk events; `writer` the one thread that writes; `ahead` the space that it
//! prepares; `retention` what it deletes, `clock` and `ages` by what time; `disk` its file operations; `recovery`
//! what opening does; `loss` whether its end was lost; `epochs` what tells a restored or copied log from the one before; `reserve` its
//! space; `cursor` the consumer's position; `ledger` the numbers; `reader` reading, from any process; `record`, `segment`
//! the format.

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
    /// None once closed: another process may own the directory then.
    cursor: Mutex<Option<Cursor>>,
    writer: Mutex<Option<JoinHandle<Result<(), OutboxError>>>>,
    max_payload: usize,
    max_pending: usize,
    max_bytes: u64,
    epochs: Epochs,
}

impl Outbox {
    /// Opens the outbox in `config.dir`, makes it if it is not there, and says what was found. Every
    /// segment is read and checked: a fraction of a second a gigabyte where the operating system still has
    /// it in memory, and what the disk takes to read it where not.
    ///
    /// # Errors
    /// [`OutboxError::Config`], [`OutboxError::Locked`], [`OutboxError::Version`], and
    /// [`OutboxError::Io`] when the directory cannot be used. Damaged events are none: see [`Recovery`].
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
            freed_in_vain: false,
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

    /// Its directory: what a [`Reader`] of it opens.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which opening of the outbox gave out which sequences.
    #[must_use]
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Most bytes that one event may have.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Hands `payload` to the writer at once, and returns the wait for its acknowledgement.
    ///
    /// # Errors
    /// The wait gives [`OutboxError::Busy`] at once when `max_pending` appends wait already (it never
    /// blocks: the caller answers its client with "try again"), [`OutboxError::TooLarge`],
    /// [`OutboxError::Closed`], and [`OutboxError::Full`], [`OutboxError::Bound`] or
    /// [`OutboxError::Io`] when the event could not be made durable. A later append may succeed.
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

    /// Notes, durably, that the consumer has done with every event up to and including `upto`. Going
    /// back does nothing. Blocks for an fsync; not for async code.
    ///
    /// # Errors
    /// [`OutboxError::Commit`] beyond the last acknowledged event, and what writing a file gives. Then the
    /// commit holds for as long as this process lives, and the next one is written anew.
    pub fn commit(&self, upto: u64) -> Result<(), OutboxError> {
        let last = self.shared.last_sequence();
        if upto > last {
            return Err(OutboxError::Commit { upto, last });
        }
        let mut cursor = self.cursor.lock();
        let cursor = cursor.as_mut().ok_or(OutboxError::Closed)?;
        let stored = cursor.store(upto);
        // It has them all the same: on a full disk that is what makes room again, also for the cursor.
        self.shared.committed.fetch_max(upto, Ordering::AcqRel);
        stored
    }

    /// Up to where the consumer has committed, 0 before the first.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.shared.committed()
    }

    /// Sequence of the last acknowledged event, 0 before the first.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.shared.last_sequence()
    }

    /// The numbers, from memory.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats(self.jobs.len())
    }

    /// Writes what waits, ends the writer and lets go of the directory. Appends after it give
    /// [`OutboxError::Closed`]. Closing twice does nothing the second time. Blocks until all is written.
    ///
    /// # Errors
    /// When events that were only buffered could not be forced to the disk.
    pub fn close(&self) -> Result<(), OutboxError> {
        self.cursor.lock().take();
        let Some(writer) = self.writer.lock().take() else { return Ok(()) };
        // A writer that is gone already has nothing left to close.
        let _ = self.jobs.send(Job::Close);
        writer.join().unwrap_or(Err(OutboxError::Closed))
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(error = error.in_full(), "the outbox was not closed in good order");
        }
    }
}

/// An append on its way to the disk. It gives the event's sequence once the event is as durable as the
/// outbox is configured to make it.
///
/// The event is already with the writer: dropping this only means that nobody learns what became of it.
/// It needs no runtime; [`Append::wait`] is for callers that are not async.
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

    /// Blocks the calling thread until the event is durable, and returns its sequence. Not for async
    /// code, where it would hold up the other tasks of its thread.
    ///
    /// # Errors
    /// What [`Outbox::append`] gives.
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
            // The writer drops what it will not write any more: that is how a close answers.
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
