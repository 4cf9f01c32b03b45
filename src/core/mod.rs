//! Basics for every other module: errors, files, panics, progress, the machine.

pub mod energy;
pub mod error;
pub mod files;
pub mod log;
pub mod panic;
pub mod profiler;
pub mod progress;
pub mod system;
