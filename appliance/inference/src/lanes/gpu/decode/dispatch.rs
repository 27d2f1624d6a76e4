//! Where images go to be decoded.

use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Sender;
use gpu_kernels::decode::Until;
use gpu_kernels::decode::nvjpeg::Eligible;
use parking_lot::Mutex;

use super::super::route::{Route, Router};
use crate::lanes::Ticket;

/// An image on its way to a decoder.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) ticket: Ticket,
    pub(super) bytes: Bytes,
    pub(super) pixels: u64,
    pub(super) until: Until,
    pub(super) eligible: Option<Eligible>,
    /// Whether nvJPEG's hardware engines refuse it, and its CUDA kernels do not.
    pub(super) for_kernels: bool,
}

/// Where images go to be decoded; whoever has something to give or to do uses it.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) router: Mutex<Router<Work>>,
    pub(super) cpu: Sender<Work>,
    pub(super) gpu: Sender<Work>,
}

impl Dispatch {
    /// Takes an image in, and hands out what has a place now.
    pub(super) fn push(&self, work: Work, cpu_only: bool) {
        let mut router = self.router.lock();
        let pixels = work.pixels;
        router.push(work, pixels, cpu_only);
        self.hand_out(&mut router);
    }

    /// A decoder has room again.
    pub(super) fn done(&self, route: Route, images: usize, pixels: u64, took: Option<Duration>) {
        let mut router = self.router.lock();
        router.done(route, images, pixels, took);
        self.hand_out(&mut router);
    }

    fn hand_out(&self, router: &mut Router<Work>) {
        while let Some((route, work)) = router.next() {
            let line = match route {
                Route::Cpu => &self.cpu,
                Route::Gpu => &self.gpu,
            };
            // Threads that have ended were told to, or have told the lane.
            let _ = line.send(work);
        }
    }
}
