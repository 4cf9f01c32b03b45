//! AdamW with PyTorch's defaults, whose state can be read while burn's learner owns it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::AutodiffModule;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{self, AdamWConfig, GradientsParams, MultiGradientsParams, Optimizer};
use burn::tensor::backend::AutodiffBackend;

type Inner<M, B> = OptimizerAdaptor<optim::AdamW, M, B>;

/// burn's AdamW behind a shared handle: the learner steps it, the checkpoint reads it (the learner
/// itself gives no access).
#[derive(Clone)]
pub struct AdamW<M: AutodiffModule<B>, B: AutodiffBackend>(Arc<Mutex<Inner<M, B>>>);

/// β = (0.9, 0.999) and ε = 1e-8 as `torch.optim.AdamW`; burn's own default ε is 1e-5.
pub fn adamw<M: AutodiffModule<B>, B: AutodiffBackend>(weight_decay: f64) -> AdamW<M, B> {
    let config = AdamWConfig::new()
        .with_beta_1(0.9)
        .with_beta_2(0.999)
        .with_epsilon(1e-8)
        .with_weight_decay(weight_decay as f32);
    AdamW(Arc::new(Mutex::new(config.init())))
}

impl<M: AutodiffModule<B>, B: AutodiffBackend> AdamW<M, B> {
    fn inner(&self) -> MutexGuard<'_, Inner<M, B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: AutodiffModule<B>, B: AutodiffBackend> Optimizer<M, B> for AdamW<M, B> {
    type Record = <Inner<M, B> as Optimizer<M, B>>::Record;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        self.inner().step(lr, module, grads)
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        self.inner().step_multi(lr, module, grads)
    }

    fn to_record(&self) -> Self::Record {
        self.inner().to_record()
    }

    fn load_record(self, record: Self::Record) -> Self {
        let loaded = self.inner().clone().load_record(record);
        *self.inner() = loaded;
        self
    }
}
