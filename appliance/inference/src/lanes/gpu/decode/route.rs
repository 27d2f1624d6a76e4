//! Routing: each image goes to the decoder that is expected to finish it first. [`Router`] is pure, so that it can be
//! simulated.
//!
//! The CPU and nvJPEG decode at the same time, at speeds that depend on the machine, the GPU and the images. The speed of each
//! is learned from completed images, and an image goes where its backlog plus the image itself take the least time. At low
//! load that is the faster decoder. Under load each has only as much queued as keeps it busy; the rest waits in a common queue
//! and goes to whichever has room first, so that both stay busy however wrong an estimate was.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Sender;
use gpu_kernels::decode::Until;
use gpu_kernels::decode::nvjpeg::Eligible;
use parking_lot::Mutex;

use crate::lanes::gpu::Ticket;

/// Weight of a new measurement in the moving average.
const FADE: f64 = 1.0 / 8.0;

/// Where an image is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Route {
    /// On a CPU core.
    Cpu,
    /// By nvJPEG.
    Gpu,
}

/// The queue of a decoder: its speed and its backlog.
#[derive(Clone, Debug)]
pub(super) struct DecoderQueue {
    /// Units that work in parallel.
    units: usize,
    /// Capacity in images: those being decoded, and as many again so that no unit idles.
    room: usize,
    /// Nanoseconds per pixel of one unit.
    cost: f64,
    /// Queued and running pixels.
    backlog: u64,
    /// Queued and running images.
    images: usize,
}

impl DecoderQueue {
    /// A decoder of `units` that each take up to `batch` images at once, with an initial estimate in nanoseconds per pixel.
    pub(super) fn new(units: usize, batch: usize, guess: f64) -> Self {
        Self { units, room: 2 * units * batch, cost: guess, backlog: 0, images: 0 }
    }

    /// Estimated nanoseconds until an image of this size would be finished.
    fn finish(&self, pixels: u64) -> f64 {
        // The backlog is shared by all units; the image itself is decoded by one.
        self.backlog as f64 * self.cost / self.units.max(1) as f64 + pixels as f64 * self.cost
    }

    fn has_room(&self) -> bool {
        self.images < self.room
    }

    fn add(&mut self, pixels: u64) {
        self.backlog += pixels;
        self.images += 1;
    }

    /// One unit finished images of `pixels` pixels in total in this time, or dropped them (`None`).
    fn done(&mut self, images: usize, pixels: u64, took: Option<Duration>) {
        self.backlog = self.backlog.saturating_sub(pixels);
        self.images = self.images.saturating_sub(images);
        if let Some(took) = took.filter(|_| pixels > 0) {
            let found = took.as_secs_f64() * 1e9 / pixels as f64;
            self.cost += (found - self.cost) * FADE;
        }
    }
}

/// The two decoders, and the images that wait for one of them.
#[derive(Debug)]
pub(super) struct Router<W> {
    cpu: DecoderQueue,
    gpu: DecoderQueue,
    /// For the CPU only.
    cpu_only: VecDeque<(u64, W)>,
    /// For either.
    either: VecDeque<(u64, W)>,
}

impl<W> Router<W> {
    pub(super) fn new(cpu: DecoderQueue, gpu: DecoderQueue) -> Self {
        Self { cpu, gpu, cpu_only: VecDeque::new(), either: VecDeque::new() }
    }

    /// Queues an image.
    pub(super) fn push(&mut self, work: W, pixels: u64, cpu_only: bool) {
        let queue = if cpu_only { &mut self.cpu_only } else { &mut self.either };
        queue.push_back((pixels, work));
    }

    /// The next image to pass to a decoder, if one has room.
    pub(super) fn next(&mut self) -> Option<(Route, W)> {
        if self.cpu.has_room()
            && let Some((pixels, work)) = self.cpu_only.pop_front()
        {
            self.cpu.add(pixels);
            return Some((Route::Cpu, work));
        }
        let &(pixels, _) = self.either.front()?;
        let route = match (self.cpu.has_room(), self.gpu.has_room()) {
            (false, false) => return None,
            (true, false) => Route::Cpu,
            (false, true) => Route::Gpu,
            (true, true) if self.gpu.finish(pixels) <= self.cpu.finish(pixels) => Route::Gpu,
            (true, true) => Route::Cpu,
        };
        match route {
            Route::Cpu => self.cpu.add(pixels),
            Route::Gpu => self.gpu.add(pixels),
        }
        self.either.pop_front().map(|(_, work)| (route, work))
    }

    /// A unit of a decoder finished images of `pixels` pixels in total in this time, or dropped them (`None`).
    pub(super) fn done(&mut self, route: Route, images: usize, pixels: u64, took: Option<Duration>) {
        match route {
            Route::Cpu => self.cpu.done(images, pixels, took),
            Route::Gpu => self.gpu.done(images, pixels, took),
        }
    }
}

/// An image to decode.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) ticket: Ticket,
    pub(super) bytes: Bytes,
    pub(super) pixels: u64,
    pub(super) until: Until,
    pub(super) eligible: Option<Eligible>,
    /// Whether it is decoded by nvJPEG's CUDA kernels, because its hardware engines do not support it.
    pub(super) for_kernels: bool,
}

/// The router with the queues of the two decoders, shared by the lane and the decoding threads.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) router: Mutex<Router<Work>>,
    pub(super) cpu: Sender<Work>,
    pub(super) gpu: Sender<Work>,
}

impl Dispatch {
    /// Queues an image, and passes on what has room.
    pub(super) fn push(&self, work: Work, cpu_only: bool) {
        let mut router = self.router.lock();
        let pixels = work.pixels;
        router.push(work, pixels, cpu_only);
        self.hand_out(&mut router);
    }

    /// A decoder has finished or dropped images.
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
            // A thread that has ended was stopped, or has reported its failure.
            let _ = line.send(work);
        }
    }
}
