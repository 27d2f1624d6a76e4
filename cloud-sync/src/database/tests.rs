//! A file that fails, is damaged, or belongs to another program or version.

use std::fs;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{BackendError, ReadableTable, ReadableTableMetadata, TableDefinition};

use super::*;

const NUMBERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("numbers");

/// A disk on which, while `full`, nothing new can be written, and whose fsyncs can be observed.
#[derive(Debug)]
pub(super) struct TestDisk {
    pub(super) file: FileBackend,
    /// The same file, for the fsync.
    pub(super) synced: File,
    pub(super) full: Arc<AtomicBool>,
}

impl TestDisk {
    fn fault(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for TestDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fault()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        crate::durable::sync_data(&self.synced)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.fault()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

fn put(database: &Database, n: u64, bytes: usize) -> SyncResult<()> {
    database.write(Durability::Immediate, |txn| {
        txn.open_table(NUMBERS)?.insert(n, vec![n as u8; bytes].as_slice())?;
        Ok(())
    })
}

fn all(database: &Database) -> SyncResult<Vec<(u64, usize)>> {
    database.read(|txn| {
        let table = txn.open_table(NUMBERS)?;
        assert_eq!(table.len()?, table.iter()?.count() as u64);
        let mut found = Vec::new();
        for row in table.iter()? {
            let (n, bytes) = row?;
            assert!(bytes.value().iter().all(|byte| u64::from(*byte) == n.value() & 0xff));
            found.push((n.value(), bytes.value().len()));
        }
        Ok(found)
    })
}

#[test]
fn a_full_disk_is_an_error_that_passes_and_leaves_nothing_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/folder/x.redb");
    let database = Database::open(path.clone()).unwrap();
    put(&database, 1, 10).unwrap();
    for round in 2..6 {
        database.disk_full.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            let error = put(&database, round, 3 << 20).unwrap_err();
            assert!(error.is_transient(), "{}", error.in_full());
            assert!(error.in_full().contains("x.redb"), "{}", error.in_full());
        }
        database.disk_full.store(false, Ordering::SeqCst);
        assert_eq!(all(&database).unwrap().last().map(|row| row.0), Some(round - 1));
        put(&database, round, 3 << 20).unwrap();
    }
    drop(database);
    assert_eq!(all(&Database::open(path).unwrap()).unwrap().len(), 5);
}

#[test]
fn a_file_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let database = Database::open(path.clone()).unwrap();
    let error = Database::open(path.clone()).unwrap_err();
    assert!(!error.is_transient());
    assert!(error.in_full().contains("x.redb is in use by another process"), "{}", error.in_full());
    database.close();
    assert!(put(&database, 1, 1).unwrap_err().in_full().contains("closed"));
    drop(Database::open(path).unwrap());
}

#[test]
fn a_foreign_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (n, bytes) in [&b"not a database"[..], &[0; 8192], &[0xff; 100_000]].into_iter().enumerate() {
        let path = dir.path().join(format!("{n}.redb"));
        fs::write(&path, bytes).unwrap();
        let error = Database::open(path.clone()).unwrap_err();
        assert!(!error.is_transient(), "{}", error.in_full());
        assert!(error.in_full().contains(&format!("{n}.redb")), "{}", error.in_full());
        assert_eq!(fs::read(&path).unwrap(), bytes, "it was changed");
    }
    let error = Database::open(dir.path().to_owned()).unwrap_err();
    assert!(!error.is_transient(), "{}", error.in_full());
}

#[test]
fn a_name_that_something_has_is_never_given_to_an_empty_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (dir.path().join("x.redb"), dir.path().join("disk/x.redb"));
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    for _ in 0..2 {
        let error = Database::open_or_quarantine(path.clone()).unwrap_err().in_full();
        assert!(error.contains("disk/x.redb, which does not exist"), "{error}");
        assert_eq!(path.read_link().unwrap(), elsewhere);
    }
    // The disk is available again.
    fs::create_dir(dir.path().join("disk")).unwrap();
    put(&Database::open(elsewhere).unwrap(), 1, 10).unwrap();
    let database = Database::open(path.clone()).unwrap();
    assert_eq!(all(&database).unwrap(), [(1, 10)]);
    // Nor to one that was started when there was none.
    database.create_file(&Builder::new()).unwrap();
    drop(database);
    assert_eq!(all(&Database::open(path.clone()).unwrap()).unwrap(), [(1, 10)]);
    assert!(path.is_symlink() && !path.with_extension("new").exists());
}

/// Bytes of a file that redb has not closed cleanly, as after a crash, with rows 0 to 40.
fn crashed_file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let database = Database::open(path.clone()).unwrap();
    for n in 0..40 {
        put(&database, n, 3000).unwrap();
    }
    fs::read(&path).unwrap()
}

#[test]
fn a_torn_or_damaged_file_is_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let whole = crashed_file();
    let (mut refused, mut repaired) = (0, 0);
    for round in 0..60 {
        let mut bytes = whole.clone();
        if round % 2 == 0 {
            bytes.truncate(fastrand::usize(1..bytes.len()));
        } else {
            let at = fastrand::usize(..bytes.len() - 512);
            bytes[at..at + 512].fill(fastrand::u8(..));
        }
        fs::write(&path, &bytes).unwrap();
        match Database::open(path.clone()).and_then(|database| all(&database)) {
            Ok(rows) => {
                // The last commit may have been undone; then the one before it holds.
                assert!(rows.len() >= 39 && rows.iter().enumerate().all(|(n, row)| row.0 == n as u64));
                repaired += 1;
            }
            Err(error) => {
                assert!(!error.is_transient() && error.in_full().contains("x.redb"), "{}", error.in_full());
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && repaired > 0, "{refused} refused, {repaired} repaired");
    fs::write(&path, &whole).unwrap();
    assert_eq!(all(&Database::open(path).unwrap()).unwrap().len(), 40);
}
