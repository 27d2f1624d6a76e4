//! Work at low CPU priority, which leaves the processor to requests: on a thread of its own, since a thread that may not
//! raise its priority again must not return to a pool.

use std::io;
use std::panic::resume_unwind;

/// Niceness of such a thread: beside a lane that is never idle it gets a few percent of the time.
const NICENESS: i32 = 19;

/// Runs `work` on such a thread and waits for it; a panic in it is resumed here.
///
/// # Errors
/// When the thread can't be spawned; `work` was not run then.
pub(crate) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let work = move || {
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
            tracing::debug!(%error, "could not lower the priority of a thread");
        }
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("weir-load".to_owned()).spawn_scoped(scope, work)?;
        thread.join().map_or_else(|panic| resume_unwind(panic), Ok)
    })
}
