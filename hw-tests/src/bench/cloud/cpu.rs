//! CPU time of several processes over the same stretch of time.

use std::time::{Duration, Instant};

use crate::process::{cpu_time, machine_cpu_time};

/// Processes by what they are called in a report.
pub(super) struct Processes(Vec<(String, u32)>);

/// How much each had used at one moment.
pub(super) struct Reading {
    at: Instant,
    used: Vec<(String, Duration)>,
    machine: Duration,
}

/// What each used in between.
pub(super) struct Used {
    pub(super) elapsed: Duration,
    pub(super) each: Vec<(String, Duration)>,
    machine: Duration,
}

impl Processes {
    pub(super) fn new(processes: Vec<(String, u32)>) -> Self {
        Self(processes)
    }

    /// # Errors
    /// When one of them has ended.
    pub(super) fn read(&self) -> anyhow::Result<Reading> {
        let at = Instant::now();
        let used = self.0.iter().map(|(name, pid)| Ok((name.clone(), cpu_time(*pid)?)));
        Ok(Reading { at, used: used.collect::<anyhow::Result<_>>()?, machine: machine_cpu_time()? })
    }
}

impl Reading {
    /// What was used since `earlier`, a reading of the same processes.
    pub(super) fn since(&self, earlier: &Self) -> Used {
        let each = self.used.iter().zip(&earlier.used);
        let each = each.map(|((name, now), (_, then))| (name.clone(), now.saturating_sub(*then))).collect();
        let machine = self.machine.saturating_sub(earlier.machine);
        Used { elapsed: self.at - earlier.at, each, machine }
    }
}

impl Used {
    /// CPU time of all of them together, in cores.
    pub(super) fn cores(&self) -> f64 {
        self.sum().as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// What was left for nobody of them because other processes had it, in cores.
    pub(super) fn others(&self) -> f64 {
        self.machine.saturating_sub(self.sum()).as_secs_f64() / self.elapsed.as_secs_f64()
    }

    fn sum(&self) -> Duration {
        self.each.iter().map(|(_, used)| *used).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::own_cpu_time;

    #[test]
    fn what_a_process_used_between_two_readings() {
        let processes = Processes::new(vec![("this".to_owned(), std::process::id())]);
        let (before, cpu) = (processes.read().unwrap(), own_cpu_time());
        let mut sum = 0_u64;
        while before.at.elapsed() < Duration::from_millis(200)
            || own_cpu_time() - cpu < Duration::from_millis(100)
        {
            sum = std::hint::black_box(sum + 1);
        }
        let used = processes.read().unwrap().since(&before);
        assert!(used.elapsed >= Duration::from_millis(200));
        assert_eq!(used.each[0].0, "this");
        assert!(used.each[0].1 >= Duration::from_millis(20), "{:?}", used.each);
        assert!(used.cores() >= 0.05 && used.others() >= 0.0);
        assert!(Processes::new(vec![("none".to_owned(), u32::MAX)]).read().is_err());
    }
}
