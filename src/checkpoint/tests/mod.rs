//! Tests of the checkpoint: named cases, all small cases, and random histories against a naive model.

use std::num::NonZeroU32;

use walgate_sink::Lsn;

mod exhaustive;
mod handle;
mod hostile;
mod model;
mod resume;
mod ring;
mod simulation;
mod world;

fn deliveries(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

/// Short, so that the cases stay readable.
fn lsn(value: u64) -> Lsn {
    Lsn(value)
}
