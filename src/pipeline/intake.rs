//! From decoded messages to tracked deliveries in their lanes.
//!
//! [`Intake`] takes one frame at a time and never waits; it says what has to be waited for before the next one. It
//! is the only place where the source, the router, the checkpoint and the lanes meet.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    num::NonZeroU32,
    time::Instant,
};

use bytestring::ByteString;
use walgate_sink::{Delivery, Event, Lsn, Position, RejectReason, Rejection, Target, Timestamp};

use super::window;
use crate::{
    checkpoint::{BeginVerdict, Checkpoint, CommitVerdict, Resume, RowVerdict, Ticket},
    config::{Limits, Unrouted},
    lane::{LaneHandle, Work},
    metrics::Metrics,
    router::{Routed, Router},
    source::{Change, DecodeError, Frame, Inserted, MappingError, NoKey, OutboxReader, Row, Unusable, pgoutput},
    telemetry::{Gates, clip, failpoint},
};

/// Event types without a route that are logged: more are counted only. Each costs a line, and 8 bytes.
const LOGGED_TYPES: usize = 200;

/// Works that are handed to a lane at once.
const PUSH: usize = 128;

/// What has to come about before the next frame may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Wait {
    /// Nothing.
    No,
    /// The byte window is full: until less is unsettled.
    Room,
    /// The WAL between the checkpoint and this commit is more than `limits.run_ahead`.
    RunAhead(Lsn),
    /// An event has no route and `unrouted: halt` is set: until somebody adds one, which takes a restart.
    Route,
}

/// Why no further frame of this connection can be taken.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// Bytes that are no pgoutput.
    #[error("PostgreSQL sent a message that cannot be read: {0}; the connection is opened again")]
    Decode(#[from] DecodeError),
    /// The table does not have what the mapping names.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// What is sent again differs from what was received before.
    #[error("the server sent another row where the last one had been taken; the transaction is taken again")]
    Mismatch,
    /// Commit positions do not ascend.
    #[error(
        "the stream is out of order at {0}: not the history that was received before. \
         Was the server restored from a backup, or another one put in its place?"
    )]
    OutOfOrder(Lsn),
}

impl IntakeError {
    /// Whether the bytes may have been damaged on their way: then they come again whole.
    pub fn is_damage(&self) -> bool {
        match self {
            IntakeError::Decode(_) | IntakeError::Mismatch => true,
            IntakeError::Mapping(error) => {
                matches!(error, MappingError::Width { .. } | MappingError::Undescribed { .. })
            }
            IntakeError::OutOfOrder(_) => false,
        }
    }
}

/// Takes the stream apart and feeds the lanes.
pub struct Intake {
    checkpoint: Checkpoint,
    resume: Resume,
    reader: OutboxReader,
    router: Router,
    /// By the place of a route its number.
    route_numbers: Vec<u16>,
    lanes: Vec<LaneHandle>,
    /// Works by lane that are not handed over yet.
    pending: Vec<Vec<Work>>,
    routed: Vec<Routed>,
    unrouted: Unrouted,
    limits: Limits,
    metrics: Metrics,
    /// Hashes of the event types that were logged: the types themselves may be of any length.
    logged_types: HashSet<u64>,
    hasher: RandomState,
    gates: Gates,
    commit: Option<Commit>,
    halted: bool,
}

/// The transaction that the stream is in.
#[derive(Clone, Copy)]
struct Commit {
    lsn: Lsn,
    at: Timestamp,
}

/// What a configuration gives the intake.
pub struct Course {
    /// The outbox's columns as events.
    pub reader: OutboxReader,
    /// The routes.
    pub router: Router,
    /// By the place of a route its number, as metrics have it.
    pub route_numbers: Vec<u16>,
    /// The lanes, by the places of their sinks.
    pub lanes: Vec<LaneHandle>,
    /// What happens to events without a route.
    pub unrouted: Unrouted,
    /// Bounds.
    pub limits: Limits,
}

impl Intake {
    /// An intake over a slot whose confirmed LSN is that of `checkpoint`.
    pub fn new(checkpoint: Checkpoint, course: Course, metrics: Metrics) -> Self {
        let confirmed = checkpoint.snapshot().flush_lsn;
        let Course { reader, router, route_numbers, lanes, unrouted, limits } = course;
        Intake {
            resume: Resume::new(confirmed),
            pending: lanes.iter().map(|_| Vec::with_capacity(PUSH)).collect(),
            routed: Vec::new(),
            logged_types: HashSet::new(),
            hasher: RandomState::new(),
            gates: Gates::default(),
            commit: None,
            halted: false,
            checkpoint,
            reader,
            router,
            route_numbers,
            lanes,
            unrouted,
            limits,
            metrics,
        }
    }

