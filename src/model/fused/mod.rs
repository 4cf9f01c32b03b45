//! Operations with their own backward: [`rms_norm`], [`swiglu`], `Rotary`, [`attention`], [`dropout`],
//! [`frozen_product`]; [`log_sum_exp`], which has none; and [`mark`].
//!
//! Made of tensor operations, each of them reads and writes its numbers many times, on the CPU mostly on one core, and autodiff keeps
//! every intermediate result for the backward pass. Here each is one pass over memory on all cores, and keeps only its inputs.
//!
//! On the CPU they run natively, on the tensors' own memory; on any other device they are the plain tensor operations, which are
//! also what the tests compare with.
//!
//! A [`burn::Dispatch`] on a `DispatchDevice::autodiff` cannot have such operations: the autodiff tensor that a backward step must
//! be tied to is a private field. [`Training`], autodiff around the dispatch, can.

mod attention;
mod dropout;
mod frozen_product;
mod host;
mod log_sum_exp;
mod mark;
mod moves;
mod rms_norm;
mod rotary;
mod simd;
mod swiglu;

pub use attention::{Keys, LayerCache, Mask, Visible, attention};
pub use dropout::dropout;
pub use frozen_product::frozen_product;
pub(super) use host::{cast, is, is_host};
pub use log_sum_exp::log_sum_exp;
pub use mark::mark;
pub(super) use moves::Moves;
pub use rms_norm::rms_norm;
pub(super) use rotary::{Rotary, half_turn};
pub use swiglu::swiglu;

#[cfg(test)]
mod testing;

#[cfg(doc)]
use crate::backend::Training;
