//! What happens beside the lane's thread, and how the lane hears of it.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use gpu_kernels::preprocess::cuda::{DeviceImage, StagedImage};

use crate::lanes::{ClassifyError, Decoded, DeviceError, Ticket};

/// What happens beside the lane's thread.
#[derive(Debug)]
pub enum Message {
    /// An image was decoded by the CPU.
    Staged(Ticket, Decoded, StagedImage),
    /// An image was decoded by the GPU.
    OnDevice(Ticket, Decoded, DeviceImage),
    /// An image can't be decoded.
    Refused(Ticket, ClassifyError),
    /// The batch of a slot was read back.
    Finished(usize),
    /// The GPU is of no use any more.
    Failed(DeviceError),
}

/// Sends messages and wakes the lane.
#[derive(Clone, Debug)]
pub struct EventSender {
    messages: Sender<Message>,
    wake: Sender<()>,
}

impl EventSender {
    /// One for who reads the messages, which come without bound, and the wakes, of which one at most waits.
    pub fn new() -> (Self, Receiver<Message>, Receiver<()>) {
        let (wake, wakes) = bounded(1);
        let (send, messages) = unbounded();
        (Self { messages: send, wake }, messages, wakes)
    }

    pub(in super::super) fn wake(&self) {
        let _ = self.wake.try_send(());
    }

    pub(in super::super) fn tell(&self, message: Message) {
        // A lane that has ended wants to know nothing more; one that was woken already needs no second time.
        let _ = self.messages.send(message);
        self.wake();
    }
}
