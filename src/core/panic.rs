//! Record of panics on any thread, kept instead of printed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use crate::{Error, Result};

/// The first panic on any thread since [`record_panics`]: a device's own thread can die of one
/// while its queue goes on handing out garbage, so training asks after every step.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Installs a panic hook that records the first message instead of printing it.
pub fn record_panics() {
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("a panic without a message");
        let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        if let Ok(mut first) = PANIC.lock() {
            first.get_or_insert(format!("{message}{place}"));
        }
    }));
}

/// Removes the recorded panic and returns it: for a caller that expects it and reports it itself.
pub fn take_recorded_panic() -> Option<String> {
    PANIC.lock().ok().and_then(|mut first| first.take())
}

/// Returns the recorded panic, if there was one.
pub fn recorded_panic() -> Option<String> {
    PANIC.lock().ok().and_then(|first| first.clone())
}

/// Does `work` on a device; a device that dies meanwhile, on this thread or on its own, is an error.
pub fn catch_device_panic<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    match (done, recorded_panic()) {
        (Ok(result), None) => result,
        _ => Err(Error::failed(format!("the device died ({})", take_recorded_panic().unwrap_or_default()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_another_thread_is_seen() {
        record_panics();
        let thread = std::thread::spawn(|| panic!("the queue died"));
        assert!(thread.join().is_err());
        let _ = std::panic::take_hook();
        assert!(recorded_panic().unwrap().contains("the queue died"));
        assert!(take_recorded_panic().is_some());
        assert_eq!(recorded_panic(), None);
    }
}
