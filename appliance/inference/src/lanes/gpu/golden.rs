//! Runs a bundle's golden cases on a device that does not serve yet: in batches of each size, with two in flight, so that
//! every slot and every shape is verified.

use std::time::{Duration, Instant};

use bytes::Bytes;
use gpu_kernels::DecodeError;
use gpu_kernels::decode::Until;

use super::{BatchDevice, Computed, DeviceEvent, Ticket};
use crate::bundle::{Bundle, GoldenCase, GoldenFault};
use crate::engine::EngineError;
use crate::lanes::ClassifyError;

/// Longer than any device takes for two batches.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the golden cases.
///
/// # Errors
/// [`EngineError::Golden`] for the first case that fails.
pub(super) fn check(bundle: &Bundle, device: &mut dyn BatchDevice) -> Result<(), EngineError> {
    let cases = bundle.golden_cases().map_err(|error| wrong("", error.to_string()))?;
    let sizes = device.batching().sizes().to_vec();
    let mut run = Run { bundle, device, next: 0 };
    sizes.into_iter().try_for_each(|size| run.batches(&cases, &[size, size]))
}

fn wrong(file: &str, reason: String) -> EngineError {
    EngineError::Golden { file: file.to_owned(), reason }
}

struct Run<'a> {
    bundle: &'a Bundle,
    device: &'a mut dyn BatchDevice,
    next: Ticket,
}

impl Run<'_> {
    /// Decodes the images for batches of these sizes, starts all batches, and checks the results.
    fn batches(&mut self, cases: &[GoldenCase], sizes: &[usize]) -> Result<(), EngineError> {
        let end = Instant::now() + TIMEOUT;
        let mut batches: Vec<(Vec<Ticket>, Vec<&GoldenCase>)> = Vec::new();
        let mut cycle = cases.iter().cycle();
        for &size in sizes {
            let batch: Vec<&GoldenCase> = cycle.by_ref().take(size).collect();
            let tickets: Vec<Ticket> = (self.next..).take(batch.len()).collect();
            self.next += batch.len() as Ticket;
            for (&ticket, case) in tickets.iter().zip(&batch) {
                self.device.decode(ticket, Bytes::from(case.bytes.clone()), Until::NEVER);
                self.decoded(ticket, &case.file, end)?;
            }
            batches.push((tickets, batch));
        }
        for (tickets, _) in &batches {
            self.device.begin(tickets).map_err(|error| wrong("", error.to_string()))?;
        }
        for (_, batch) in batches {
            let computed = self.computed(end)?;
            for (case, computed) in batch.iter().zip(computed) {
                let scores = computed.map(|computed| computed.scores);
                case.check(self.bundle, scores).map_err(|fault| match fault {
                    GoldenFault::Bundle(error) => wrong("", error.to_string()),
                    GoldenFault::Computing { error, .. } => error,
                    GoldenFault::Wrong { file, reason } => wrong(&file, reason),
                })?;
            }
        }
        Ok(())
    }

    fn decoded(&mut self, ticket: Ticket, file: &str, end: Instant) -> Result<(), EngineError> {
        match self.event(end)? {
            DeviceEvent::Decoded(of, Ok(_)) if of == ticket => Ok(()),
            DeviceEvent::Decoded(_, Err(ClassifyError::Engine(error))) => Err(error),
            DeviceEvent::Decoded(_, Err(ClassifyError::Decode(error)))
                if !matches!(error, DecodeError::OutOfTime | DecodeError::Setup(_)) =>
            {
                Err(wrong(file, error.to_string()))
            }
            // Not caused by the picture.
            DeviceEvent::Decoded(_, Err(error)) => Err(wrong("", error.to_string())),
            _ => Err(wrong(file, "the device reported another event before it was decoded".into())),
        }
    }

    fn computed(&mut self, end: Instant) -> Result<Vec<Result<Computed, EngineError>>, EngineError> {
        match self.event(end)? {
            DeviceEvent::Computed(outcomes) => Ok(outcomes),
            _ => Err(wrong("", "the device reported another event before a batch was computed".into())),
        }
    }

    fn event(&mut self, end: Instant) -> Result<DeviceEvent, EngineError> {
        loop {
            match self.device.poll() {
                Some(DeviceEvent::Failed(error)) => return Err(wrong("", error.to_string())),
                Some(event) => return Ok(event),
                None => {}
            }
            if self.device.wakes().recv_deadline(end).is_err() {
                return Err(wrong("", "the device does not respond".into()));
            }
        }
    }
}
