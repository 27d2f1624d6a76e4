//! The decoders of a GPU's lane at work: CPU and nvJPEG at once, and each image with whoever will have it first.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use gpu_kernels::cuda::{Device, DevicePool, PinnedPool};
use gpu_kernels::decode::Until;
use gpu_kernels::preprocess::cuda::Stager;
use inference::engine::Provider;
use inference::lanes::gpu::{Decoders, EventSender, Message};

use super::setup::Setup;
use crate::frames::Frame;

/// As a lane has them.
const IMAGE_BYTES: usize = 1 << 30;
/// Longest for one image.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Images that wait for each that is decoded.
const WAITING: usize = 2;

/// Images a second.
pub(super) fn rate(setup: &Setup, device: &Device, frames: &[Frame]) -> anyhow::Result<f64> {
    let images: Vec<Bytes> = frames.iter().map(|frame| Bytes::from(frame.bytes.clone())).collect();
    let settings = setup.settings(Provider::Host)?.decode;
    let (teller, messages, _wakes) = EventSender::new();
    let stager = Stager::new(PinnedPool::new(device, IMAGE_BYTES));
    let room = usize::try_from(device.memory()?.0 / 4).unwrap_or(usize::MAX);
    let pool = DevicePool::new(device, IMAGE_BYTES.min(room));
    let decoders = Decoders::start(device, &settings, &stager, &pool, &teller)?;
    let mut submit = (0..).zip(images.iter().cycle());
    let mut next = || {
        if let Some((ticket, image)) = submit.next() {
            decoders.decode(ticket, image.clone(), Until::NEVER, &teller);
        }
    };
    let in_flight = WAITING * decoders.at_once();
    (0..in_flight).for_each(|_| next());
    let take = || match messages.recv_timeout(TIMEOUT).context("waiting for a decoded image")? {
        Message::Staged(..) | Message::OnDevice(..) => Ok(()),
        Message::Refused(_, error) => bail!(error),
        Message::Failed(error) => bail!(error),
        Message::Finished(_) => Err(anyhow!("a batch that was not begun has ended")),
    };
    // Each decoder's speed has to be learned first.
    let warm = Instant::now();
    while warm.elapsed() < setup.plan.seconds / 2 {
        take()?;
        next();
    }
    let (began, mut done) = (Instant::now(), 0);
    while began.elapsed() < setup.plan.seconds {
        take()?;
        next();
        done += 1;
    }
    let rate = f64::from(done) / began.elapsed().as_secs_f64();
    // What is under way ends before the decoders do.
    (0..in_flight).try_for_each(|_| take())?;
    Ok(rate)
}
