//! The witness on the PostgreSQL link: a proxy that decodes the replication protocol in both directions and keeps a
//! log of it, ordered by the process's ticks. What walgate says of its progress is read here, and not from walgate.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::clock::{self, Tick};
use super::lsn::Lsn;
use super::pgwire::{self, Change, First, Framer, Heard, Said};
use super::proxy::{Proxy, Tap};
use super::wait;

/// A standby status update, as it left the client.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    pub tick: Tick,
    pub at: Duration,
    pub connection: u64,
    pub write: Lsn,
    pub flush: Lsn,
    pub apply: Lsn,
    /// Whether it asks the server for an answer.
    pub reply: bool,
}

/// A keepalive on its way to the client.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    pub tick: Tick,
    pub connection: u64,
    pub wal_end: Lsn,
    pub reply: bool,
    /// Put in by the test; the server knows nothing of it.
    pub injected: bool,
}

/// A new row of some table; `id` is its first column.
#[derive(Clone, Debug)]
pub struct RowSent {
    pub tick: Tick,
    pub connection: u64,
    pub id: Box<str>,
    /// The WAL position in the message's header.
    pub start: Lsn,
    /// Of the transaction's commit record, from its Begin.
    pub commit_lsn: Lsn,
}

#[derive(Clone, Copy, Debug)]
pub struct CommitSent {
    pub tick: Tick,
    pub connection: u64,
    pub commit_lsn: Lsn,
    pub end: Lsn,
}

#[derive(Clone, Debug)]
pub struct RelationSent {
    pub connection: u64,
    pub name: String,
    /// The WAL position in the message's header.
    pub start: Lsn,
}

/// `START_REPLICATION`, an error of the server, or CopyDone.
#[derive(Clone, Debug)]
pub struct Notice {
    pub tick: Tick,
    pub connection: u64,
    pub text: String,
}

/// Everything that was seen, each kind in its order.
#[derive(Default)]
pub struct Log {
    pub statuses: Vec<Status>,
    pub keepalives: Vec<Keepalive>,
    pub rows: Vec<RowSent>,
    pub commits: Vec<CommitSent>,
    pub relations: Vec<RelationSent>,
    pub starts: Vec<Notice>,
    pub errors: Vec<Notice>,
    pub copy_done: Vec<Notice>,
    /// When walgate was killed, and what the slot had confirmed then: a status may die with the one who sent it.
    pub restarts: Vec<(Tick, Lsn)>,
    first_row: HashMap<Box<str>, usize>,
    ends: HashMap<Lsn, Lsn>,
}

impl Log {
    /// The end of the commit that wrote this event, once its Commit message was seen.
    pub fn commit_end(&self, id: &str) -> Option<Lsn> {
        let row = self.rows.get(*self.first_row.get(id)?)?;
        self.ends.get(&row.commit_lsn).copied()
    }

    /// The place of the event's first sending among all rows.
    pub fn first_sent(&self, id: &str) -> Option<usize> {
        self.first_row.get(id).copied()
    }

    /// The first time that each event was sent.
    pub fn first_rows(&self) -> impl Iterator<Item = &RowSent> {
        self.first_row.values().filter_map(|index| self.rows.get(*index))
    }

    /// What the client has confirmed last.
    pub fn flush(&self) -> Lsn {
        self.statuses.last().map(|status| status.flush).unwrap_or_default()
    }