    /// Whether the stream is within a transaction.
    pub fn in_transaction(&self) -> bool {
        self.commit.is_some() || !self.resume.between_transactions()
    }

    /// Goes by another configuration from here on; only [between transactions](Intake::in_transaction). The next
    /// connection describes the outbox to the new reader.
    pub fn change(&mut self, course: Course) {
        let Course { reader, router, route_numbers, lanes, unrouted, limits } = course;
        self.pending = lanes.iter().map(|_| Vec::with_capacity(PUSH)).collect();
        self.logged_types.clear();
        (self.reader, self.router, self.route_numbers) = (reader, router, route_numbers);
        (self.lanes, self.unrouted, self.limits) = (lanes, unrouted, limits);
    }

    /// Begins again with what the checkpoint begins with, as if nothing had been received.
    pub fn start_over(&mut self, lanes: Vec<LaneHandle>) {
        self.resume = Resume::new(self.checkpoint.snapshot().flush_lsn);
        self.pending = lanes.iter().map(|_| Vec::with_capacity(PUSH)).collect();
        (self.lanes, self.commit, self.halted) = (lanes, None, false);
    }

    /// A new connection: what it sends again is skipped.
    pub fn on_connect(&mut self) {
        self.resume.on_connect();
        self.commit = None;
    }

    /// Whether an event without a route holds everything. It stays so across reconnects: the event counts as taken,
    /// and would be skipped when it is sent again.
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// Takes one frame. `copy_out`: many chunks are alive, so that events leave theirs.
    ///
    /// # Errors
    /// The connection cannot be read on; after [damage](IntakeError::is_damage) a new one may be.
    pub fn take(&mut self, frame: &Frame, copy_out: bool) -> Result<Wait, IntakeError> {
        let body = match frame {
            Frame::Keepalive { wal_end, .. } => {
                if self.resume.between_transactions() {
                    self.checkpoint.with(|ring| ring.keepalive(*wal_end));
                }
                return Ok(Wait::No);
            }
            Frame::XLogData { body, .. } => body,
        };
        match pgoutput::decode(body)? {
            Change::Begin { final_lsn, committed_at, .. } => self.begin(final_lsn, committed_at),
            Change::Insert { relation, tuple } => {
                let Some(commit) = self.commit else { return Err(IntakeError::OutOfOrder(Lsn::ZERO)) };
                // The position is known only after the row's id was compared with what was taken before.
                match self.reader.insert(relation, &tuple, Position::default(), commit.at)? {
                    Some(inserted) => self.row(inserted, commit, copy_out),
                    None => {
                        self.resume.other_row();
                        Ok(Wait::No)
                    }
                }
            }
            Change::Commit { commit_lsn, end_lsn, .. } => self.end(commit_lsn, end_lsn),
            Change::Relation(relation) => {
                self.reader.relation(relation)?;
                Ok(Wait::No)
            }
            Change::Update { relation } => Ok(self.ignored(relation, "update")),
            Change::Delete { relation } => Ok(self.ignored(relation, "delete")),
            Change::Truncate { relations, .. } => {
                if relations.iter().any(|relation| self.reader.is_outbox(*relation)) {
                    self.metrics.ignored_row("truncate");
                    tracing::info!(
                        "the outbox was truncated: events that were inserted before are delivered all the same"
                    );
                }
                Ok(Wait::No)
            }
            Change::Type(name) => {
                self.reader.type_name(&name);
                Ok(Wait::No)
            }
            Change::Origin { .. } | Change::Message(_) => Ok(Wait::No),
        }
    }

    /// Hands everything that is routed to its lane: at the end of a chunk, and before any wait.
    pub fn flush(&mut self) {
        for (lane, pending) in self.lanes.iter().zip(&mut self.pending) {
            if !pending.is_empty() {
                lane.push_all(pending.drain(..));
            }
        }
    }

