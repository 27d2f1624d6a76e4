//! One redb file: opened and checked, closed and reopened after a disk error.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use redb::backends::FileBackend;
use redb::{Builder, Durability, ReadTransaction, StorageBackend, WriteTransaction};

use crate::durable;
use crate::error::{Link, SyncError, SyncResult};
use crate::quarantine;

/// Memory for pages of one file, read or to be written. Further pages are written to the file early.
const CACHE_BYTES: usize = 8 << 20;

/// A file of tables. Every call blocks on the disk: not for async code.
///
/// redb accepts no further call after a failed read or write, because it cannot know what is on the disk. So the file
/// is then closed, and the next call reopens it, which repairs it: every committed transaction is there whole, every
/// other not at all.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    handle: RwLock<Handle>,
    #[cfg(test)]
    pub(crate) disk_full: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

#[derive(Debug)]
enum Handle {
    Open(redb::Database),
    /// It failed, or is not open yet.
    Unopened,
    /// Closed permanently.
    Closed,
}

/// Why a transaction was aborted.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The file failed.
    File(redb::Error),
    /// The caller aborts it.
    Refused(SyncError),
}

impl From<SyncError> for Stop {
    fn from(error: SyncError) -> Self {
        Self::Refused(error)
    }
}

impl From<redb::StorageError> for Stop {
    fn from(error: redb::StorageError) -> Self {
        Self::File(error.into())
    }
}

impl From<redb::TableError> for Stop {
    fn from(error: redb::TableError) -> Self {
        Self::File(error.into())
    }
}

impl Database {
    /// Like [`Database::open_or_quarantine`], without quarantining anything.
    #[cfg(test)]
    pub(crate) fn open(path: PathBuf) -> SyncResult<Self> {
        let database = Self::unopened(path)?;
        database.reopen()?;
        Ok(database)
    }

    /// Opens the file, creates it (and its directory) if it does not exist, and checks all of it. A file that is
    /// damaged or of another kind is quarantined, and an empty one takes its place: its contents must not prevent the
    /// start. Returns its new path in that case.
    ///
    /// # Errors
    /// Permanent where it belongs to another process or another version; transient where the disk is full.
    pub(crate) fn open_or_quarantine(path: PathBuf) -> SyncResult<(Self, Option<PathBuf>)> {
        let database = Self::unopened(path)?;
        let damage = match database.open_file() {
            Ok(file) => {
                *database.handle.write() = Handle::Open(file);
                return Ok((database, None));
            }
            Err(error) if is_damage(&error) => error,
            Err(error) => return Err(at(&database.path, "open", &error)),
        };
        let aside = quarantine::quarantine(&database.path)
            .map_err(|e| at(&database.path, "quarantine the damaged", &e.into()))?;
        tracing::error!(
            file = %database.path.display(),
            kept_as = %aside.display(),
            error = %damage,
            "a file is damaged; it is quarantined and an empty one takes its place"
        );
        database.reopen()?;
        Ok((database, Some(aside)))
    }

