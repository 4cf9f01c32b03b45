//! Linear warm-up, then linear or cosine decay.

/// Linear warm-up and decay, as in transformers' `get_linear_schedule_with_warmup`: at step t (from
/// 0) the peak times t / warm-up while t < warm-up, then times (total − t) / (total − warm-up). So
/// the first step of a warm-up has a learning rate of 0, as in the released runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearSchedule {
    /// The learning rate after warm-up.
    pub peak: f64,
    /// Steps of warm-up.
    pub warmup: usize,
    /// Steps of the whole run.
    pub total: usize,
}

impl LinearSchedule {
    /// Returns the learning rate of step `step`, from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        let factor = if step < self.warmup {
            step as f64 / self.warmup as f64
        } else {
            self.total.saturating_sub(step) as f64 / (self.total.saturating_sub(self.warmup)).max(1) as f64
        };
        self.peak * factor
    }
}

/// Linear warm-up from `start` to the peak, then half a cosine down to `floor`, step by step.
///
/// Reference: LAVIS, lavis/common/optims.py (`LinearWarmupCosineLRScheduler`), whose cosine moves
/// on once an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineSchedule {
    /// The learning rate after warm-up.
    pub peak: f64,
    /// The learning rate at the end.
    pub floor: f64,
    /// The learning rate of the first step of a warm-up.
    pub start: f64,
    /// Steps of warm-up.
    pub warmup: usize,
    /// Steps of the whole run.
    pub total: usize,
}

impl CosineSchedule {
    /// Returns the learning rate of step `step`, from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.start + (self.peak - self.start) * step as f64 / self.warmup as f64;
        }
        let share = (step - self.warmup) as f64 / self.total.saturating_sub(self.warmup).max(1) as f64;
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_by_hand() {
        let schedule = CosineSchedule { peak: 3.0, floor: 1.0, start: 0.0, warmup: 2, total: 6 };
        let rates: Vec<f64> = (0..8).map(|step| (schedule.learning_rate(step) * 1e6).round() / 1e6).collect();
        assert_eq!(rates, [0.0, 1.5, 3.0, 2.707107, 2.0, 1.292893, 1.0, 1.0]);
        assert_eq!(CosineSchedule { warmup: 9, ..schedule }.learning_rate(6), 2.0);
    }

    #[test]
    fn schedules_by_hand() {
        let schedule = LinearSchedule { peak: 1.0, warmup: 2, total: 6 };
        let rates: Vec<f64> = (0..7).map(|step| schedule.learning_rate(step)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        let none = LinearSchedule { peak: 2.0, warmup: 0, total: 2 };
        assert_eq!([none.learning_rate(0), none.learning_rate(1), none.learning_rate(2)], [2.0, 1.0, 0.0]);
    }
}
