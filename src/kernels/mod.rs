//! Operations with their own backward pass: [`rms_norm`], [`gated_linear_unit`], `Rotary`,
//! [`attention`], [`dropout`], [`frozen_product`]; [`log_sum_exp`], which has none; and
//! [`profile_scope`].
//!
//! As a chain of tensor operations each of them would read and write its numbers many times, on the
//! CPU mostly on one core, and autodiff would keep every intermediate result for the backward pass.
//! Here each is one pass over memory on all cores, and keeps only its inputs.
//!
//! On the CPU they run natively, on the tensors' own memory. On any other device they are the plain
//! tensor operations, with which the tests compare them.
//!
//! A [`burn::Dispatch`] on a `DispatchDevice::autodiff` cannot have such operations: the autodiff
//! tensor that a backward step must be tied to is a private field. [`Training`], autodiff around
//! the dispatch, can.

mod attention;
mod cpu_op;
mod dropout;
mod frozen_product;
mod gated_linear_unit;
mod log_sum_exp;
mod profile_scope;
mod rms_norm;
mod rotary;
mod row_gather;
mod simd;

pub use attention::{AttentionMask, Keys, LayerCache, Mask, ScoreScaling, attention};
pub(crate) use cpu_op::{cast, is_cpu_device, same_type};
pub use dropout::dropout;
pub use frozen_product::frozen_product;
pub use gated_linear_unit::{Activation, gated_linear_unit};
pub use log_sum_exp::log_sum_exp;
pub use profile_scope::profile_scope;
pub use rms_norm::rms_norm;
pub(crate) use rotary::{Rotary, RotaryFrequencies, half_turn};
pub(crate) use row_gather::RowGather;
pub use simd::InstructionSet;

#[cfg(test)]
mod testing;

#[cfg(doc)]
use crate::device::Training;

/// Value of an additive mask for a key that may not be attended to. It is finite, so that a row
/// without any visible key gives uniform weights and not NaN.
pub const MASKED: f32 = f32::MIN / 2.0;