    fn unopened(path: PathBuf) -> SyncResult<Self> {
        if let Some(dir) = path.parent() {
            durable::create_dir_all(dir).map_err(|e| at(&path, "create the directory of", &e.into()))?;
        }
        Ok(Self {
            path,
            handle: RwLock::new(Handle::Unopened),
            #[cfg(test)]
            disk_full: std::sync::Arc::default(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the latest committed state. Does not wait for writers.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&ReadTransaction) -> Result<T, Stop>) -> SyncResult<T> {
        self.with(|file| {
            let transaction = redb::ReadableDatabase::begin_read(file).map_err(|e| Stop::File(e.into()))?;
            look(&transaction)
        })
    }

    /// A change: all of it or nothing. One writer at a time, others wait. It is on disk when this returns, unless
    /// `durability` says otherwise.
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<T, Stop>,
    ) -> SyncResult<T> {
        self.with(|file| {
            let mut transaction = file.begin_write().map_err(|e| Stop::File(e.into()))?;
            transaction.set_durability(durability).map_err(|e| Stop::File(e.into()))?;
            let value = change(&transaction)?;
            transaction.commit().map_err(|e| Stop::File(e.into()))?;
            Ok(value)
        })
    }

    /// Closes the file permanently, after the current calls.
    pub(crate) fn close(&self) {
        *self.handle.write() = Handle::Closed;
    }

    fn with<T>(&self, work: impl FnOnce(&redb::Database) -> Result<T, Stop>) -> SyncResult<T> {
        if matches!(*self.handle.read(), Handle::Unopened) {
            self.reopen()?;
        }
        let worked = match &*self.handle.read() {
            Handle::Open(file) => work(file),
            Handle::Unopened => Err(Stop::File(redb::Error::PreviousIo)),
            Handle::Closed => Err(Stop::File(redb::Error::DatabaseClosed)),
        };
        worked.map_err(|stop| match stop {
            Stop::Refused(error) => error,
            Stop::File(error) => {
                self.close_after_error();
                at(&self.path, "use", &error)
            }
        })
    }

    fn close_after_error(&self) {
        let mut handle = self.handle.write();
        if matches!(*handle, Handle::Open(_)) {
            *handle = Handle::Unopened;
        }
    }

    fn reopen(&self) -> SyncResult<()> {
        let mut handle = self.handle.write();
        if matches!(*handle, Handle::Unopened) {
            *handle = Handle::Open(self.open_file().map_err(|error| at(&self.path, "open", &error))?);
        }
        Ok(())
    }

    fn open_file(&self) -> Result<redb::Database, redb::Error> {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        // It reads the whole file. The files are small, and redb trusts what it has not checked: it would panic on a
        // damaged page in the middle of work.
        builder.set_check_integrity_on_open(true);
        let open = || File::options().read(true).write(true).open(&self.path);
        let file = match open() {
            // Only then: after any other error there may be data under its name.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.create_file(&builder)?;
                open()
            }
            opened => opened,
        };
        let file = file.map_err(|error| match self.path.read_link() {
            Ok(target) if error.kind() == ErrorKind::NotFound => {
                let text = format!("it is a link to {}, which does not exist", target.display());
                std::io::Error::new(ErrorKind::NotFound, text)
            }
            _ => error,
        })?;
        if let Some(dir) = self.path.parent() {
            // Otherwise a loss of power could lose the file with everything that was synced to it. Also where it is
            // not new: the process that created it may have been killed before this.
            durable::sync_dir(dir)?;
        }
        Ok(builder.create_with_backend(self.backend(file)?)?)
    }

    /// Creates an empty file. It gets its name when it is complete: an incomplete one would count as damaged. A file
    /// that has the name by then is left, and opened.
    fn create_file(&self, builder: &Builder) -> Result<(), redb::Error> {
        let unfinished = self.path.with_extension("new");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&unfinished)?;
        let made = || -> Result<(), redb::Error> {
            drop(builder.create_with_backend(self.backend(file.try_clone()?)?)?);
            durable::sync_file(&file)?;
            match durable::rename_new(&unfinished, &self.path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(fs::remove_file(&unfinished)?),
                renamed => Ok(renamed?),
            }
        };
        made().inspect_err(|_| drop(fs::remove_file(&unfinished)))
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests put faults there")]
    fn backend(&self, file: File) -> Result<impl StorageBackend + use<>, redb::Error> {
        Ok(FileBackend::new(file)?)
    }

    #[cfg(test)]
    fn backend(&self, file: File) -> Result<impl StorageBackend + use<>, redb::Error> {
        let synced = file.try_clone()?;
        let full = std::sync::Arc::clone(&self.disk_full);
        Ok(tests::TestDisk { file: FileBackend::new(file)?, synced, full })
    }
}

/// Whether the file is damaged or of another kind, permanently.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) => true,
        redb::Error::Io(io) => matches!(io.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
        _ => false,
    }
}

fn at(path: &Path, what: &str, error: &redb::Error) -> SyncError {
    let path = path.display();
    let permanent = |text: String| SyncError::permanent(Link::Disk, text);
    match error {
        redb::Error::DatabaseAlreadyOpen => permanent(format!("{path} is in use by another process")),
        redb::Error::Corrupted(_) => {
            permanent(format!("{path} is damaged: move it away to start with an empty one"))
                .because(error.to_string())
        }
        redb::Error::Io(io) => match io.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => permanent(format!(
                "{path} is damaged or of another kind: move it away to start with an empty one"
            ))
            .because(error.to_string()),
            ErrorKind::PermissionDenied | ErrorKind::IsADirectory | ErrorKind::NotADirectory => {
                permanent(format!("cannot {what} {path}")).because(error.to_string())
            }
            // With its kind: it shows whether the disk is full.
            kind => SyncError::transient(Link::Disk, format!("cannot {what} {path}"))
                .because(std::io::Error::new(kind, error.to_string())),
        },
        redb::Error::PreviousIo
        | redb::Error::TransactionInProgress
        | redb::Error::TransactionPoisoned
        | redb::Error::RepairAborted => {
            SyncError::transient(Link::Disk, format!("cannot {what} {path}")).because(error.to_string())
        }
        redb::Error::DatabaseClosed => permanent(format!("{path} is closed")),
        _ => permanent(format!("{path} was written by another version of this program"))
            .because(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