    /// Several links to one slot as one log. Where another link than before goes on, another process has taken over: it
    /// begins with what the slot has confirmed, though the one before may have sent more than PostgreSQL has read.
    pub fn merged(logs: &[MutexGuard<'_, Log>]) -> Log {
        let mut merged = Log::default();
        let mut statuses: Vec<(usize, Status)> = Vec::new();
        for (link, log) in logs.iter().enumerate() {
            statuses.extend(log.statuses.iter().map(|status| (link, *status)));
            merged.keepalives.extend(&log.keepalives);
            merged.rows.extend(log.rows.iter().cloned());
            merged.commits.extend(&log.commits);
            merged.restarts.extend(&log.restarts);
            merged.ends.extend(&log.ends);
        }
        statuses.sort_by_key(|(_, status)| status.tick);
        // "Nothing to say yet" is no beginning.
        statuses.retain(|(_, status)| status.flush != Lsn(0));
        for two in statuses.windows(2) {
            if let [(before, _), (link, status)] = two
                && before != link
            {
                merged.restarts.push((status.tick - 1, status.flush));
            }
        }
        merged.statuses = statuses.into_iter().map(|(_, status)| status).collect();
        merged.keepalives.sort_by_key(|keepalive| keepalive.tick);
        merged.rows.sort_by_key(|row| row.tick);
        merged.commits.sort_by_key(|commit| commit.tick);
        merged.restarts.sort_by_key(|(tick, _)| *tick);
        for (index, row) in merged.rows.iter().enumerate() {
            merged.first_row.entry(row.id.clone()).or_insert(index);
        }
        merged
    }
}

/// What the test does to a message from the server, after it was recorded.
type Edit = Box<dyn FnMut(&Heard, &mut Vec<u8>) -> Vec<Insertion> + Send>;

/// Messages that a test puts behind another.
pub enum Insertion {
    Keepalive { wal_end: Lsn, reply: bool },
}

#[derive(Default)]
struct State {
    log: Mutex<Log>,
    edit: Mutex<Option<Edit>>,
}

/// See the module. It is a [`Proxy`] too: cut, throttle and so on.
pub struct PgWitness {
    proxy: Proxy,
    state: Arc<State>,
}

impl Deref for PgWitness {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}

impl PgWitness {
    /// A witness in front of a server's port.
    pub fn on(port: u16) -> PgWitness {
        let state = Arc::new(State::default());
        let shared = state.clone();
        let proxy = Proxy::with_taps(port, move |connection| {
            let mode = Arc::new(AtomicU8::new(UNKNOWN));
            let client = ClientTap { connection, mode: mode.clone(), framer: Framer::client(), state: shared.clone() };
            let server =
                ServerTap { connection, mode, framer: Framer::server(), state: shared.clone(), commit_lsn: Lsn(0) };
            (Box::new(client), Box::new(server))
        });
        PgWitness { proxy, state }
    }

    /// The log; nothing passes while it is held.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.state.log.lock().expect("the witness's log")
    }

    /// What the client has confirmed last.
    pub fn flush(&self) -> Lsn {
        self.log().flush()
    }

    /// Waits until the event's Commit has been sent; its end.
    #[track_caller]
    pub fn commit_end(&self, id: &str) -> Lsn {
        wait::eventually_some(wait::DEADLINE, &format!("the commit of event {id} is sent"), || {
            self.log().commit_end(id)
        })
    }

    /// walgate was killed and nothing of it is left on the link; `confirmed` is what the slot has. The next one
    /// begins there, though the dead one may have sent more than PostgreSQL has read.
    pub fn note_kill(&self, confirmed: Lsn) {
        self.log().restarts.push((clock::tick(), confirmed));
    }

    /// The number of the newest replication connection.
    pub fn newest_connection(&self) -> u64 {
        self.log().starts.last().expect("a replication connection").connection
    }

    /// Sees every message of a stream from the server, may change its bytes, and put others behind it.
    pub fn edit(&self, edit: impl FnMut(&Heard, &mut Vec<u8>) -> Vec<Insertion> + Send + 'static) {
        *self.state.edit.lock().expect("the edit") = Some(Box::new(edit));
    }

    /// Puts a keepalive into the newest replication connection, now.
    pub fn inject_keepalive(&self, wal_end: Lsn, reply: bool) {
        let connection = self.newest_connection();
        self.log().keepalives.push(Keepalive { tick: clock::tick(), connection, wal_end, reply, injected: true });
        self.proxy.inject(connection, &pgwire::keepalive(wal_end, reply));
    }
}

const UNKNOWN: u8 = 0;
/// The client has asked for encryption; the server answers with one byte.
const ASKED: u8 = 1;
/// Encrypted, or not a replication connection: bytes.
const OPAQUE: u8 = 2;
const REPLICATION: u8 = 3;

struct ClientTap {
    connection: u64,
    mode: Arc<AtomicU8>,
    framer: Framer,
    state: Arc<State>,
}

