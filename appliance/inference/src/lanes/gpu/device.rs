//! The device of a lane on a GPU: decoded images are uploaded, batches pass through kernel and engine, scores are read back.

use std::collections::{HashMap, VecDeque};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use gpu_kernels::cuda::{Event, GpuError};
use gpu_kernels::decode::Until;
use gpu_kernels::preprocess::cuda::{Batches, DeviceImage, StagedImage, Stager};

use super::decode::{DecodeSettings, Decoders, EventSender, Message};
use super::engine::run;
use super::{BatchDevice, Batching, Computed, Decoded, DeviceError, DeviceEvent, GpuEngine, Ticket};
use crate::engine::{BoundSession, EngineError};

/// Batches whose images may be in flight: two on the GPU, one being collected.
const BATCHES_IN_HAND: usize = 3;

/// One GPU.
pub(super) struct GpuDevice {
    // In drop order: threads first, then what they use.
    decoders: Decoders,
    completion: CompletionThread,
    sessions: Vec<BoundSession>,
    batches: Batches,
    batching: Batching,
    /// Whether the engine computes on the host, which must wait for the stream.
    on_host: bool,
    events: EventSender,
    messages: Receiver<Message>,
    wakes: Receiver<()>,
    images: HashMap<Ticket, DeviceImage>,
    /// Decoded images for which there is no memory on the GPU.
    parked: VecDeque<(Ticket, Decoded, StagedImage)>,
    free_slots: Vec<usize>,
    /// Slots of the running batches, with their numbers of images.
    running: VecDeque<(usize, usize)>,
}

/// Waits until batches have been read back, and reports it.
struct CompletionThread {
    /// Slots with the events that complete when they have been read back.
    pending: Option<Sender<(usize, Event)>>,
    thread: Option<JoinHandle<()>>,
}

impl GpuDevice {
    pub(super) fn new(
        engine: GpuEngine,
        stager: &Stager,
        settings: &DecodeSettings,
    ) -> Result<Self, EngineError> {
        let (events, messages, wakes) = EventSender::new();
        let decoders =
            Decoders::start(engine.batches.device(), settings, stager, engine.batches.pool(), &events)?;
        let completion = CompletionThread::start(events.clone())?;
        let GpuEngine { sessions, batches, batching, slots, on_host } = engine;
        Ok(Self {
            decoders,
            completion,
            sessions,
            batches,
            batching,
            on_host,
            events,
            messages,
            wakes,
            images: HashMap::new(),
            parked: VecDeque::new(),
            free_slots: (0..slots).rev().collect(),
            running: VecDeque::new(),
        })
    }

    /// Starts the upload of an image; returns it when there is no memory on the GPU.
    fn upload(&mut self, ticket: Ticket, staged: StagedImage) -> Result<Option<StagedImage>, DeviceError> {
        Ok(match self.batches.upload(staged)? {
            Ok(image) => {
                self.images.insert(ticket, image);
                None
            }
            Err(staged) => Some(staged),
        })
    }

    /// The scores of the batch in this slot, which has been read back.
    fn collect(&mut self, slot: usize) -> Result<Vec<Result<Computed, EngineError>>, DeviceError> {
        let images = match self.running.pop_front() {
            Some((first, images)) if first == slot => images,
            _ => return Err(DeviceError::Ended),
        };
        let (bytes, times) = self.batches.collect(slot)?;
        self.free_slots.push(slot);
        let share = u32::try_from(images).unwrap_or(1).max(1);
        let (preprocess, infer) = (times.preprocess / share, times.infer / share);
        let session = self.sessions.first().ok_or(DeviceError::Ended)?;
        let each = bytes.chunks_exact(session.score_bytes().max(1));
        let scores = each.map(|bytes| session.scores(bytes));
        Ok(scores.map(|scores| scores.map(|scores| Computed { scores, preprocess, infer })).collect())
    }

    fn handle(&mut self, message: Message) -> Result<Option<DeviceEvent>, DeviceError> {
        Ok(Some(match message {
            Message::Staged(ticket, decoded, staged) if !self.parked.is_empty() => {
                // Behind those that were decoded before.
                self.parked.push_back((ticket, decoded, staged));
                return Ok(None);
            }
            Message::Staged(ticket, decoded, staged) => {
                if let Some(staged) = self.upload(ticket, staged)? {
                    self.parked.push_back((ticket, decoded, staged));
                    return Ok(None);
                }
                DeviceEvent::Decoded(ticket, Ok(decoded))
            }
            Message::OnDevice(ticket, decoded, image) => {
                self.images.insert(ticket, image);
                DeviceEvent::Decoded(ticket, Ok(decoded))
            }
            Message::Refused(ticket, error) => DeviceEvent::Decoded(ticket, Err(error)),
            Message::Finished(slot) => DeviceEvent::Computed(self.collect(slot)?),
            Message::Failed(error) => return Err(error),
        }))
    }

