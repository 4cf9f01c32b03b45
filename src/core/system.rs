//! Memory of the machine and of this process, as far as the system tells.

/// Total physical memory, bytes.
pub fn memory_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        // SAFETY: sysconf only reads.
        let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        Some(u64::try_from(pages).ok()? * u64::try_from(size).ok()?)
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// Memory available to new allocations (`MemAvailable`), bytes; Linux only.
pub fn available_bytes() -> Option<u64> {
    bytes_of("/proc/meminfo", "MemAvailable:")
}

/// Memory limit of this process's container (cgroups version 2), bytes; Linux only.
pub fn limit_bytes() -> Option<u64> {
    std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}

/// Resident memory of this process (`VmRSS`), bytes; Linux only.
pub fn resident_bytes() -> Option<u64> {
    bytes_of("/proc/self/status", "VmRSS:")
}

/// Peak resident memory of this process, bytes; 0 where the system is no Unix.
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

/// Reads an entry in kB of one of the tables in `/proc`, in bytes.
fn bytes_of(table: &str, entry: &str) -> Option<u64> {
    let table = std::fs::read_to_string(table).ok()?;
    let kilobytes =
        table.lines().find_map(|line| line.strip_prefix(entry)?.strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes << 10)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_linux_tells_is_in_order() {
        let (all, available, resident) =
            (memory_bytes().unwrap(), available_bytes().unwrap(), resident_bytes().unwrap());
        assert!(available <= all && resident <= all && peak_bytes() <= all, "{all} {available} {resident}");
        assert!(resident > 1 << 20 && peak_bytes() > 1 << 20);
    }
}
