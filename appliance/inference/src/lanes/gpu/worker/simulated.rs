//! A simulated device that decodes on threads and computes batches in sequence, with injected faults.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use gpu_kernels::ImageFormat;
use gpu_kernels::decode::Until;
use parking_lot::Mutex;

use crate::lanes::ClassifyError;
use crate::lanes::gpu::{BatchDevice, Batching, Computed, Decoded, DeviceError, DeviceEvent, Ticket};

/// Settings and observations shared by all devices of a test.
pub(super) struct World {
    /// Duration of a batch in milliseconds.
    pub(super) batch_ms: AtomicUsize,
    /// Time in milliseconds that a batch is kept open while another is computed.
    pub(super) max_delay_ms: AtomicUsize,
    /// The batches on which a device fails, counted over all devices.
    pub(super) fail_at: Mutex<VecDeque<(usize, Fault)>>,
    pub(super) batches: Mutex<Vec<Vec<u8>>>,
    pub(super) under_way: AtomicUsize,
    pub(super) most_under_way: AtomicUsize,
    /// Images that were decoded while a batch was computed.
    pub(super) decoded_meanwhile: AtomicUsize,
    /// Images that existing devices still hold.
    pub(super) kept: AtomicUsize,
    pub(super) built: AtomicUsize,
    pub(super) refuse_to_build: AtomicBool,
}

impl Default for World {
    fn default() -> Self {
        Self {
            batch_ms: AtomicUsize::new(0),
            max_delay_ms: AtomicUsize::new(5),
            fail_at: Mutex::default(),
            batches: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            decoded_meanwhile: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
            built: AtomicUsize::new(0),
            refuse_to_build: AtomicBool::new(false),
        }
    }
}

/// How a device fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    Begin,
    Compute,
    Panic,
}

/// An image of its decoding time in milliseconds and its name. A name of 255 does not decode.
pub(super) fn image(ms: u8, name: u8) -> Bytes {
    Bytes::from(vec![ms, name])
}

pub(super) struct Simulated {
    world: Arc<World>,
    batching: Batching,
    max_in_flight: usize,
    generation: usize,
    images: HashMap<Ticket, u8>,
    discarded: HashSet<Ticket>,
    wakes: Receiver<()>,
    events: Receiver<Event>,
    to_decode: Option<Sender<(Ticket, Bytes)>>,
    to_compute: Option<Sender<(Vec<u8>, Option<Fault>)>>,
    threads: Vec<JoinHandle<()>>,
    fault: Option<Fault>,
}

enum Event {
    Decoded(Ticket, u8),
    Computed(Vec<u8>),
    Failed,
    Panic,
}

pub(super) fn lost() -> DeviceError {
    gpu_kernels::cuda::GpuError::Refused { call: "simulated", code: 719 }.into()
}

impl Simulated {
    pub(super) fn new(world: &Arc<World>, max_batch: usize, max_in_flight: usize, decoders: usize) -> Self {
        let max_delay = Duration::from_millis(world.max_delay_ms.load(Ordering::SeqCst) as u64);
        let (wake, wakes) = bounded(1);
        let (send, events) = unbounded();
        let (to_decode, decoding) = unbounded::<(Ticket, Bytes)>();
        let (to_compute, computing) = unbounded::<(Vec<u8>, Option<Fault>)>();
        let tell = move |event| {
            let _ = send.send(event);
            let _ = wake.try_send(());
        };
        let mut threads = Vec::new();
        for _ in 0..decoders {
            let (decoding, tell, world) = (decoding.clone(), tell.clone(), Arc::clone(world));
            threads.push(std::thread::spawn(move || {
                for (ticket, image) in decoding {
                    std::thread::sleep(Duration::from_millis(u64::from(image[0])));
                    if world.under_way.load(Ordering::SeqCst) > 0 {
                        world.decoded_meanwhile.fetch_add(1, Ordering::SeqCst);
                    }
                    tell(Event::Decoded(ticket, image[1]));
                }
            }));
        }
        let shared = Arc::clone(world);
        threads.push(std::thread::spawn(move || {
            for (names, fault) in computing {
                let ms = shared.batch_ms.load(Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(ms as u64));
                shared.under_way.fetch_sub(1, Ordering::SeqCst);
                match fault {
                    Some(Fault::Compute) => tell(Event::Failed),
                    Some(Fault::Panic) => tell(Event::Panic),
                    Some(Fault::Begin) | None => {
                        shared.batches.lock().push(names.clone());
                        tell(Event::Computed(names));
                    }
                }
            }
        }));
        Self {
            world: Arc::clone(world),
            batching: Batching::up_to(max_batch, max_delay).unwrap(),
            max_in_flight,
            generation: world.built.fetch_add(1, Ordering::SeqCst),
            images: HashMap::new(),
            discarded: HashSet::new(),
            wakes,
            events,
            to_decode: Some(to_decode),
            to_compute: Some(to_compute),
            threads,
            fault: None,
        }
    }

