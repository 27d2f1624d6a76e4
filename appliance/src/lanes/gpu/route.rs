//! Which decoder gets an image: the one that will have finished it first, as far as is known. Pure, so that it can be simulated.
//!
//! Both decoders work at once and at different speeds, which depend on the machine, the GPU and the images. So each one's speed
//! is learned from what it has done, and an image goes where what waits and the image itself take the least time. At a low load
//! that is the quicker decoder; under load both have the same to wait and so all to do.

#[cfg(test)]
mod tests;

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
    units: f64,
    /// Nanoseconds a pixel, of one unit.
    cost: f64,
    /// Pixels that wait or are worked on.
    backlog: u64,
}

impl Line {
    /// A decoder of which nothing is known yet but a guess, in nanoseconds a pixel.
    pub(super) fn new(units: usize, guess: f64) -> Self {
        Self { units: units.max(1) as f64, cost: guess, backlog: 0 }
    }

    /// Nanoseconds until an image of so many pixels would be done.
    fn finish(&self, pixels: u64) -> f64 {
        // What is ahead is shared by all units; the image itself has one.
        self.backlog as f64 * self.cost / self.units + pixels as f64 * self.cost
    }

    pub(super) fn put(&mut self, pixels: u64) {
        self.backlog += pixels;
    }

    /// So many pixels were done by one unit in this time, or were given up without one.
    pub(super) fn done(&mut self, pixels: u64, took: Option<Duration>) {
        self.backlog = self.backlog.saturating_sub(pixels);
        if let Some(took) = took.filter(|_| pixels > 0) {
            let found = took.as_secs_f64() * 1e9 / pixels as f64;
            self.cost += (found - self.cost) * FADE;
        }
    }
}

/// Which of the two gets an image of so many pixels.
pub(super) fn choose(cpu: &Line, gpu: &Line, pixels: u64) -> Route {
    if gpu.finish(pixels) <= cpu.finish(pixels) { Route::Gpu } else { Route::Cpu }
}
