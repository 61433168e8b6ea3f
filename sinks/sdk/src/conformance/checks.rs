//! The checks, in the order in which they are run: what a sound link must give first, then what faults must not take.

mod arrival;
mod faults;
mod refusals;

use super::{
    kit::Kit,
    verdict::{Fault, Report},
};

type Check = fn(&mut Kit<'_>) -> Result<(), Fault>;

const CHECKS: &[(&str, Check)] = &[
    ("id, key and headers arrive", arrival::id_key_and_headers),
    ("empty, odd and large payloads arrive whole", arrival::payloads),
    ("what is too large is rejected as such", arrival::too_large),
    ("events of a batch arrive in its order", arrival::order_in_batch),
    ("acknowledged means readable", arrival::acknowledged_is_readable),
    ("acknowledged survives a crash of the receiver", arrival::acknowledged_is_durable),
    ("nothing is acknowledged before the receiver has said so", faults::no_acknowledgement_of_ones_own),
    ("silence ends with the attempt's time", faults::silence_ends),
    ("outcomes are true when the link breaks in a batch", faults::outcomes_are_true),
    ("receipts of a key never skip forward, whatever breaks", faults::order_of_keys),
    ("a lost answer is followed by a repeat with the same id", faults::lost_answer),
    ("a broken link may pass, and is recovered from in time", faults::recovery),
    ("a dropped future leaves the sink usable", faults::dropped_future),
    ("an unknown target is refused by name", refusals::unknown_target),
    ("bad credentials are fatal, and named", refusals::bad_credentials),
    ("close flushes, and may come twice", refusals::close_twice),
    ("unknown configuration keys are refused", refusals::unknown_keys),
    // The last: it looks at what the others have seen.
    ("no secret is in any text", refusals::no_secret),
];

pub(super) fn run_all(kit: &mut Kit<'_>, report: &mut Report) {
    for (name, check) in CHECKS {
        report.add(name, check(kit));
        kit.harness.heal();
    }
}