    fn begin(&mut self, commit_lsn: Lsn, at: Timestamp) -> Result<Wait, IntakeError> {
        self.commit = Some(Commit { lsn: commit_lsn, at });
        match self.resume.begin(commit_lsn) {
            BeginVerdict::New => {
                let (flush_lsn, unsettled) = self.checkpoint.with(|ring| {
                    ring.begin(commit_lsn);
                    (ring.flush_lsn(), ring.unsettled_events())
                });
                let held = unsettled > 0 && commit_lsn.bytes_since(flush_lsn) > self.limits.run_ahead.0;
                Ok(if held { Wait::RunAhead(commit_lsn) } else { Wait::No })
            }
            BeginVerdict::Continue | BeginVerdict::Skip => Ok(Wait::No),
            BeginVerdict::OutOfOrder => Err(IntakeError::OutOfOrder(commit_lsn)),
        }
    }

    fn end(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<Wait, IntakeError> {
        self.commit = None;
        match self.resume.commit(commit_lsn, end_lsn) {
            CommitVerdict::Close => {
                self.checkpoint.with(|ring| ring.commit(end_lsn));
                failpoint("transaction.closed");
                Ok(Wait::No)
            }
            CommitVerdict::Skip => Ok(Wait::No),
            CommitVerdict::Mismatch => Err(self.mismatch()),
            CommitVerdict::OutOfOrder => Err(IntakeError::OutOfOrder(commit_lsn)),
        }
    }

    fn mismatch(&mut self) -> IntakeError {
        self.checkpoint.with(|ring| {
            if ring.is_open() {
                ring.abandon();
            }
        });
        IntakeError::Mismatch
    }

    fn ignored(&mut self, relation: u32, kind: &'static str) -> Wait {
        self.resume.other_row();
        if self.reader.is_outbox(relation) {
            self.metrics.ignored_row(kind);
        }
        Wait::No
    }

    fn row(&mut self, inserted: Inserted, commit: Commit, copy_out: bool) -> Result<Wait, IntakeError> {
        let id = match &inserted {
            Inserted::Row(row) => row.event.id.as_bytes(),
            Inserted::Unusable(row) => &row.id,
        };
        let position = match self.resume.row(id) {
            RowVerdict::Track(position) => position,
            RowVerdict::Skip => return Ok(Wait::No),
            RowVerdict::Mismatch => return Err(self.mismatch()),
            RowVerdict::OutOfOrder => return Err(IntakeError::OutOfOrder(commit.lsn)),
        };
        self.metrics.events_received.inc();
        let Row { mut event, mut columns, no_key, bytes } = match inserted {
            Inserted::Row(row) => row,
            Inserted::Unusable(row) => {
                self.log_unusable(&row, position);
                if self.unrouted == Unrouted::DeadLetter {
                    let text = |bytes: &[u8]| ByteString::from(String::from_utf8_lossy(bytes).into_owned());
                    // What it holds cannot be read: its id and its place say where to look.
                    let mut event = Event::new(text(&row.id), row.event_type.clone().unwrap_or_default());
                    (event.position, event.committed_at) = (position, commit.at);
                    return Ok(self.dead_letter(event, row.bytes, row.reason.as_str(), row.reason.to_string()));
                }
                return Ok(self.no_route(row.reason.as_str()));
            }
        };
        event.position = position;
        if let Some(why) = no_key {
            self.log_no_key(&event, why);
        }
        if copy_out {
            // Before it is routed, so that keys and targets leave the chunk as well.
            event = window::detached(&event);
            columns = window::own_columns(&columns);
        }
        self.router.route(&event, &columns, &mut self.routed);
        let Some(deliveries) = u32::try_from(self.routed.len()).ok().and_then(NonZeroU32::new) else {
            self.log_unrouted(&event);
            if self.unrouted == Unrouted::DeadLetter {
                let message = format!("no route matches event type `{}`", clip(&event.event_type));
                return Ok(self.dead_letter(event, bytes, "unrouted", message));
            }
            return Ok(self.no_route("unrouted"));
        };
        let bytes = window::cost(bytes, deliveries);
        let (ticket, unsettled) = self.checkpoint.with(|ring| (ring.track(deliveries, bytes), ring.unsettled_bytes()));
        failpoint("event.tracked");
        self.push(ticket);
        failpoint("event.pushed");
        Ok(if unsettled >= self.limits.inflight.0 { Wait::Room } else { Wait::No })
    }

    fn push(&mut self, ticket: Ticket) {
        for routed in self.routed.drain(..) {
            let Some((lane, pending)) = self.lanes.get(routed.sink).zip(self.pending.get_mut(routed.sink)) else {
                continue; // The router was compiled from these very sinks.
            };
            pending.push(Work {
                delivery: routed.delivery,
                debt: ticket.into(),
                route: self.route_numbers.get(usize::from(routed.route)).copied().unwrap_or(u16::MAX),
                invalid: routed.invalid,
            });
            if pending.len() >= PUSH {
                lane.push_all(pending.drain(..));
            }
        }
    }

    /// Hands an event that goes nowhere to the lane that makes dead letters, the last one.
    fn dead_letter(&mut self, event: Event, bytes: u64, reason: &'static str, message: String) -> Wait {
        self.metrics.discarded(reason);
        let (ticket, unsettled) =
            self.checkpoint.with(|ring| (ring.track(NonZeroU32::MIN, bytes), ring.unsettled_bytes()));
        let dedup_id = event.id.clone();
        let delivery = Delivery { event, target: Target::new(&[], []), ordering_key: None, dedup_id, attempt: 0 };
        let invalid = Some(Rejection::new(RejectReason::UnknownTarget, message));
        if let Some((lane, pending)) = self.lanes.last().zip(self.pending.last_mut()) {
            pending.push(Work { delivery, debt: ticket.into(), route: u16::MAX, invalid });
            if pending.len() >= PUSH {
                lane.push_all(pending.drain(..));
            }
        }
        if unsettled >= self.limits.inflight.0 { Wait::Room } else { Wait::No }
    }

    fn no_route(&mut self, reason: &'static str) -> Wait {
        match self.unrouted {
            // Those are handed on before.
            Unrouted::DeadLetter => Wait::No,
            Unrouted::Drop => {
                self.metrics.discarded(reason);
                Wait::No
            }
            Unrouted::Halt => {
                self.halted = true;
                Wait::Route
            }
        }
    }

    fn log_unusable(&mut self, row: &Unusable, position: Position) {
        let event_id = clip(&String::from_utf8_lossy(row.id.get(..1024).unwrap_or(&row.id)));
        let reason = &row.reason;
        match self.unrouted {
            Unrouted::DeadLetter => {
                let Some(suppressed) = self.gates.open(reason.as_str(), Instant::now()) else { return };
                tracing::warn!(
                    lsn = %position,
                    event_id,
                    %reason,
                    suppressed,
                    "a row of the outbox is no event: its id is kept in walgate.dead_letters"
                );
            }
            Unrouted::Drop => {
                let Some(suppressed) = self.gates.open(reason.as_str(), Instant::now()) else { return };
                tracing::warn!(
                    lsn = %position,
                    event_id,
                    %reason,
                    suppressed,
                    "a row of the outbox is no event: it is dropped, and counted in walgate_discarded_events_total"
                );
            }
            Unrouted::Halt => tracing::error!(
                lsn = %position,
                event_id,
                %reason,
                "a row of the outbox is no event, and `unrouted: halt` is set: nothing more is read. Set \
                 `unrouted: drop` and restart to go on without it"
            ),
        }
    }

    fn log_no_key(&mut self, event: &Event, why: NoKey) {
        let Some(suppressed) = self.gates.open("no_key", Instant::now()) else { return };
        let (event_type, event_id) = (clip(&event.event_type), clip(&event.id));
        tracing::warn!(
            event_type,
            event_id,
            %why,
            suppressed,
            "an event has no key at the JSON pointer of `outbox.columns.key`: it is delivered without an order to keep"
        );
    }

    fn log_unrouted(&mut self, event: &Event) {
        let known = self.logged_types.len();
        if known > LOGGED_TYPES || !self.logged_types.insert(self.hasher.hash_one(&*event.event_type)) {
            return;
        }
        let (event_type, event_id) = (clip(&event.event_type), clip(&event.id));
        match self.unrouted {
            Unrouted::DeadLetter => tracing::warn!(
                event_type,
                event_id,
                "no route matches this event type: its events are kept in walgate.dead_letters (logged once per type)"
            ),
            Unrouted::Drop if known == LOGGED_TYPES => tracing::warn!(
                event_type,
                event_id,
                "no route matches this event type either: that is more types than are logged; from now on events \
                 without a route are only counted, in walgate_discarded_events_total"
            ),
            Unrouted::Drop => tracing::warn!(
                event_type,
                event_id,
                "no route matches this event type: its events are dropped (logged once per type, counted in \
                 walgate_discarded_events_total)"
            ),
            Unrouted::Halt => tracing::error!(
                event_type,
                event_id,
                lsn = %event.position,
                "no route matches this event and `unrouted: halt` is set: nothing more is read. Add a route for it, or \
                 set `unrouted: drop`, and restart"
            ),
        }
    }
}
