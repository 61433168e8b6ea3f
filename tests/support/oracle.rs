//! What was committed against what arrived, and what was confirmed on the wire against what had been acknowledged.
//! The terms I1 to I5 and O1 to O4 are those of the fault catalogue (tests/README.md has them in a line each).

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::clock::Tick;
use super::database::Database;
use super::lsn::Lsn;
use super::receiver::Receipt;
use super::witness::Log;

/// An event that was committed.
#[derive(Clone, Debug)]
pub struct Committed {
    pub id: String,
    /// `None`: an event without a key has no order to keep.
    pub key: Option<String>,
    /// Its place among the events of its key in commit order, from 1.
    pub n: u64,
    /// SHA-256 of the payload's text, in hex.
    pub hash: String,
}

/// The table `ledger`: written in the same transactions as the outbox, and not published.
#[track_caller]
pub fn ledger(database: &Database) -> Vec<Committed> {
    let rows = database.sql("SELECT id, key, n, hash FROM ledger");
    rows.into_iter()
        .map(|row| {
            let [Some(id), key, Some(n), Some(hash)] = <[Option<String>; 4]>::try_from(row).expect("four columns")
            else {
                panic!("a null in the ledger");
            };
            Committed { id, key, n: n.parse().expect("a number"), hash }
        })
        .collect()
}

/// The outbox itself: what stands in it was committed. The order within a key is the one in which the witness saw the
/// commits, which is the order of the WAL.
#[track_caller]
pub fn outbox(database: &Database, log: &Log) -> Vec<Committed> {
    let hash = "encode(sha256(convert_to(coalesce(payload::text, ''), 'UTF8')), 'hex')";
    let rows = database.sql(&format!("SELECT id, aggregate_id, {hash} FROM outbox_events"));
    let mut committed: Vec<Committed> = rows
        .into_iter()
        .map(|row| {
            let [Some(id), key, Some(hash)] = <[Option<String>; 3]>::try_from(row).expect("three columns") else {
                panic!("a null in the outbox");
            };
            Committed { id, key, n: 0, hash }
        })
        .collect();
    committed.sort_by_key(|event| log.first_sent(&event.id).unwrap_or(usize::MAX));
    let mut last: HashMap<Option<String>, u64> = HashMap::new();
    for event in &mut committed {
        let last = last.entry(event.key.clone()).or_default();
        *last += 1;
        event.n = *last;
    }
    committed
}

/// What the comparison found. Only `duplicates` are legal.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Committed and never acknowledged by the receiver (I1, O1).
    pub missing: Vec<String>,
    /// Received and never committed (I2, O3).
    pub phantoms: Vec<String>,
    /// Received with another body than was committed (I11).
    pub altered: Vec<String>,
    /// An event that was sent before the previous one of its key had been acknowledged (I3, O2).
    pub skips: Vec<String>,
    /// Receipts beyond the first of an event, whatever was answered.
    pub duplicates: usize,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.phantoms.is_empty() && self.altered.is_empty() && self.skips.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = |name: &str, found: &[String]| {
            writeln!(f, "{name}: {}", found.len())?;
            found.iter().take(10).try_for_each(|text| writeln!(f, "  {text}"))
        };
        list("missing", &self.missing)?;
        list("phantoms", &self.phantoms)?;
        list("altered", &self.altered)?;
        list("skips", &self.skips)?;
        write!(f, "duplicates: {}", self.duplicates)
    }
}

