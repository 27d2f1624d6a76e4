//! Work that leaves the processor to those who serve: on a thread of its own, since a thread that may not raise its
//! priority again must not go back to a pool.

use std::io;
use std::panic::resume_unwind;

/// Niceness of such a thread: what it gets beside a lane that is never idle is a few hundredths of the time.
const NICENESS: i32 = 19;

/// Runs `work` on such a thread and waits for it; a panic in it goes on here.
///
/// # Errors
/// When no thread can be had; `work` was not begun then.
pub(crate) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let gently = move || {
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
            tracing::debug!(%error, "work that should give way is done at the common priority");
        }
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("weir-load".to_owned()).spawn_scoped(scope, gently)?;
        thread.join().map_or_else(|panic| resume_unwind(panic), Ok)
    })
}