    fn next_event(&mut self) -> Result<Option<DeviceEvent>, DeviceError> {
        if let Some((ticket, decoded, staged)) = self.parked.pop_front() {
            // In the order of decoding.
            match self.upload(ticket, staged)? {
                None => return Ok(Some(DeviceEvent::Decoded(ticket, Ok(decoded)))),
                Some(staged) => self.parked.push_front((ticket, decoded, staged)),
            }
        }
        while let Ok(message) = self.messages.try_recv() {
            if let Some(event) = self.handle(message)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn compute(&mut self, tickets: &[Ticket]) -> Result<(), DeviceError> {
        let slot = self.free_slots.pop().ok_or(DeviceError::Ended)?;
        let images: Vec<_> = tickets.iter().filter_map(|ticket| self.images.remove(ticket)).collect();
        let count = images.len();
        self.running.push_back((slot, count));
        self.batches.preprocess(slot, images)?;
        if self.on_host {
            self.batches.stream().synchronize()?;
        }
        run(&mut self.sessions, slot, self.batching.engine_size(count))?;
        self.batches.read_back(slot, count)?;
        self.completion.wait_for(slot, self.batches.finished(slot))
    }

    /// Determines the cause of an error; a lost GPU is marked as such for all its users.
    fn diagnose(&self, error: DeviceError) -> DeviceError {
        let error = match error {
            // ONNX Runtime only reports a text where the driver has a code.
            DeviceError::Engine(engine) => match self.batches.device().synchronize() {
                Err(gpu) => gpu.into(),
                Ok(()) => DeviceError::Engine(engine),
            },
            other => other,
        };
        if let DeviceError::Gpu(gpu) = &error
            && GpuError::is_lost(gpu)
        {
            self.batches.device().lost();
        }
        error
    }
}

impl BatchDevice for GpuDevice {
    fn batching(&self) -> &Batching {
        &self.batching
    }

    fn max_in_flight(&self) -> usize {
        BATCHES_IN_HAND * self.batching.max_batch() + self.decoders.at_once()
    }

    fn wakes(&self) -> &Receiver<()> {
        &self.wakes
    }

    fn decode(&mut self, ticket: Ticket, image: Bytes, until: Until) {
        self.decoders.decode(ticket, image, until, &self.events);
    }

    fn poll(&mut self) -> Option<DeviceEvent> {
        if self.batches.device().is_lost() {
            // Another lane found it. The GPU can be reopened only after all its users have released it.
            return Some(DeviceEvent::Failed(DeviceError::LostElsewhere));
        }
        self.decoders.replace_stuck();
        self.next_event().unwrap_or_else(|error| Some(DeviceEvent::Failed(self.diagnose(error))))
    }

    fn discard(&mut self, ticket: Ticket) {
        self.images.remove(&ticket);
        if !self.parked.is_empty() {
            // A parked image may have room now, which no other event would report.
            self.events.wake();
        }
    }

    fn begin(&mut self, images: &[Ticket]) -> Result<(), DeviceError> {
        self.compute(images).map_err(|error| self.diagnose(error))
    }
}

impl CompletionThread {
    fn start(events: EventSender) -> Result<Self, EngineError> {
        let (send, pending) = unbounded::<(usize, Event)>();
        let wait = move || {
            for (slot, event) in pending {
                match event.synchronize() {
                    Ok(()) => events.send(Message::Finished(slot)),
                    Err(error) => events.send(Message::Failed(error.into())),
                }
            }
        };
        let thread = std::thread::Builder::new().name("weir-gpu-wait".into());
        let thread = thread.spawn(wait).map_err(EngineError::Thread)?;
        Ok(Self { pending: Some(send), thread: Some(thread) })
    }

    fn wait_for(&self, slot: usize, event: Event) -> Result<(), DeviceError> {
        let sent = self.pending.as_ref().is_some_and(|pending| pending.send((slot, event)).is_ok());
        if sent { Ok(()) } else { Err(DeviceError::Ended) }
    }
}

impl Drop for CompletionThread {
    fn drop(&mut self) {
        self.pending.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
