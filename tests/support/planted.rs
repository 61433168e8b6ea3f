//! Gateways of a few lines, one sound and the others each with a mistake: the oracles must accept the one and catch
//! every other.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpStream};

use super::lsn::Lsn;
use super::oracle;
use super::pgwire::{self, Change, Heard};
use super::postgres::Postgres;
use super::receiver::{Receiver, reply};
use super::self_tests::{RawClient, post};
use super::wait::{DEADLINE, eventually};
use super::witness::{Insertion, PgWitness};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// Confirms a transaction as soon as its Commit is read.
    SettlesOnSend,
    /// Confirms the end of the newest transaction with a success, whatever is open before it.
    TakesTheMaximum,
    /// Confirms every keepalive.
    ConfirmsKeepalives,
    /// Forgets the last row of a transaction.
    DropsTheLastRow,
    /// Tries a failed event again behind the next one of its key.
    RetriesOutOfOrder,
    /// Takes rows with the same WAL position for the same row.
    TakesPositionsForIdentities,
    /// Confirms one byte beyond a commit's end.
    ConfirmsOneTooFar,
    /// Delivers the payload with a byte changed.
    AltersPayloads,
}

struct Row {
    id: String,
    payload: String,
}

/// Reads until the transaction that holds `last` has come, delivers, confirms.
fn run(mistake: Mistake, client: &mut RawClient, witness: &PgWitness, receiver: &Receiver, last: &str) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, receiver.port())).expect("connect");
    let mut rows: Vec<Row> = Vec::new();
    let mut positions: BTreeMap<Lsn, ()> = BTreeMap::new();
    let (mut confirmed, mut failed) = (Lsn(0), Vec::<Row>::new());
    loop {
        let message = client.next();
        match pgwire::server_message(&message) {
            Heard::Keepalive { wal_end, .. } if mistake == Mistake::ConfirmsKeepalives => {
                confirmed = confirmed.max(wal_end);
                client.status(confirmed);
            }
            Heard::Wal { start, change: Change::Insert { id }, .. } => {
                let seen = positions.insert(start, ()).is_some();
                if !(seen && mistake == Mistake::TakesPositionsForIdentities) {
                    rows.push(Row { id, payload: payload(&message) });
                }
            }
            Heard::Wal { change: Change::Commit { end, .. }, .. } => {
                if mistake == Mistake::SettlesOnSend {
                    client.status(end);
                    on_the_wire(witness, end);
                }
                if mistake == Mistake::DropsTheLastRow && rows.len() > 1 && rows.iter().all(|row| row.id != last) {
                    rows.pop();
                }
                let over = rows.iter().any(|row| row.id == last);
                for row in rows.drain(..) {
                    let body = if mistake == Mistake::AltersPayloads { "{}" } else { row.payload.as_str() };
                    let mut ok = post(&mut stream, &row.id, body) == Some(200);
                    let gives_up = matches!(mistake, Mistake::RetriesOutOfOrder | Mistake::TakesTheMaximum);
                    while !ok && !gives_up {
                        ok = post(&mut stream, &row.id, body) == Some(200);
                    }
                    if !ok {
                        failed.push(row);
                    }
                }
                if failed.is_empty() || mistake == Mistake::TakesTheMaximum || over {
                    if mistake != Mistake::TakesTheMaximum {
                        retry(&mut failed, &mut stream);
                    }
                    let too_far = u64::from(mistake == Mistake::ConfirmsOneTooFar);
                    confirmed = confirmed.max(Lsn(end.0 + too_far));
                    client.status(confirmed);
                    if mistake == Mistake::TakesTheMaximum {
                        // Before what it passes is acknowledged after all.
                        on_the_wire(witness, confirmed);
                    }
                }
                if over {
                    retry(&mut failed, &mut stream);
                    on_the_wire(witness, end);
                    return;
                }
            }
            _ => {}
        }
    }
}

/// Waits until the witness has read what was said.
fn on_the_wire(witness: &PgWitness, flush: Lsn) {
    eventually(DEADLINE, "the status is on the wire", || witness.flush() >= flush);
}

fn retry(failed: &mut Vec<Row>, stream: &mut TcpStream) {
    for row in failed.drain(..) {
        while post(stream, &row.id, &row.payload) != Some(200) {}
    }
}

