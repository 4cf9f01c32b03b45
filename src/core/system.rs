//! Memory of the machine and of this process, as far as the system tells.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

/// Returns the total physical memory, bytes.
pub fn memory_bytes() -> Option<u64> {
    nonzero(memory().total_memory())
}

/// Returns the memory available to new allocations, bytes.
pub fn available_bytes() -> Option<u64> {
    nonzero(memory().available_memory())
}

/// Returns the memory limit of this process's container (Linux's cgroups), bytes; `None` without a
/// limit.
pub fn limit_bytes() -> Option<u64> {
    let memory = memory();
    let limit = memory.cgroup_limits()?.total_memory;
    nonzero(limit).filter(|&limit| limit < memory.total_memory())
}

/// Name of the processor.
pub fn processor() -> Option<String> {
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    system.cpus().first().map(|cpu| cpu.brand().trim().to_string()).filter(|name| !name.is_empty())
}

/// Returns the resident memory of this process, bytes.
pub fn resident_bytes() -> Option<u64> {
    let process = sysinfo::get_current_pid().ok()?;
    let mut system = System::new();
    let memory_alone = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[process]), true, memory_alone);
    nonzero(system.process(process)?.memory())
}

/// Returns the peak resident memory of this process, bytes; 0 where the system is no Unix (sysinfo
/// has no peak).
pub fn peak_bytes() -> u64 {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: getrusage fills the struct it is given; all zeros are a valid value of it.
        let usage = unsafe {
            libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
            usage.assume_init()
        };
        // Kilobytes on Linux, bytes on macOS.
        usage.ru_maxrss as u64 * if cfg!(target_os = "macos") { 1 } else { 1024 }
    }
    #[cfg(not(unix))]
    {
        0
    }
}

fn memory() -> System {
    System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()))
}

/// Returns `None` for 0, which sysinfo returns where the system tells nothing.
fn nonzero(bytes: u64) -> Option<u64> {
    Some(bytes).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_machine_and_of_the_process_are_in_order() {
        let (all, available, resident) =
            (memory_bytes().unwrap(), available_bytes().unwrap(), resident_bytes().unwrap());
        assert!(available <= all && resident <= all && peak_bytes() <= all, "{all} {available} {resident}");
        assert!(resident > 1 << 20 && peak_bytes() > 1 << 20);
        assert!(limit_bytes().is_none_or(|limit| limit < all));
    }
}
