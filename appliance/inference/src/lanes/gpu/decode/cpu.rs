//! A core of the CPU that decodes for a GPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use gpu_kernels::Image;
use gpu_kernels::preprocess::cuda::Stager;

use super::super::route::Route;
use super::dispatch::{Dispatch, Work};
use super::message::{EventSender, Message};
use crate::lanes::decoder::LaneDecoder;
use crate::lanes::stall::Task;
use crate::lanes::{Decoded, Encoded, Ticket};

/// How soon a thread that waits for room sees that it is to end.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What all of them share.
#[derive(Clone, Debug)]
pub(super) struct CpuThread {
    pub(super) resize: u32,
    pub(super) stager: Stager,
    pub(super) work: Receiver<Work>,
    pub(super) dispatch: Weak<Dispatch>,
    pub(super) ending: Arc<AtomicBool>,
    pub(super) teller: EventSender,
}

/// The image that a thread is at.
#[derive(Debug)]
pub(super) struct AtImage {
    pub(super) ticket: Ticket,
    pub(super) pixels: u64,
    pub(super) bytes: Bytes,
}

impl CpuThread {
    pub(super) fn run(self, mut decoder: LaneDecoder, task: &Task<AtImage>) {
        while let Ok(Work { ticket, bytes, pixels, until, .. }) = self.work.recv() {
            if self.ending.load(Ordering::Acquire) {
                return;
            }
            let began = Instant::now();
            task.begin(AtImage { ticket, pixels, bytes: bytes.clone() });
            let mut decoded_in_time = None;
            let decoded = decoder.with(Encoded { bytes: &bytes, until }, self.resize, |image| {
                // Room on the GPU may take as long as it likes.
                let in_time = task.finish().is_some();
                decoded_in_time = Some(in_time);
                if in_time { self.stage(ticket, image, began.elapsed()) } else { None }
            });
            if !decoded_in_time.unwrap_or_else(|| task.finish().is_some()) {
                // Another thread is in this one's place.
                return;
            }
            let message = decoded.unwrap_or_else(|error| Some(Message::Refused(ticket, error.into())));
            let took = began.elapsed();
            drop(bytes);
            match message {
                Some(message) => self.teller.tell(message),
                None => return,
            }
            if let Some(dispatch) = self.dispatch.upgrade() {
                dispatch.done(Route::Cpu, 1, pixels, Some(took));
            }
        }
    }

    /// Copies an image to where the GPU reads it, as soon as there is room. None when the thread is to end.
    fn stage(&self, ticket: Ticket, image: &Image<'_>, time: Duration) -> Option<Message> {
        let (format, width, height) = (image.format, image.original_width, image.original_height);
        loop {
            match self.stager.stage(image, POLL_INTERVAL) {
                Ok(Some(staged)) => {
                    return Some(Message::Staged(ticket, Decoded { format, width, height, time }, staged));
                }
                Ok(None) if self.ending.load(Ordering::Acquire) => return None,
                Ok(None) => {}
                Err(error) => return Some(Message::Failed(error.into())),
            }
        }
    }
}
