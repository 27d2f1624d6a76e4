//! A separate clock for a program: libfaketime shows it the time in a file.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// Where distributions install the library.
const PLACES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/usr/lib/aarch64-linux-gnu/faketime",
    "/usr/lib64/faketime",
    "/usr/lib/faketime",
    "/usr/local/lib/faketime",
];

/// A wall clock that can be set while programs run with it. Durations stay correct.
pub struct Clock {
    dir: TempDir,
    library: PathBuf,
}

impl Clock {
    /// A correct clock. Installs the library if it is missing.
    #[expect(clippy::new_without_default, reason = "it may install a library")]
    pub fn new() -> Self {
        let library = find().unwrap_or_else(|| {
            let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install-package");
            assert!(Command::new(install).arg("libfaketime").status().unwrap().success());
            find().expect("libfaketime is installed, but not in a place where distributions put it")
        });
        let clock = Self { dir: tempfile::tempdir().unwrap(), library };
        clock.right();
        clock
    }

    /// The environment of a program that runs with it.
    pub fn env(&self) -> Vec<(String, String)> {
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD", path(self.library.clone())),
            ("FAKETIME_TIMESTAMP_FILE", path(self.dir.path().join("time"))),
            // Seconds until the file is read again.
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
            // Shared memory that a killed program would leave behind.
            ("FAKETIME_DISABLE_SHM", "1".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Offset from the correct time in seconds.
    pub fn shift(&self, seconds: i64) {
        self.set(format!("{seconds:+}"));
    }

    /// The correct time.
    pub fn right(&self) {
        self.set("+0".into());
    }

    /// This far ahead of the correct time.
    pub fn ahead(&self, by: Duration) {
        self.set(format!("+{}", by.as_secs()));
    }

    /// The second day of 1970, as on a box whose clock has no battery.
    pub fn at_1970(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        self.set(format!("-{}", since - 24 * 3600));
    }

    fn set(&self, offset: String) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, offset).unwrap();
        // A reader sees one or the other, never half of it.
        std::fs::rename(new, self.dir.path().join("time")).unwrap();
        // Until every program has read it.
        std::thread::sleep(Duration::from_millis(1500));
    }
}

fn find() -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join("libfaketimeMT.so.1")).find(|path| path.exists())
}