    fn next_fault(&self) -> Option<Fault> {
        let mut faults = self.world.fail_at.lock();
        let (left, fault) = faults.front_mut()?;
        *left -= 1;
        let fault = *fault;
        (*left == 0).then(|| {
            faults.pop_front();
            fault
        })
    }
}

impl BatchDevice for Simulated {
    fn batching(&self) -> &Batching {
        &self.batching
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    fn wakes(&self) -> &Receiver<()> {
        &self.wakes
    }

    fn decode(&mut self, ticket: Ticket, image: Bytes, _: Until) {
        assert_eq!(self.fault, None, "a device that has failed is asked for nothing more");
        self.to_decode.as_ref().unwrap().send((ticket, image)).unwrap();
    }

    fn poll(&mut self) -> Option<DeviceEvent> {
        assert_eq!(self.fault, None, "a device that has failed is asked for nothing more");
        Some(match self.events.try_recv().ok()? {
            Event::Decoded(ticket, 255) => {
                let error =
                    gpu_kernels::inspect(b"no image", &gpu_kernels::DecodeLimits::default()).unwrap_err();
                DeviceEvent::Decoded(ticket, Err(ClassifyError::Decode(error)))
            }
            Event::Decoded(ticket, name) => {
                self.images.insert(ticket, name);
                self.world.kept.fetch_add(1, Ordering::SeqCst);
                assert!(self.images.len() <= self.max_in_flight);
                let time = Duration::from_millis(1);
                let decoded = Decoded { format: ImageFormat::Jpeg, width: 4, height: 3, time };
                DeviceEvent::Decoded(ticket, Ok(decoded))
            }
            Event::Computed(names) => {
                self.world.kept.fetch_sub(names.len(), Ordering::SeqCst);
                let computed = |name: u8| Computed {
                    scores: vec![f32::from(name), self.generation as f32],
                    preprocess: Duration::ZERO,
                    infer: Duration::ZERO,
                };
                DeviceEvent::Computed(names.into_iter().map(|name| Ok(computed(name))).collect())
            }
            Event::Failed => {
                self.fault = Some(Fault::Compute);
                DeviceEvent::Failed(lost())
            }
            Event::Panic => {
                self.fault = Some(Fault::Panic);
                panic!("simulated fault")
            }
        })
    }

    fn discard(&mut self, ticket: Ticket) {
        assert!(self.images.remove(&ticket).is_some() && self.discarded.insert(ticket));
        self.world.kept.fetch_sub(1, Ordering::SeqCst);
    }

    fn begin(&mut self, images: &[Ticket]) -> Result<(), DeviceError> {
        assert!(!images.is_empty() && images.len() <= self.batching.max_batch());
        let fault = self.next_fault();
        if fault == Some(Fault::Begin) {
            self.fault = fault;
            return Err(lost());
        }
        let names = images.iter().map(|ticket| self.images.remove(ticket).unwrap()).collect();
        let under_way = self.world.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.world.most_under_way.fetch_max(under_way, Ordering::SeqCst);
        self.to_compute.as_ref().unwrap().send((names, fault)).unwrap();
        Ok(())
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.to_decode.take();
        self.to_compute.take();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}
