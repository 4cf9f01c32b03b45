//! What all tensor code shares.

use std::sync::Mutex;

/// burn 0.21's `backward` frees autodiff steps that another thread is still building, and a
/// gradient is silently lost (tracel-ai/burn#5573; seen here in one run of twenty). So one training
/// step at a time in a process; code that differentiates beside it must take turns as well.
pub static AUTODIFF: Mutex<()> = Mutex::new(());
