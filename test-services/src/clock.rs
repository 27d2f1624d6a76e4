//! A clock of one's own for a program: libfaketime shows it the time that a file says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// Where distributions put the library.
const PLACES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/usr/lib/aarch64-linux-gnu/faketime",
    "/usr/lib64/faketime",
    "/usr/lib/faketime",
    "/usr/local/lib/faketime",
];

/// A wall clock that can be set while programs run by it. How long things take stays true.
pub struct Clock {
    dir: TempDir,
    library: PathBuf,
}

impl Clock {
    /// A clock that is right. Installs the library where it is missing.
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

    /// What makes a program run by it.
    pub fn env(&self) -> Vec<(String, String)> {
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD", path(self.library.clone())),
            ("FAKETIME_TIMESTAMP_FILE", path(self.dir.path().join("time"))),
            // Seconds until the file is read again.
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
            // What a killed program would leave behind.
            ("FAKETIME_DISABLE_SHM", "1".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// So many seconds beside the right time.
    pub fn shift(&self, seconds: i64) {
        self.set(format!("{seconds:+}"));
    }

    /// The right time.
    pub fn right(&self) {
        self.set("+0".into());
    }

    /// So far ahead of the right time.
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
        // A reader sees the one or the other, never half of it.
        std::fs::rename(new, self.dir.path().join("time")).unwrap();
        // Until every program has read it.
        std::thread::sleep(Duration::from_millis(1500));
    }
}

fn find() -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join("libfaketimeMT.so.1")).find(|path| path.exists())
}
