//! The end of lanes: no more jobs, those that wait are finished, the threads join.

use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use tokio::runtime::Handle;

use super::{Job, LaneError, Lanes};

/// What is left to wait for.
struct Ending {
    threads: Vec<JoinHandle<()>>,
    again: Receiver<Job>,
}

impl Lanes {
    /// Stops taking jobs, finishes those that wait, and joins the threads, which blocks.
    pub fn stop(&self) {
        self.close().join();
    }

    fn close(&self) -> Ending {
        self.batch_room.close();
        self.closing.store(true, Ordering::Release);
        self.queues.lock().take();
        Ending { threads: self.threads.lock().drain(..).collect(), again: self.again.clone() }
    }
}

impl Ending {
    fn join(self) {
        for thread in self.threads {
            // A worker contains its devices' panics; nothing is left to say about one that did not.
            let _ = thread.join();
        }
        // What the last device gave back when nobody was left to try it.
        for job in self.again.try_iter() {
            let _ = job.reply.send(Err(LaneError::DeviceFailed));
        }
    }
}

impl Drop for Lanes {
    /// Whoever holds a model last may be a request, on a thread that does the I/O of all others: where there is a runtime, the
    /// lanes end on a thread of their own.
    fn drop(&mut self) {
        let ending = self.close();
        if ending.threads.is_empty() || Handle::try_current().is_err() {
            return ending.join();
        }
        let join = move || ending.join();
        if let Err(error) = std::thread::Builder::new().name("weir-lanes-end".to_owned()).spawn(join) {
            // They end by themselves once their queues are closed; nobody waits for them.
            tracing::warn!(%error, "no thread can be had to wait for the end of lanes");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use crossbeam_channel::{Receiver, Sender, bounded};
    use gpu_kernels::ImageFormat;

    use super::Lanes;
    use crate::lanes::{Classified, ClassifyError, LaneDevice, LaneSettings, StageTimings, Unobserved};

    /// Says when it has begun, and waits until it is let go on.
    struct Slow(Sender<()>, Receiver<()>);

    impl LaneDevice for Slow {
        fn classify(&mut self, _: &[u8]) -> Result<Classified, ClassifyError> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            let timings = StageTimings::default();
            Ok(Classified { scores: vec![1.0], format: ImageFormat::Bmp, width: 1, height: 1, timings })
        }
    }

    #[tokio::test]
    async fn lanes_that_are_dropped_on_an_io_thread_do_not_hold_it_up() {
        let ((begun, has_begun), (go_on, may_go_on)) = (bounded(1), bounded(1));
        let factory =
            Arc::new(move |_| Ok(Box::new(Slow(begun.clone(), may_go_on.clone())) as Box<dyn LaneDevice>));
        let lanes = Lanes::start(&LaneSettings::new(1, 4), factory, Arc::new(Unobserved)).unwrap();
        let submit = || lanes.submit(Bytes::from_static(b"image"), Instant::now() + Duration::from_secs(600));
        let (in_hand, waiting) = (submit().unwrap(), submit().unwrap());
        has_begun.recv().unwrap();
        // The image in hand is finished only below: joined here, the lane would never end.
        drop(lanes);
        go_on.send(()).unwrap();
        in_hand.await.unwrap().unwrap();
        go_on.send(()).unwrap();
        waiting.await.unwrap().unwrap();
    }
}