/// The last column of an Insert: the payload, in the table of these tests.
fn payload(message: &[u8]) -> String {
    // CopyData header, XLogData header, 'I', oid, 'N', number of columns.
    let body = &message[30..];
    let columns = u16::from_be_bytes([body[6], body[7]]);
    let (mut at, mut value) = (8, String::new());
    for _ in 0..columns {
        if body[at] == b't' {
            let length = u32::from_be_bytes(body[at + 1..at + 5].try_into().expect("a length")) as usize;
            value = String::from_utf8_lossy(&body[at + 5..at + 5 + length]).into_owned();
            at += 5 + length;
        } else {
            at += 1;
        }
    }
    value
}

/// The faults that the oracles find in a run with this mistake.
fn faults_of(mistake: Mistake) -> Vec<String> {
    let database = Postgres::shared().database();
    database.sql("CREATE TABLE outbox_events (id text, event_type text, aggregate_id text, payload jsonb)");
    database.publish();
    database.create_slot();
    let before = database.confirmed_flush();
    let witness = PgWitness::on(database.server.port());
    let receiver = Receiver::unsigned();
    // Two events fail at first, so that retries matter.
    receiver.script(|request| {
        let fails = matches!(request.id, "e2" | "e5") && request.attempt <= 2;
        if fails { reply(503).into() } else { super::receiver::ok() }
    });
    witness.edit(|heard, _| match heard {
        Heard::Wal { change: Change::Begin { commit_lsn }, .. } => {
            vec![Insertion::Keepalive { wal_end: Lsn(commit_lsn.0 + 8), reply: false }]
        }
        _ => Vec::new(),
    });
    let mut client = RawClient::stream(&database, witness.port());
    let insert = |from: u32, to: u32| {
        database.sql(&format!(
            "INSERT INTO outbox_events SELECT 'e' || i, 'order.created', 'k', jsonb_build_object('n', i) \
             FROM generate_series({from}, {to}) i"
        ));
    };
    insert(1, 3);
    insert(4, 4);
    let rows: String = (5..=9).map(|n| format!("e{n}\torder.created\tk\t{{\"n\": {n}}}\n")).collect();
    database.connection().copy_in("COPY outbox_events FROM STDIN", &rows);
    insert(10, 10);
    witness.commit_end("e10");
    insert(11, 11);
    run(mistake, &mut client, &witness, &receiver, "e11");
    // An answer is noted once it is written, a moment after the gateway has read it; e2 and e5 may have none at all.
    eventually(DEADLINE, "the last answer is noted", || receiver.in_flight() == 0 && receiver.settled("e11").is_some());
    let committed = oracle::outbox(&database, &witness.log());
    let verdict = oracle::reconcile(&committed, &receiver.receipts());
    let settled = receiver.all_settled();
    let mut faults = oracle::judge_wire(&witness.log(), before, |id| settled.get(id).copied());
    if !verdict.is_clean() {
        faults.push(verdict.to_string());
    }
    faults
}

#[test]
fn a_sound_gateway_passes() {
    assert_eq!(faults_of(Mistake::None), Vec::<String>::new());
}

#[test]
fn every_planted_mistake_is_caught() {
    // What must be among the faults, and what must not.
    let mistakes = [
        (Mistake::SettlesOnSend, "passes event", "missing"),
        (Mistake::TakesTheMaximum, "passes event", "phantoms: 1"),
        (Mistake::ConfirmsKeepalives, "passes event", "missing"),
        (Mistake::DropsTheLastRow, "missing: 2", "phantoms: 1"),
        (Mistake::RetriesOutOfOrder, "key k: 3 after 1", "missing: 1"),
        (Mistake::TakesPositionsForIdentities, "missing: ", "missing: 0"),
        (Mistake::ConfirmsOneTooFar, "no commit end", "missing"),
        (Mistake::AltersPayloads, "altered: 15", "missing: 1"),
    ];
    for (mistake, expected, absent) in mistakes {
        let faults = faults_of(mistake).join("\n");
        let caught = faults.contains(expected) && !faults.contains(absent);
        assert!(caught, "{mistake:?} was not caught by {expected:?} but by:\n{faults}");
    }
}
