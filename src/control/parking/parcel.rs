//! One delivery as a row.

use std::fmt;

use bytestring::ByteString;
use sha2::{Digest, Sha256};
use walgate_sink::{Delivery, Event, Position, Timestamp};

/// Longest ordering key that stands in a [`HoldKey`] as it is: an index entry has to fit into a page.
const PLAIN_KEY: usize = 200;

/// Errors that a row keeps: the newest.
pub const KEPT_ERRORS: usize = 10;

/// Where a delivery stands among those of its sink: the order of commits, and within one event a hash of the dedup id,
/// which tells its targets apart. Unique for one slot and sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The event's.
    pub position: Position,
    /// The first 8 bytes of SHA-256 over the dedup id. The same in every version.
    pub delivery: i64,
}

impl Place {
    /// The place of a delivery.
    #[must_use]
    pub fn of(delivery: &Delivery) -> Self {
        let mut first = [0; 8];
        for (to, from) in first.iter_mut().zip(Sha256::digest(&*delivery.dedup_id)) {
            *to = from;
        }
        Place { position: delivery.event.position, delivery: i64::from_be_bytes(first) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.position.fmt(f)
    }
}

/// What a row waits for that does not wait for its sink: its ordering key, or, where it has none, itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldKey(ByteString);

impl HoldKey {
    /// What this delivery would wait for.
    #[must_use]
    pub fn of(delivery: &Delivery) -> Self {
        let Some(key) = &delivery.ordering_key else {
            let Place { position, delivery } = Place::of(delivery);
            return HoldKey(format!("alone:{position}:{delivery}").into());
        };
        HoldKey(match key.len() {
            0..=PLAIN_KEY => format!("key:{key}").into(),
            _ => {
                let digest: String = Sha256::digest(&**key).iter().map(|byte| format!("{byte:02x}")).collect();
                format!("long:{digest}").into()
            }
        })
    }

    /// As it stands in the table.
    #[must_use]
    pub fn from_text(text: impl Into<ByteString>) -> Self {
        HoldKey(text.into())
    }

    /// As it stands in the table.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// When.
    pub at: Timestamp,
    /// The class of the failure; empty: it is not known.
    pub kind: ByteString,
    /// Why, in the sink's words, clipped; empty: they are not kept.
    pub error: String,
}

/// One delivery as it is written.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The delivery; its attempt number is that of the last attempt, 0: it was never sent.
    pub delivery: Delivery,
    /// The route that asked for it, as metrics call it.
    pub route: ByteString,
    /// What it waits for; `None`: its sink. Dead letters: what it would wait for if it came back.
    pub hold: Option<HoldKey>,
    /// Why it cannot be sent, or will not be: a class, a label of metrics. `None` for what is parked and may be sent.
    pub reason: Option<ByteString>,
    /// The same in a sentence.
    pub message: Option<String>,
    /// The last attempts that failed, oldest first, at most [`KEPT_ERRORS`].
    pub errors: Vec<Attempted>,
    /// Whether the event's payload and headers are in it: a row without them cannot be sent.
    pub contents: bool,
}

impl Parcel {
    /// Takes out what may hold data of the event: its payload and headers, and every sentence in a sink's words, which may
    /// quote it. Which event it is, where it was to go, and the classes of what went wrong stay.
    pub fn omit_contents(&mut self) {
        self.contents = false;
        let event = &mut self.delivery.event;
        (event.payload, event.headers, self.message) = (None, Default::default(), None);
        self.errors.iter_mut().for_each(|attempted| attempted.error.clear());
    }
}

/// One delivery as it is read.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its number in the table.
    pub id: i64,
    /// Where it stands.
    pub place: Place,
    /// The event.
    pub event: Event,
    /// The target: the fields that are set, by name.
    pub target: Vec<(String, ByteString)>,
    /// The ordering key.
    pub ordering_key: Option<ByteString>,
    /// The dedup id.
    pub dedup_id: ByteString,
    /// The route, as metrics call it.
    pub route: ByteString,
    /// Attempts that were made.
    pub attempts: u32,
    /// Why it cannot be sent: class and sentence.
    pub rejected: Option<(ByteString, String)>,
    /// The last attempts that failed, oldest first.
    pub errors: Vec<Attempted>,
}
