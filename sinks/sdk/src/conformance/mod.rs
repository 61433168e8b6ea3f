//! The conformance kit: what walgate asks of every sink, as named checks against its real receiver.
//!
//! An author writes a [`Harness`] (how the receiver is stopped, cut off and read) and one plain test:
//!
//! ```ignore
//! #[test]
//! fn it_conforms() {
//!     walgate_sink::conformance::run::<MyFactory>(&mut MyHarness::start()).assert_passed();
//! }
//! ```
//!
//! The kit drives the sink as walgate does: one event of a key at a time, repeats until it is acknowledged. It must run
//! outside of an async runtime, since it has one of its own.

mod checks;
mod harness;
mod kit;
mod verdict;

pub use harness::{Able, Carries, Harness, Received, Refused, Unable, UnknownTarget};
pub use kit::Limits;
pub use verdict::{Report, Verdict, VerdictKind};

use crate::{SinkFactory, erase};

/// Runs every check with the usual limits.
pub fn run<F: SinkFactory>(harness: &mut dyn Harness) -> Report {
    run_with::<F>(harness, Limits::default())
}

/// Runs every check with these limits.
pub fn run_with<F: SinkFactory>(harness: &mut dyn Harness, limits: Limits) -> Report {
    let mut report = Report::new(F::KIND);
    match kit::Kit::new(erase::<F>(), harness, limits) {
        Ok(mut kit) => checks::run_all(&mut kit, &mut report),
        Err(fault) => report.add("the harness is sound", Err(fault)),
    }
    report
}

#[cfg(test)]
mod tests;
