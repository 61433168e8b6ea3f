//! An HTTP receiver that lies on demand, and remembers everything. A thread for each connection, HTTP/1.1 by hand.

use std::collections::{HashMap, HashSet};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use socket2::SockRef;
use standardwebhooks::Webhook;

use super::clock::{self, Tick};
use super::http1::{self, Head};
use super::listen::Listening;
use super::wait;

/// The secret that receivers verify signatures with; a canary too: it must not appear in any output.
pub const SECRET: &str = "whsec_Y2FuYXJ5LXdlYmhvb2stc2VjcmV0LTkxYzQ3Yjky";

/// A request's head, as the script sees it.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    /// `webhook-id`; of a batch, an element's own id.
    pub id: &'a str,
    /// Which request with this id it is, from 1.
    pub attempt: u32,
    /// Which request it is, from 1.
    pub number: u64,
}

/// What a request gets.
#[derive(Clone, Debug)]
pub enum Answer {
    /// An HTTP response.
    Reply(Reply),
    /// The connection is closed with the body unread.
    CloseBeforeBody,
    /// The connection is closed once the request was read whole.
    CloseAfterBody,
    /// The same, with RST.
    Reset,
    /// No answer for as long as the other side holds the connection.
    Never,
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
}

/// An HTTP response.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
    early: bool,
    close: bool,
}

impl Reply {
    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }

    pub fn after(mut self, delay: Duration) -> Reply {
        self.delay = delay;
        self
    }

    /// Written before the request's body is read.
    pub fn early(mut self) -> Reply {
        self.early = true;
        self
    }

    /// The connection is closed behind it, unannounced.
    pub fn then_close(mut self) -> Reply {
        self.close = true;
        self
    }

    fn write(&self, stream: &TcpStream, method: &str) -> bool {
        http1::write_response(stream, self.status, &self.headers, &self.body, method)
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Answer {
        Answer::Reply(reply)
    }
}

/// A response with this status.
pub fn reply(status: u16) -> Reply {
    Reply { status, headers: Vec::new(), body: Vec::new(), delay: Duration::ZERO, early: false, close: false }
}

/// 200.
pub fn ok() -> Answer {
    reply(200).into()
}

/// A request that was read whole, or one element of a batch.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// When it had been read.
    pub tick: Tick,
    pub at: Duration,
    pub connection: u64,
    /// Which request it is, from 1: the elements of a batch share it.
    pub request: u64,
    pub id: String,
    pub method: String,
    pub path: String,
    /// Empty where the receiver is lean.
    pub headers: HeaderMap,
    /// Of a batch's element: its payload, as it stands in the array. Empty where the receiver is lean.
    pub body: Vec<u8>,
    /// SHA-256 of the body, in hex.
    pub hash: String,
    /// The status that was written whole, and the tick just before its last byte could be read.
    pub answered: Option<(Tick, u16)>,
}