impl Tap for ClientTap {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.framer.push(bytes);
        while self.mode.load(Ordering::SeqCst) != OPAQUE && self.framer.is_untyped() {
            let Some(message) = self.framer.messages().into_iter().next() else { return };
            match pgwire::first(&message) {
                First::Encryption => self.mode.store(ASKED, Ordering::SeqCst),
                First::Startup { replication: true } => {
                    self.mode.store(REPLICATION, Ordering::SeqCst);
                    self.framer.typed_from_now();
                }
                First::Startup { replication: false } | First::Cancel => self.mode.store(OPAQUE, Ordering::SeqCst),
            }
            out.extend_from_slice(&message);
        }
        if self.mode.load(Ordering::SeqCst) == OPAQUE {
            out.append(&mut self.framer.rest());
            return;
        }
        for message in self.framer.messages() {
            self.record(&message);
            out.extend_from_slice(&message);
        }
    }
}

impl ClientTap {
    fn record(&self, message: &[u8]) {
        let connection = self.connection;
        let said = pgwire::client_message(message);
        let mut log = self.state.log.lock().expect("the witness's log");
        let tick = clock::tick();
        match said {
            Said::Status { write, flush, apply, reply } => {
                log.statuses.push(Status { tick, at: clock::now(), connection, write, flush, apply, reply });
            }
            Said::Query(text) if text.trim_start().to_ascii_uppercase().starts_with("START_REPLICATION") => {
                log.starts.push(Notice { tick, connection, text });
            }
            Said::CopyDone => log.copy_done.push(Notice { tick, connection, text: "client".to_owned() }),
            _ => {}
        }
    }
}

struct ServerTap {
    connection: u64,
    mode: Arc<AtomicU8>,
    framer: Framer,
    state: Arc<State>,
    /// Of the transaction that is being sent.
    commit_lsn: Lsn,
}

impl Tap for ServerTap {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut bytes = bytes;
        if self.mode.load(Ordering::SeqCst) == ASKED
            && let Some((answer, rest)) = bytes.split_first()
        {
            out.push(*answer);
            bytes = rest;
            self.mode.store(if *answer == b'N' { UNKNOWN } else { OPAQUE }, Ordering::SeqCst);
        }
        if self.mode.load(Ordering::SeqCst) != REPLICATION {
            out.extend_from_slice(bytes);
            return;
        }
        self.framer.push(bytes);
        for mut message in self.framer.messages() {
            let heard = pgwire::server_message(&message);
            self.record(&heard);
            let mut edit = self.state.edit.lock().expect("the edit");
            let insertions = edit.as_mut().map(|edit| edit(&heard, &mut message)).unwrap_or_default();
            drop(edit);
            out.extend_from_slice(&message);
            for Insertion::Keepalive { wal_end, reply } in insertions {
                let keepalive =
                    Keepalive { tick: clock::tick(), connection: self.connection, wal_end, reply, injected: true };
                self.state.log.lock().expect("the witness's log").keepalives.push(keepalive);
                out.extend_from_slice(&pgwire::keepalive(wal_end, reply));
            }
        }
    }
}

impl ServerTap {
    fn record(&mut self, heard: &Heard) {
        let connection = self.connection;
        let mut log = self.state.log.lock().expect("the witness's log");
        let tick = clock::tick();
        match heard {
            Heard::Keepalive { wal_end, reply } => {
                log.keepalives.push(Keepalive { tick, connection, wal_end: *wal_end, reply: *reply, injected: false });
            }
            Heard::Wal { start, change, .. } => match change {
                Change::Begin { commit_lsn } => self.commit_lsn = *commit_lsn,
                Change::Insert { id } => {
                    let index = log.rows.len();
                    let id: Box<str> = id.as_str().into();
                    log.first_row.entry(id.clone()).or_insert(index);
                    log.rows.push(RowSent { tick, connection, id, start: *start, commit_lsn: self.commit_lsn });
                }
                Change::Commit { commit_lsn, end } => {
                    log.ends.insert(*commit_lsn, *end);
                    log.commits.push(CommitSent { tick, connection, commit_lsn: *commit_lsn, end: *end });
                }
                Change::Relation { name } => {
                    log.relations.push(RelationSent { connection, name: name.clone(), start: *start });
                }
                Change::Other(_) => {}
            },
            Heard::Error { code, message } => {
                log.errors.push(Notice { tick, connection, text: format!("{code} {message}") });
            }
            Heard::CopyDone => log.copy_done.push(Notice { tick, connection, text: "server".to_owned() }),
            Heard::Other => {}
        }
    }
}