/// Compares what was committed for one sink with what that sink received. An event counts as received once a success
/// was written for it: what the receiver refused, it has not got. That is stricter than I3, and what walgate promises:
/// the next event of a key is sent only after the acknowledgement of the one before.
pub fn reconcile(committed: &[Committed], receipts: &[Receipt]) -> Verdict {
    let by_id: HashMap<&str, &Committed> = committed.iter().map(|event| (event.id.as_str(), event)).collect();
    let mut verdict = Verdict::default();
    let mut sent: HashSet<&str> = HashSet::with_capacity(committed.len());
    let mut received: HashSet<&str> = HashSet::with_capacity(committed.len());
    let mut highest: HashMap<&str, u64> = HashMap::new();

    // Every receipt at its tick, and at the tick of its answer if that was a success.
    let mut moments: Vec<(Tick, bool, &Receipt)> = Vec::with_capacity(receipts.len() * 2);
    for receipt in receipts {
        moments.push((receipt.tick, false, receipt));
        if let Some((tick, 200..=299)) = receipt.answered {
            moments.push((tick, true, receipt));
        }
    }
    moments.sort_unstable_by_key(|(tick, success, _)| (*tick, *success));
    for (tick, success, receipt) in moments {
        let Some(event) = by_id.get(receipt.id.as_str()) else {
            if !success {
                verdict.phantoms.push(format!("{} at tick {tick}", receipt.id));
            }
            continue;
        };
        if success {
            received.insert(&receipt.id);
            if let Some(key) = &event.key {
                let highest = highest.entry(key).or_default();
                *highest = (*highest).max(event.n);
            }
            continue;
        }
        if !sent.insert(&receipt.id) {
            verdict.duplicates += 1;
        }
        if event.hash != receipt.hash {
            verdict.altered.push(format!("{}: committed {} received {}", event.id, event.hash, receipt.hash));
        }
        if let Some(key) = &event.key {
            let highest = highest.get(key.as_str()).copied().unwrap_or_default();
            if event.n > highest + 1 {
                verdict
                    .skips
                    .push(format!("key {key}: {} after {highest}, event {} at tick {tick}", event.n, event.id));
            }
        }
    }
    verdict.missing.extend(by_id.keys().filter(|id| !received.contains(*id)).map(|id| (*id).to_owned()));
    verdict
}

/// Fails the test unless nothing is missing, phantom, altered or out of order. Returns the number of repeats.
#[track_caller]
pub fn assert_reconciled(committed: &[Committed], receipts: &[Receipt]) -> usize {
    let verdict = reconcile(committed, receipts);
    assert!(verdict.is_clean(), "of {} committed events:\n{verdict}", committed.len());
    verdict.duplicates
}

/// A message that a broker holds, as a reader of its own has found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub id: String,
    pub key: Option<String>,
    /// SHA-256 of the payload, in hex.
    pub hash: String,
}

/// Compares what a broker holds with what was committed: every event, whole and with its key, nothing else, and the
/// messages of a key in an order that never skips forward (I3). The number of repeats, or the first fault.
pub fn judge_kept(committed: &[Committed], kept: &[Kept]) -> Result<usize, String> {
    let by_id: HashMap<&str, &Committed> = committed.iter().map(|event| (event.id.as_str(), event)).collect();
    let mut highest: HashMap<&str, u64> = HashMap::new();
    let mut seen = HashSet::with_capacity(committed.len());
    for (place, message) in kept.iter().enumerate() {
        let event = by_id.get(message.id.as_str()).ok_or_else(|| format!("a phantom at place {place}: {message:?}"))?;
        if (&message.hash, &message.key) != (&event.hash, &event.key) {
            return Err(format!("altered at place {place}: {message:?} of {event:?}"));
        }
        if let Some(key) = &event.key {
            let highest = highest.entry(key).or_default();
            if event.n > *highest + 1 {
                return Err(format!("a skip, key {key}: {} after {highest}, at place {place}: {message:?}", event.n));
            }
            *highest = event.n.max(*highest);
        }
        seen.insert(message.id.as_str());
    }
    let missing: Vec<&str> = by_id.keys().filter(|id| !seen.contains(**id)).copied().collect();
    if missing.is_empty() {
        return Ok(kept.len() - seen.len());
    }
    Err(format!("{} of {} events are missing: {:?}", missing.len(), committed.len(), &missing[..missing.len().min(10)]))
}