impl Receipt {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

#[derive(Default)]
struct Log {
    receipts: Vec<Receipt>,
    attempts: HashMap<String, u32>,
    received: HashSet<String>,
    settled: HashMap<String, Tick>,
    bad_signatures: Vec<String>,
    requests: u64,
    in_flight: usize,
}

type Script = Arc<dyn Fn(&Request<'_>) -> Answer + Send + Sync>;

struct Gate {
    held: bool,
    released: HashSet<String>,
    closing: bool,
}

struct State {
    log: Mutex<Log>,
    script: Mutex<Script>,
    gate: Mutex<Gate>,
    opened: Condvar,
    connections: Mutex<HashMap<u64, TcpStream>>,
    accepted: AtomicU64,
    verifier: Option<Webhook>,
    lean: bool,
    batches: bool,
}

/// See the module.
pub struct Receiver {
    listening: Listening,
    state: Arc<State>,
}

impl Receiver {
    /// Accepts everything with 200, verifies signatures, keeps headers and bodies.
    pub fn start() -> Receiver {
        Receiver::create(Some(SECRET), false, false)
    }

    /// The same for arrays of events: a receipt for each element, with the headers of its request. A script is asked for
    /// each element, and the first answer that is no success is the batch's; `early` has no effect.
    pub fn batches() -> Receiver {
        Receiver::create(Some(SECRET), false, true)
    }

    /// For hundreds of thousands of requests: keeps ids and hashes only.
    pub fn lean() -> Receiver {
        Receiver::create(Some(SECRET), true, false)
    }

    /// For requests that are not signed.
    pub fn unsigned() -> Receiver {
        Receiver::create(None, false, false)
    }

    fn create(secret: Option<&str>, lean: bool, batches: bool) -> Receiver {
        let state = Arc::new(State {
            log: Mutex::default(),
            script: Mutex::new(Arc::new(|_| ok())),
            gate: Mutex::new(Gate { held: false, released: HashSet::new(), closing: false }),
            opened: Condvar::new(),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
            verifier: secret.map(|secret| Webhook::new(secret).expect("a secret")),
            lean,
            batches,
        });
        let shared = state.clone();
        let listening = Listening::start(move |stream| {
            let state = shared.clone();
            let number = state.accepted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.set_nodelay(true);
            let Ok(kept) = stream.try_clone() else { return };
            state.connections.lock().expect("the connections").insert(number, kept);
            std::thread::spawn(move || {
                serve(&state, number, stream);
                state.connections.lock().expect("the connections").remove(&number);
            });
        });
        Receiver { listening, state }
    }

    pub fn port(&self) -> u16 {
        self.listening.port()
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port())
    }

    /// From now on requests get what this says.
    pub fn script(&self, script: impl Fn(&Request<'_>) -> Answer + Send + Sync + 'static) {
        *self.state.script.lock().expect("the script") = Arc::new(script);
    }

    /// From now on requests get 200.
    pub fn accept_all(&self) {
        self.script(|_| ok());
    }

    /// Requests are read, and not answered before they are released.
    pub fn hold(&self) {
        let mut gate = self.state.gate.lock().expect("the gate");
        gate.held = true;
        gate.released.clear();
    }

    /// The requests with this id are answered, while others are held.
    pub fn release(&self, id: &str) {
        self.state.gate.lock().expect("the gate").released.insert(id.to_owned());
        self.state.opened.notify_all();
    }

    /// Nothing is held any longer.
    pub fn release_all(&self) {
        self.state.gate.lock().expect("the gate").held = false;
        self.state.opened.notify_all();
    }

    /// Connections are refused, and the open ones are cut.
    pub fn go_down(&self) {
        self.listening.close();
        self.cut();
    }

    /// Connections are accepted again.
    pub fn come_back(&self) {
        self.listening.open();
    }

    /// Cuts the open connections.
    pub fn cut(&self) {
        for stream in self.state.connections.lock().expect("the connections").values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn receipts(&self) -> Vec<Receipt> {
        self.log().receipts.clone()
    }

    /// The receipts of one event.
    pub fn receipts_of(&self, id: &str) -> Vec<Receipt> {
        self.log().receipts.iter().filter(|receipt| receipt.id == id).cloned().collect()
    }

    /// Ids in the order of their receipts, repeats included.
    pub fn ids(&self) -> Vec<String> {
        self.log().receipts.iter().map(|receipt| receipt.id.clone()).collect()
    }

    /// Receipts, repeats included.
    pub fn count(&self) -> usize {
        self.log().receipts.len()
    }

    /// Different events that were received.
    pub fn distinct(&self) -> usize {
        self.log().received.len()
    }

    pub fn has(&self, id: &str) -> bool {
        self.log().received.contains(id)
    }

    /// When the event's first success was written.
    pub fn settled(&self, id: &str) -> Option<Tick> {
        self.log().settled.get(id).copied()
    }

    /// All events with a success, and when it was written.
    pub fn all_settled(&self) -> HashMap<String, Tick> {
        self.log().settled.clone()
    }

    /// Different events that were answered with a success.
    pub fn settled_count(&self) -> usize {
        self.log().settled.len()
    }

    /// Requests that were read whole and have not been answered.
    pub fn in_flight(&self) -> usize {
        self.log().in_flight
    }

    /// Requests whose head was read.
    pub fn requests(&self) -> u64 {
        self.log().requests
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        self.state.connections.lock().expect("the connections").len()
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Why signatures did not hold, with the event's id.
    pub fn bad_signatures(&self) -> Vec<String> {
        self.log().bad_signatures.clone()
    }

    /// Waits until nobody is connected: nothing that a dead client has sent is still unread.
    #[track_caller]
    pub fn wait_until_deserted(&self) {
        wait::eventually(wait::DEADLINE, "the dead client's connections are gone", || self.open_connections() == 0);
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.state.log.lock().expect("the receiver's log")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.listening.close();
        self.state.gate.lock().expect("the gate").closing = true;
        self.state.opened.notify_all();
        self.cut();
    }
}

fn serve(state: &State, connection: u64, stream: TcpStream) {
    let mut reader = BufReader::with_capacity(16 * 1024, &stream);
    while let Some(head) = http1::read_head(&mut reader) {
        if !answer(state, connection, &stream, &mut reader, head) {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Reads and answers one request; false when the connection is over.
fn answer(state: &State, connection: u64, stream: &TcpStream, reader: &mut BufReader<&TcpStream>, head: Head) -> bool {
    if state.batches {
        return answer_batch(state, connection, stream, reader, head);
    }
    let id = header(&head, "webhook-id").to_owned();
    let number = count_request(state);
    let answer = ask_script(state, &head, &id, number);

    let mut early_tick = 0;
    match &answer {
        Answer::CloseBeforeBody => return false,
        Answer::Reply(early) if early.early => {
            early_tick = clock::tick();
            if !early.write(stream, &head.method) {
                return false;
            }
        }
        _ => {}
    }
    let Some(body) = read_body(reader, &head) else { return false };
    verify(state, &id, &body, &head);
    record_and_respond(state, connection, stream, number, head, vec![(id, body)], &answer, early_tick)
}

/// One element of a batch, as far as it is looked at.
#[derive(Deserialize)]
struct Element<'a> {
    id: String,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// The same for an array of events.
fn answer_batch(
    state: &State,
    connection: u64,
    stream: &TcpStream,
    reader: &mut BufReader<&TcpStream>,
    head: Head,
) -> bool {
    let number = count_request(state);
    let Some(body) = read_body(reader, &head) else { return false };
    let batch = header(&head, "webhook-id").to_owned();
    verify(state, &batch, &body, &head);
    let elements: Vec<Element<'_>> = match serde_json::from_slice(&body) {
        Ok(elements) => elements,
        Err(error) => {
            let fault = format!("{batch} is no array of events: {error}");
            state.log.lock().expect("the receiver's log").bad_signatures.push(fault);
            return false;
        }
    };
    let mut answers: Vec<Answer> =
        elements.iter().map(|element| ask_script(state, &head, &element.id, number)).collect();
    let is_success = |answer: &Answer| matches!(answer, Answer::Reply(reply) if (200..300).contains(&reply.status));
    let chosen = answers.iter().position(|answer| !is_success(answer)).unwrap_or(0);
    let mut answer = if answers.is_empty() { ok() } else { answers.swap_remove(chosen) };
    if let Answer::Reply(reply) = &mut answer {
        reply.early = false;
    }
    let parts =
        elements.into_iter().map(|element| (element.id, element.payload.get().as_bytes().to_vec())).collect::<Vec<_>>();
    record_and_respond(state, connection, stream, number, head, parts, &answer, 0)
}

fn header<'a>(head: &'a Head, name: &str) -> &'a str {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn read_body(reader: &mut BufReader<&TcpStream>, head: &Head) -> Option<Vec<u8>> {
    http1::read_body(reader, header(head, "content-length"), header(head, "transfer-encoding"))
}

/// Which request it is.
fn count_request(state: &State) -> u64 {
    let mut log = state.log.lock().expect("the receiver's log");
    log.requests += 1;
    log.requests
}

fn ask_script(state: &State, head: &Head, id: &str, number: u64) -> Answer {
    let attempt = {
        let mut log = state.log.lock().expect("the receiver's log");
        let attempt = log.attempts.entry(id.to_owned()).or_default();
        *attempt += 1;
        *attempt
    };
    let script = state.script.lock().expect("the script").clone();
    script(&Request { method: &head.method, path: &head.path, headers: &head.headers, id, attempt, number })
}

fn verify(state: &State, id: &str, body: &[u8], head: &Head) {
    if let Some(verifier) = &state.verifier
        && let Err(error) = verifier.verify(body, &head.headers)
    {
        state.log.lock().expect("the receiver's log").bad_signatures.push(format!("{id}: {error}"));
    }
}

/// `parts`: ids and bodies.
#[allow(clippy::too_many_arguments, reason = "all that is known of a request")]
fn record_and_respond(
    state: &State,
    connection: u64,
    stream: &TcpStream,
    request: u64,
    head: Head,
    parts: Vec<(String, Vec<u8>)>,
    answer: &Answer,
    early_tick: Tick,
) -> bool {
    let Head { method, path, headers } = head;
    let ids: Vec<String> = parts.iter().map(|(id, _)| id.clone()).collect();
    let hashes: Vec<String> = parts.iter().map(|(_, body)| hash_of(body)).collect();
    let indexes = {
        let mut log = state.log.lock().expect("the receiver's log");
        let (tick, at, first) = (clock::tick(), clock::now(), log.receipts.len());
        for ((id, body), hash) in parts.into_iter().zip(hashes) {
            let (headers, body) = if state.lean { (HeaderMap::new(), Vec::new()) } else { (headers.clone(), body) };
            log.received.insert(id.clone());
            let (method, path) = (method.clone(), path.clone());
            let answered = None;
            log.receipts.push(Receipt {
                tick,
                at,
                connection,
                request,
                id,
                method,
                path,
                headers,
                body,
                hash,
                answered,
            });
        }
        log.in_flight += 1;
        first..log.receipts.len()
    };
    let goes_on = respond(state, stream, answer, &ids, indexes, early_tick);
    state.log.lock().expect("the receiver's log").in_flight -= 1;
    goes_on
}

fn respond(
    state: &State,
    stream: &TcpStream,
    answer: &Answer,
    ids: &[String],
    indexes: Range<usize>,
    early_tick: Tick,
) -> bool {
    let waited = pass_gate(state, stream, ids);
    let Some(waited) = waited else { return false };
    match answer {
        Answer::Reply(reply) => {
            if !reply.delay.is_zero() {
                std::thread::sleep(reply.delay);
            }
            // A write to a peer that has gone would seem to succeed.
            if (waited || !reply.delay.is_zero()) && is_gone(stream) {
                return false;
            }
            // Before the write: the other side cannot act on the answer earlier than this.
            let tick = if reply.early { early_tick } else { clock::tick() };
            if !reply.early && !reply.write(stream, "POST") {
                return false;
            }
            let mut log = state.log.lock().expect("the receiver's log");
            for receipt in &mut log.receipts[indexes] {
                receipt.answered = Some((tick, reply.status));
            }
            if (200..300).contains(&reply.status) {
                for id in ids {
                    log.settled.entry(id.clone()).or_insert(tick);
                }
            }
            !reply.close
        }
        Answer::CloseBeforeBody | Answer::CloseAfterBody => false,
        Answer::Reset => {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            false
        }
        Answer::Never => {
            // Until the other side gives up.
            let _ = (&mut &*stream).read(&mut [0]);
            false
        }
        Answer::Raw(bytes) => {
            let _ = (&mut &*stream).write_all(bytes);
            false
        }
    }
}

/// Waits while the gate is shut; whether it had to wait. `None` when the receiver closes, or nobody waits any more.
fn pass_gate(state: &State, stream: &TcpStream, ids: &[String]) -> Option<bool> {
    let mut gate = state.gate.lock().expect("the gate");
    let waited = gate.held;
    while gate.held && !gate.closing && !ids.iter().all(|id| gate.released.contains(id)) {
        gate = state.opened.wait_timeout(gate, Duration::from_millis(50)).expect("the gate").0;
        if is_gone(stream) {
            return None;
        }
    }
    (!gate.closing).then_some(waited)
}

fn is_gone(stream: &TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let peeked = stream.peek(&mut [0]);
    let _ = stream.set_nonblocking(false);
    match peeked {
        Ok(read) => read == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What [`Receipt::hash`] is for this body.
pub fn hash_of(body: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(body.as_ref()))
}
