//! A core of the CPU that decodes for a GPU.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use gpu_kernels::preprocess::cuda::Stager;
use gpu_kernels::{DecodeLimits, Decoder, Image};

use super::super::route::Route;
use super::dispatch::{Dispatch, Work};
use super::message::{Message, Teller};
use super::panicked;
use crate::lanes::{Decoded, Ticket};

/// How soon a thread that waits for room sees that it is to end.
const LOOK: Duration = Duration::from_millis(200);

pub(super) struct CpuThread {
    pub(super) decoder: Decoder,
    pub(super) limits: DecodeLimits,
    pub(super) resize: u32,
    pub(super) stager: Stager,
    pub(super) work: Receiver<Work>,
    pub(super) dispatch: Weak<Dispatch>,
    pub(super) ending: Arc<AtomicBool>,
    pub(super) teller: Teller,
}

impl CpuThread {
    pub(super) fn run(mut self) {
        while let Ok(work) = self.work.recv() {
            if self.ending.load(Ordering::Acquire) {
                return;
            }
            let began = Instant::now();
            let decode = || {
                let decoded = self.decoder.decode(&work.bytes, self.resize);
                let took = began.elapsed();
                match decoded {
                    Ok(image) => stage(&self.stager, &self.ending, work.ticket, &image, took),
                    Err(error) => Some(Message::Refused(work.ticket, error.into())),
                }
            };
            let message = match catch_unwind(AssertUnwindSafe(decode)) {
                Ok(message) => message,
                Err(_) => {
                    // What is left of the decoder is not to be trusted.
                    if let Ok(decoder) = Decoder::new(self.limits) {
                        self.decoder = decoder;
                    }
                    Some(Message::Refused(work.ticket, panicked()))
                }
            };
            let took = began.elapsed();
            match message {
                Some(message) => self.teller.tell(message),
                None => return,
            }
            if let Some(dispatch) = self.dispatch.upgrade() {
                dispatch.done(Route::Cpu, 1, work.pixels, Some(took));
            }
        }
    }
}

/// Copies an image to where the GPU reads it, as soon as there is room. None when the thread is to end.
fn stage(
    stager: &Stager,
    ending: &AtomicBool,
    ticket: Ticket,
    image: &Image<'_>,
    time: Duration,
) -> Option<Message> {
    let (format, width, height) = (image.format, image.original_width, image.original_height);
    loop {
        match stager.stage(image, LOOK) {
            Ok(Some(staged)) => {
                return Some(Message::Staged(ticket, Decoded { format, width, height, time }, staged));
            }
            Ok(None) if ending.load(Ordering::Acquire) => return None,
            Ok(None) => {}
            Err(error) => return Some(Message::Failed(error.into())),
        }
    }
}
