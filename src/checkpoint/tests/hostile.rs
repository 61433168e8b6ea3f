//! A server that sends anything at all: no panic, and the flush LSN does not fall.

use std::num::NonZeroU32;

use proptest::prelude::*;
use walgate_sink::Lsn;

use super::super::{BeginVerdict, CommitVerdict, Resume, Ring, RowVerdict};
use super::lsn;

#[derive(Clone, Debug)]
enum Message {
    Connect,
    Begin(Lsn),
    Row(u8),
    OtherRow,
    Commit(Lsn, Lsn),
    Keepalive(Lsn),
    Settle(prop::sample::Index),
}

fn any_lsn() -> impl Strategy<Value = Lsn> {
    prop_oneof![8 => (0..40u64).prop_map(Lsn), 1 => any::<u64>().prop_map(Lsn), 1 => Just(Lsn(u64::MAX))]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        1 => Just(Message::Connect),
        6 => any_lsn().prop_map(Message::Begin),
        4 => (0..2u8).prop_map(Message::Row),
        1 => Just(Message::OtherRow),
        6 => (any_lsn(), any_lsn()).prop_map(|(commit, end)| Message::Commit(commit, end)),
        2 => any_lsn().prop_map(Message::Keepalive),
        4 => any::<prop::sample::Index>().prop_map(Message::Settle),
    ]
}

proptest! {
    #[test]
    fn no_stream_makes_it_panic_or_fall_back(messages in prop::collection::vec(message(), 1..200)) {
        let mut ring = Ring::new(lsn(5));
        let mut resume = Resume::new(lsn(5));
        let mut tickets = Vec::new();
        let mut believed_keepalive = Lsn::ZERO;
        for message in messages {
            let before = ring.flush_lsn();
            let mut reconnect = false;
            match message {
                Message::Connect => reconnect = true,
                Message::Begin(commit_lsn) => match resume.begin(commit_lsn) {
                    BeginVerdict::New => ring.begin(commit_lsn),
                    BeginVerdict::Continue | BeginVerdict::Skip => {}
                    BeginVerdict::OutOfOrder => reconnect = true,
                },
                Message::Row(id) => match resume.row(&[id]) {
                    RowVerdict::Track(position) => {
                        prop_assert!(ring.is_open(), "{position} has no transaction in the ring");
                        tickets.push(ring.track(NonZeroU32::MIN, u64::from(id)));
                    }
                    RowVerdict::Skip => {}
                    RowVerdict::Mismatch => { ring.abandon(); reconnect = true }
                    RowVerdict::OutOfOrder => reconnect = true,
                },
                Message::OtherRow => resume.other_row(),
                Message::Commit(commit_lsn, end) => match resume.commit(commit_lsn, end) {
                    CommitVerdict::Close => ring.commit(end),
                    CommitVerdict::Skip => {}
                    CommitVerdict::Mismatch => { ring.abandon(); reconnect = true }
                    CommitVerdict::OutOfOrder => reconnect = true,
                },
                Message::Keepalive(wal_end) => if resume.between_transactions() {
                    if ring.is_idle() { believed_keepalive = believed_keepalive.max(wal_end) }
                    ring.keepalive(wal_end);
                },
                Message::Settle(index) => if !tickets.is_empty() { ring.settle(*index.get(&tickets)); },
            }
            if reconnect { resume.on_connect() }
            ring.check();
            prop_assert!(ring.flush_lsn() >= before);
            if let Some(oldest) = ring.oldest_unsettled() {
                prop_assert!(ring.flush_lsn() <= oldest.max(believed_keepalive));
            }
        }
    }
}