/// Judges what was confirmed on the wire (O4, I4, I5, I6, T5). `settled` says when an event was acknowledged by every
/// sink that it is routed to; `confirmed_before` is what the slot had confirmed before the first connection.
pub fn judge_wire(log: &Log, confirmed_before: Lsn, settled: impl Fn(&str) -> Option<Tick>) -> Vec<String> {
    let mut faults = Vec::new();

    // Events by their commit record, and for each the latest tick at which it or an earlier one was settled.
    // No event counts as settled before its transaction's Commit was sent (I6).
    let mut committed: HashMap<Lsn, Tick> = HashMap::new();
    for commit in &log.commits {
        committed.entry(commit.commit_lsn).or_insert(commit.tick);
    }
    let when = |commit_lsn: &Lsn, id: &str| settled(id).and_then(|tick| Some(tick.max(*committed.get(commit_lsn)?)));
    let mut events: Vec<(Lsn, Tick, &str)> = log
        .first_rows()
        .map(|row| (row.commit_lsn, when(&row.commit_lsn, &row.id).unwrap_or(Tick::MAX), &*row.id))
        .collect();
    events.sort_unstable();
    let mut latest = 0;
    let all_settled: Vec<Tick> = events
        .iter()
        .map(|(_, tick, _)| {
            latest = latest.max(*tick);
            latest
        })
        .collect();

    // What a flush LSN may be: a commit's end or a keepalive's position, seen before.
    let mut legal: HashMap<Lsn, Tick> = HashMap::from([(Lsn(0), 0), (confirmed_before, 0)]);
    let seen = log.commits.iter().map(|commit| (commit.end, commit.tick));
    let seen = seen.chain(log.keepalives.iter().map(|keepalive| (keepalive.wal_end, keepalive.tick)));
    for (lsn, tick) in seen.chain(log.restarts.iter().map(|(tick, confirmed)| (*confirmed, *tick))) {
        legal.entry(lsn).and_modify(|first| *first = (*first).min(tick)).or_insert(tick);
    }

    let mut highest = Lsn(0);
    let mut restarts = log.restarts.iter().peekable();
    for status in &log.statuses {
        let (flush, tick) = (status.flush, status.tick);
        while let Some((_, confirmed)) = restarts.next_if(|(restart, _)| *restart < tick) {
            highest = *confirmed;
        }
        if flush == Lsn(0) {
            // "Nothing to say yet": the server ignores it.
            continue;
        }
        if flush < highest {
            faults.push(format!("flush LSN fell from {highest} to {flush} at tick {tick}"));
        }
        highest = highest.max(flush);
        if flush > status.write {
            faults.push(format!("flush LSN {flush} beyond the write LSN {} at tick {tick}", status.write));
        }
        if legal.get(&flush).is_none_or(|first| *first > tick) {
            faults.push(format!("flush LSN {flush} at tick {tick} is no commit end and no keepalive seen before"));
        }
        let passed = events.partition_point(|(commit_lsn, ..)| *commit_lsn < flush);
        if passed > 0 && all_settled[passed - 1] > tick {
            let (commit_lsn, when, id) =
                events[..passed].iter().find(|(_, when, _)| *when > tick).expect("the event that makes the maximum");
            let when = if *when == Tick::MAX { "never".to_owned() } else { format!("at tick {when}") };
            faults.push(format!(
                "flush LSN {flush} at tick {tick} passes event {id} (commit record {commit_lsn}), settled {when}"
            ));
        }
    }
    faults
}

/// Fails the test where [`judge_wire`] finds something.
#[track_caller]
pub fn assert_wire(log: &Log, confirmed_before: Lsn, settled: impl Fn(&str) -> Option<Tick>) {
    let faults = judge_wire(log, confirmed_before, settled);
    let shown = faults.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(faults.is_empty(), "{} faults on the wire:\n{shown}", faults.len());
    assert!(!log.statuses.is_empty(), "no status was seen: the witness stood on the wrong link");
}
