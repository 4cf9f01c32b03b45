//! Panics: those of the work that a thread does, and those of a device's own threads.
//!
//! A thread of a GPU's driver can die while the device's queue goes on handing out garbage. Such a
//! panic is recorded, and belongs to the [`DeviceGuard`]s that are alive then: whoever owns the
//! device asks its guard before it trusts the device's numbers. Owners that come later start
//! without it.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, Once, PoisonError};

use crate::{Error, ErrorKind, Result};

/// Number of device panics that are kept.
const KEPT: usize = 16;

/// The panics of devices' own threads.
struct Record {
    /// Number of such panics so far.
    count: u64,
    /// The last of them, each with the count before it.
    last: VecDeque<(u64, String)>,
}

static RECORD: Mutex<Record> = Mutex::new(Record { count: 0, last: VecDeque::new() });
static HOOK: Once = Once::new();
static SILENT: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Number of calls of [`catch`] that this thread is in.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
    /// Message of this thread's last panic inside a call of [`catch`].
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
    /// The guard of the work that this thread does.
    static GUARD: Cell<DeviceGuard> = const { Cell::new(DeviceGuard { since: u64::MAX }) };
}

/// Stops panics from being printed: for a program that reports them itself.
pub fn silence() {
    SILENT.store(true, Relaxed);
    install_hook();
}

fn install_hook() {
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            record(info);
            if !SILENT.load(Relaxed) {
                previous(info);
            }
        }));
    });
}

fn record(info: &PanicHookInfo) {
    let message = info.payload_as_str().unwrap_or("a panic without a message");
    let location = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
    let message = format!("{message}{location}");
    if CATCHING.get() > 0 {
        MESSAGE.set(Some(message));
    } else if is_device_thread() {
        let mut record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
        let before = record.count;
        record.count += 1;
        record.last.push_back((before, message));
        if record.last.len() > KEPT {
            record.last.pop_front();
        }
    }
}

/// Returns whether this may be a thread of a device: CubeCL names its threads `DS…`, wgpu gives
/// them no name. A worker of rayon hands its panic to the thread that waits for it.
fn is_device_thread() -> bool {
    let thread = std::thread::current();
    let named = thread.name().is_none_or(|name| name.starts_with("DSU-") || name.starts_with("DSD-"));
    named && rayon::current_thread_index().is_none()
}

/// A panic of some work.
pub struct Panic {
    /// The message, with the place in the source.
    pub message: String,
    payload: Box<dyn Any + Send>,
}

impl Panic {
    /// Continues the panic on this thread.
    pub fn resume(self) -> ! {
        MESSAGE.set(Some(self.message));
        resume_unwind(self.payload)
    }
}

/// Runs `work` on this thread; its panic becomes an error.
///
/// # Errors
/// The panic of `work`.
pub fn catch<T>(work: impl FnOnce() -> T) -> std::result::Result<T, Panic> {
    install_hook();
    CATCHING.set(CATCHING.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    done.map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()));
        let message = MESSAGE.take().or(text).unwrap_or_else(|| "a panic without a message".into());
        Panic { message, payload }
    })
}

/// The owner's view of a device: the panics of devices' threads since the guard was made.
///
/// Threads do not say which device they are of: a panic of one device reaches the guards of all
/// devices that are in use at the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceGuard {
    since: u64,
}

impl DeviceGuard {
    /// Makes a guard that knows of no panic yet.
    #[expect(clippy::new_without_default, reason = "it depends on the time")]
    pub fn new() -> Self {
        install_hook();
        Self { since: RECORD.lock().unwrap_or_else(PoisonError::into_inner).count }
    }

    /// Returns the guard of the work that this thread does; outside of [`DeviceGuard::scope`] one
    /// that knows of no panic.
    pub fn current() -> Self {
        GUARD.get()
    }

    /// Returns the message of the first panic that is still kept.
    pub fn panic(&self) -> Option<String> {
        let record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
        record.last.iter().find(|(before, _)| *before >= self.since).map(|(_, message)| message.clone())
    }

    /// Checks that no device's thread has panicked since the guard was made.
    ///
    /// # Errors
    /// A panic of a device's thread, after which the device's numbers are garbage.
    pub fn check(&self) -> Result<()> {
        match self.panic() {
            None => Ok(()),
            Some(panic) => {
                Err(Error::device(format!("a thread of the device died ({panic}); its numbers cannot be trusted")))
            }
        }
    }

    /// Runs `work`; calls of [`check_device`] inside it ask this guard.
    pub fn scope<T>(self, work: impl FnOnce() -> T) -> T {
        struct Restore(DeviceGuard);
        impl Drop for Restore {
            fn drop(&mut self) {
                GUARD.set(self.0);
            }
        }
        let _restore = Restore(GUARD.replace(self));
        work()
    }

    /// Runs `work` on the device; a panic of this thread or of the device's own becomes an error.
    ///
    /// # Errors
    /// Those of `work`; a device that died.
    pub fn run<T>(self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = catch(|| self.scope(work));
        let died = |message: &str| Error::device(format!("the device died ({message})"));
        match (done, self.panic()) {
            (Err(panic), None) => Err(died(&panic.message)),
            (Ok(Ok(value)), None) => Ok(value),
            (Ok(Err(error)), None) => Err(error),
            (Ok(Err(error)), _) if error.kind() == ErrorKind::Device => Err(error),
            (_, Some(message)) => Err(died(&message)),
        }
    }
}

/// Checks that the device on which this thread works has not died.
///
/// # Errors
/// Those of [`DeviceGuard::check`].
pub fn check_device() -> Result<()> {
    DeviceGuard::current().check()
}

/// Lets the guard of this thread's work forget the panics so far: the device works in spite of
/// them.
pub fn acknowledge() {
    GUARD.set(DeviceGuard::new());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_work_is_caught_and_of_another_program_is_none_of_the_devices() {
        let guard = DeviceGuard::new();
        let panic = catch(|| panic!("of {}", 1)).err().unwrap();
        assert!(panic.message.starts_with("of 1 (") && panic.message.contains("panic.rs:"), "{}", panic.message);
        let error = guard.run(|| -> Result<()> { panic!("lost") }).unwrap_err();
        assert!(error.to_string().starts_with("the device died (lost ("), "{error}");
        let handler = std::thread::Builder::new().name("tokio-runtime-worker".into());
        assert!(handler.spawn(|| panic!("a handler")).unwrap().join().is_err());
        let in_pool = catch(|| rayon::join(|| (), || panic!("in the pool")));
        assert!(in_pool.is_err());
        assert!(guard.check().is_ok());
    }
}
