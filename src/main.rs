//! The `itemlm` command.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h; libmimalloc-sys does not name it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> ExitCode {
    // Freed pages stay with the process: given back and faulted in again for every activation they
    // took a third of a training step (80 s of system time in 240 s, office, batch 8; 10 s
    // without). `prepare` works within a limit of memory and gives its pages back.
    if std::env::args_os().nth(1).is_none_or(|command| command != "prepare") {
        // SAFETY: sets one option of the allocator, before any other thread exists.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    }
    itemlm::core::panic::silence();
    let guard = itemlm::core::panic::DeviceGuard::new();
    let work = || guard.scope(|| itemlm::cli::run(std::env::args_os()));
    let code = itemlm::core::panic::catch(work).unwrap_or_else(|panic| {
        let why = guard.panic().unwrap_or(panic.message);
        // burn-train's dashboard ends a run by a panic when its user asks for that (`q`, then `k`).
        if why.starts_with("Killing training") {
            itemlm::core::log::log("error: killed from the dashboard; go on from the last checkpoint with --resume");
            return 1;
        }
        if let Some(why) = itemlm::device::out_of_memory_message(&why) {
            itemlm::core::log::log(format_args!(
                "error: the device ran out of memory ({why}): do less at once, or use --backend cpu"
            ));
            return 1;
        }
        itemlm::core::log::log(format_args!(
            "error: internal error: {why}; please report it with the command that you ran"
        ));
        1
    });
    ExitCode::from(code)
}
