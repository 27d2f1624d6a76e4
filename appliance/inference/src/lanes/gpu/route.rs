//! Which decoder gets an image: the one that will have finished it first, as far as is known. Pure, so that it can be simulated.
//!
//! Both decoders work at once and at different speeds, which depend on the machine, the GPU and the images. So each one's speed
//! is learned from what it has done, and an image goes where what is ahead of it and the image itself take the least time. At a low
//! load that is the quicker decoder. Under load each has only as much ahead as keeps it busy; the rest waits in common, and goes to
//! whichever has room first, so that both always have something to do, however wrong a guess was.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

/// How much of the past counts: what was learned fades by this part with each new finding.
const FADE: f64 = 1.0 / 8.0;

/// Who decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Route {
    /// A core of the CPU.
    Cpu,
    /// nvJPEG.
    Gpu,
}

/// One of the two decoders: how fast it is and what it has to do.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Units that work at once.
    units: usize,
    /// Images that it may have: being worked on, and as many again so that no unit waits.
    room: usize,
    /// Nanoseconds a pixel, of one unit.
    cost: f64,
    /// Pixels that it has.
    backlog: u64,
    /// Images that it has.
    images: usize,
}

impl Line {
    /// A decoder of `units`, which each take up to `batch` images at once, and of which nothing is known yet but a guess, in
    /// nanoseconds a pixel.
    pub(super) fn new(units: usize, batch: usize, guess: f64) -> Self {
        Self { units, room: 2 * units * batch, cost: guess, backlog: 0, images: 0 }
    }

    /// Nanoseconds until an image of so many pixels would be done.
    fn finish(&self, pixels: u64) -> f64 {
        // What is ahead is shared by all units; the image itself has one.
        self.backlog as f64 * self.cost / self.units.max(1) as f64 + pixels as f64 * self.cost
    }

    fn has_room(&self) -> bool {
        self.images < self.room
    }

    fn put(&mut self, pixels: u64) {
        self.backlog += pixels;
        self.images += 1;
    }

    /// Images of so many pixels together were done by one unit in this time, or were given up without one.
    fn done(&mut self, images: usize, pixels: u64, took: Option<Duration>) {
        self.backlog = self.backlog.saturating_sub(pixels);
        self.images = self.images.saturating_sub(images);
        if let Some(took) = took.filter(|_| pixels > 0) {
            let found = took.as_secs_f64() * 1e9 / pixels as f64;
            self.cost += (found - self.cost) * FADE;
        }
    }
}

/// What waits for a decoder, and the two of them.
#[derive(Debug)]
pub(super) struct Router<W> {
    cpu: Line,
    gpu: Line,
    /// For the CPU alone.
    cpu_only: VecDeque<(u64, W)>,
    /// For either.
    either: VecDeque<(u64, W)>,
}

impl<W> Router<W> {
    pub(super) fn new(cpu: Line, gpu: Line) -> Self {
        Self { cpu, gpu, cpu_only: VecDeque::new(), either: VecDeque::new() }
    }

    /// An image of so many pixels has come, or has come back.
    pub(super) fn push(&mut self, work: W, pixels: u64, cpu_only: bool) {
        let queue = if cpu_only { &mut self.cpu_only } else { &mut self.either };
        queue.push_back((pixels, work));
    }

    /// The next image that is to go to a decoder now, if one is.
    pub(super) fn next(&mut self) -> Option<(Route, W)> {
        if self.cpu.has_room()
            && let Some((pixels, work)) = self.cpu_only.pop_front()
        {
            self.cpu.put(pixels);
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
            Route::Cpu => self.cpu.put(pixels),
            Route::Gpu => self.gpu.put(pixels),
        }
        self.either.pop_front().map(|(_, work)| (route, work))
    }

    /// A decoder's unit has done images of so many pixels together in this time, or given them up without one.
    pub(super) fn done(&mut self, route: Route, images: usize, pixels: u64, took: Option<Duration>) {
        match route {
            Route::Cpu => self.cpu.done(images, pixels, took),
            Route::Gpu => self.gpu.done(images, pixels, took),
        }
    }
}
