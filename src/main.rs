//! The `itemlm` command.

use std::process::ExitCode;

/// Keeps freed pages: the CPU backend's matrix products run twice as fast as with glibc's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    itemlm::train::record_panics();
    let code = std::panic::catch_unwind(|| itemlm::cli::run(std::env::args_os())).unwrap_or_else(|_| {
        let why = itemlm::train::recorded_panic().unwrap_or_default();
        eprintln!("error: internal error: {why}; please report it with the command that you ran");
        1
    });
    ExitCode::from(code)
}
