//! CPU time and memory of processes, from /proc.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::time::{ClockId, clock_gettime};

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// VmRSS: resident now.
    pub resident: u64,
    /// VmHWM: peak resident memory.
    pub peak: u64,
}

/// CPU time (user and system, all threads, also those that have ended) of a process; in steps of a clock
/// tick, usually 10 ms.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    parse_cpu_time(&read(pid, "stat")?, rustix::param::clock_ticks_per_second())
}

/// CPU time of a process and of the processes it has started that are still running.
///
/// # Errors
/// When there is no such process.
pub fn tree_cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut total = cpu_time(pid)?;
    // Children are listed by the thread that started them.
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).context("listing threads")?;
    for task in tasks.flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // A child may end between the list and the reading.
            total += tree_cpu_time(child).unwrap_or_default();
        }
    }
    Ok(total)
}

/// CPU time of this process.
#[must_use]
pub fn own_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// CPU time of the whole machine since boot, including the time stolen by its host.
///
/// # Errors
/// When the system does not report it.
pub fn machine_cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    parse_machine_cpu_time(&stat, rustix::param::clock_ticks_per_second())
}

/// Resident memory of a process.
///
/// # Errors
/// When there is no such process.
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    parse_memory(&read(pid, "status")?)
}

/// The machine, for reports: processor, cores, memory.
#[must_use]
pub fn machine() -> String {
    let field = |path: &str, name: &str| {
        let text = std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kib: u64 =
        field("/proc/meminfo", "MemTotal").split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    format!("{}, {cores} cores, {} GiB", field("/proc/cpuinfo", "model name"), kib >> 20)
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}"))
        .with_context(|| format!("process {pid} is not there"))
}

fn parse_cpu_time(stat: &str, ticks_per_second: u64) -> anyhow::Result<Duration> {
    // The second field is the command in parentheses, which may itself hold spaces and parentheses.
    let after_command = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_command.split_whitespace().skip(11).map(str::parse::<u64>);
    let (Some(Ok(user)), Some(Ok(system))) = (fields.next(), fields.next()) else {
        bail!("/proc stat line without utime and stime: {stat:?}");
    };
    Ok(Duration::from_secs_f64((user + system) as f64 / ticks_per_second as f64))
}

fn parse_machine_cpu_time(stat: &str, ticks_per_second: u64) -> anyhow::Result<Duration> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu ")).context("/proc/stat without cpu")?;
    // user nice system idle iowait irq softirq steal; what comes after is contained in user and nice.
    let fields: Result<Vec<u64>, _> = all.split_whitespace().take(8).map(str::parse).collect();
    let fields = fields.with_context(|| format!("/proc/stat line {all:?}"))?;
    let busy = fields.iter().enumerate().filter(|(field, _)| !matches!(field, 3 | 4));
    let ticks: u64 = busy.map(|(_, ticks)| ticks).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
}

fn parse_memory(status: &str) -> anyhow::Result<Memory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib * 1024).with_context(|| format!("/proc status without {name}"))
    };
    Ok(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
}

/// Processes by their names in a report.
pub(crate) struct Processes(Vec<(String, u32)>);

/// CPU time of each process at one moment.
pub(crate) struct Reading {
    at: Instant,
    used: Vec<(String, Duration)>,
    machine: Duration,
}

/// CPU time of each process between two readings.
pub(crate) struct Used {
    pub(crate) elapsed: Duration,
    pub(crate) each: Vec<(String, Duration)>,
    machine: Duration,
}

impl Processes {
    pub(crate) fn new(processes: Vec<(String, u32)>) -> Self {
        Self(processes)
    }

    /// # Errors
    /// When one of them has ended.
    pub(crate) fn read(&self) -> anyhow::Result<Reading> {
        let at = Instant::now();
        let used = self.0.iter().map(|(name, pid)| Ok((name.clone(), cpu_time(*pid)?)));
        Ok(Reading { at, used: used.collect::<anyhow::Result<_>>()?, machine: machine_cpu_time()? })
    }
}

impl Reading {
    /// CPU time since `earlier`, a reading of the same processes.
    pub(crate) fn since(&self, earlier: &Self) -> Used {
        let each = self.used.iter().zip(&earlier.used);
        let each = each.map(|((name, now), (_, then))| (name.clone(), now.saturating_sub(*then))).collect();
        let machine = self.machine.saturating_sub(earlier.machine);
        Used { elapsed: self.at - earlier.at, each, machine }
    }
}

impl Used {
    /// CPU time of all of them together, in cores.
    pub(crate) fn cores(&self) -> f64 {
        self.sum().as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// CPU time of all other processes, in cores.
    pub(crate) fn others(&self) -> f64 {
        self.machine.saturating_sub(self.sum()).as_secs_f64() / self.elapsed.as_secs_f64()
    }

    fn sum(&self) -> Duration {
        self.each.iter().map(|(_, used)| *used).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_command_with_parentheses_and_spaces() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 101 0 0 0 250 50 9 9 20 0 1 0 105205";
        assert_eq!(parse_cpu_time(stat, 100).unwrap(), Duration::from_secs(3));
    }

    #[test]
    fn a_short_stat_line_is_an_error() {
        assert!(parse_cpu_time("7 (weir) S 1 7", 100).is_err());
    }

    #[test]
    fn the_machine_is_busy_with_all_but_idle_and_waiting() {
        let stat = "cpu  100 20 30 5000 600 1 2 47 9 9\ncpu0 50 10 15 2500 300 0 1 2 0 0\n";
        assert_eq!(parse_machine_cpu_time(stat, 100).unwrap(), Duration::from_secs(2));
        assert!(parse_machine_cpu_time("intr 7\n", 100).is_err());
        assert!(machine_cpu_time().unwrap() > own_cpu_time());
    }

    #[test]
    fn memory_is_in_bytes() {
        let memory = parse_memory("Name:\tweir\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n").unwrap();
        assert_eq!(memory, Memory { resident: 1 << 20, peak: 2 << 20 });
    }

    #[test]
    fn this_process_uses_cpu_time_and_memory() {
        let before = own_cpu_time();
        let mut sum = 0_u64;
        while own_cpu_time() - before < Duration::from_millis(50) {
            sum = std::hint::black_box(sum + 1);
        }
        let pid = std::process::id();
        assert!(cpu_time(pid).unwrap() >= Duration::from_millis(40));
        // Read in this order: the tree's time includes this process's and only grows.
        let own = cpu_time(pid).unwrap();
        assert!(tree_cpu_time(pid).unwrap() >= own);
        assert!(memory(pid).unwrap().resident > 1 << 20);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        assert!(cpu_time(u32::MAX).unwrap_err().to_string().contains("4294967295"));
    }

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
