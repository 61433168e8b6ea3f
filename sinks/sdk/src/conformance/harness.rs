//! What an author writes: how the receiver is reached, broken and read.

use serde_json::Value;

/// Whether the harness can do what was asked.
pub type Able = Result<(), Unable>;

/// Why a harness cannot make a situation; the checks that need it are skipped, with this text in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unable(pub &'static str);

/// A real receiver, with a link to it that can be broken.
///
/// Methods may block. They panic where the instruments themselves fail: the test is over then. What a protocol has no
/// such thing as (credentials, a link) is answered with [`Unable`].
pub trait Harness {
    /// The sink's configuration, as under its kind: with credentials, and by way of the link that can be broken.
    fn config(&self) -> Value;

    /// Values of the sink's target fields that lead to where [`Harness::read`] reads.
    fn target(&self) -> Vec<(&'static str, String)>;

    /// What the receiver holds, repeats included, in its own order; read by other means than the sink's client library,
    /// and not over the link. The whole of it at each call: a harness whose receiver hands a message out once keeps it.
    fn read(&mut self) -> Vec<Received>;

    /// Everything is as it was at the start: the receiver runs, nothing is held up or lost. What it holds stays. Called
    /// after each check.
    fn heal(&mut self);

    /// Breaks the connections that exist; new ones are accepted.
    ///
    /// # Errors
    /// There are no connections.
    fn cut(&mut self) -> Able;

    /// Ends the receiver, as a crash would.
    ///
    /// # Errors
    /// It cannot be ended.
    fn stop(&mut self) -> Able;

    /// Starts it again with what it held; returns when it serves. Called after [`Harness::stop`].
    fn start(&mut self);

    /// From now on nothing passes, in either direction, and nothing is closed; until [`Harness::heal`].
    ///
    /// # Errors
    /// It cannot be held up.
    fn freeze(&mut self) -> Able;

    /// From now on what is asked is done, and answers are lost; until [`Harness::heal`].
    ///
    /// # Errors
    /// Answers cannot be lost.
    fn lose_answers(&mut self) -> Able;

    /// A configuration whose credentials the receiver refuses.
    ///
    /// # Errors
    /// There are no credentials.
    fn refused(&mut self) -> Result<Refused, Unable>;

    /// Whether `check` shows credentials, too, to the receiver: not where only a delivery carries them, as over HTTP.
    fn check_sees_credentials(&self) -> bool {
        true
    }

    /// A target that is legal and leads nowhere.
    ///
    /// # Errors
    /// There is no such target.
    fn unknown_target(&mut self) -> Result<UnknownTarget, Unable>;

    /// What the sink can carry.
    fn carries(&self) -> Carries;

    /// Every secret in the configurations that this harness gives out: none may appear in any text.
    fn secrets(&self) -> Vec<String>;

    /// Whatever else the sink has printed: `Debug` of its configuration and of itself, captured logs.
    fn printed(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// One message as the receiver holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The event's id.
    pub id: String,
    /// The event's key.
    pub key: Option<String>,
    /// The event's own headers, under their own names and decoded.
    pub headers: Vec<(String, String)>,
    /// The payload.
    pub body: Vec<u8>,
}

/// A configuration that must be refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// As [`Harness::config`], with other credentials.
    pub config: Value,
    /// What the text must name: the receiver's address, say.
    pub named: String,
}

/// A target that leads nowhere.
#[derive(Clone, Debug)]
pub struct UnknownTarget {
    /// As [`Harness::config`].
    pub config: Value,
    /// As [`Harness::target`].
    pub target: Vec<(&'static str, String)>,
    /// What the text must name: the topic, queue, subject or path.
    pub named: String,
}

/// What a sink can carry. What it cannot, it must reject as invalid.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Carries {
    /// The key arrives.
    pub key: bool,
    /// The event's own headers arrive.
    pub headers: bool,
    /// Any bytes can be a payload.
    pub binary: bool,
    /// Events of different keys arrive in the order of their batch: not where a receiver has an order within a key only.
    pub batch_order: bool,
    /// Bytes of the largest payload that must arrive.
    pub largest: usize,
    /// Bytes of a payload that the sink must reject as too large, if there is such a bound.
    pub too_large: Option<usize>,
}

impl Default for Carries {
    fn default() -> Self {
        Carries { key: true, headers: true, binary: true, batch_order: true, largest: 200_000, too_large: None }
    }
}

impl Carries {
    /// Sets [`Carries::headers`].
    #[must_use]
    pub fn with_headers(mut self, headers: bool) -> Self {
        self.headers = headers;
        self
    }

    /// Sets [`Carries::binary`].
    #[must_use]
    pub fn with_binary(mut self, binary: bool) -> Self {
        self.binary = binary;
        self
    }

    /// Sets [`Carries::batch_order`].
    #[must_use]
    pub fn with_batch_order(mut self, batch_order: bool) -> Self {
        self.batch_order = batch_order;
        self
    }

    /// Sets [`Carries::key`].
    #[must_use]
    pub fn with_key(mut self, key: bool) -> Self {
        self.key = key;
        self
    }

    /// Sets [`Carries::largest`] and [`Carries::too_large`].
    #[must_use]
    pub fn with_sizes(mut self, largest: usize, too_large: Option<usize>) -> Self {
        self.largest = largest;
        self.too_large = too_large;
        self
    }
}
