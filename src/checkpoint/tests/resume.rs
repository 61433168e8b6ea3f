//! Named cases of what is skipped after a reconnect.

use walgate_sink::{Lsn, Position};

use super::super::{BeginVerdict, CommitVerdict, Resume, RowVerdict};
use super::lsn;

fn track(commit_lsn: u64, ordinal: u32) -> RowVerdict {
    RowVerdict::Track(Position { commit_lsn: lsn(commit_lsn), ordinal })
}

/// A connected stream from `confirmed`.
fn connected(confirmed: u64) -> Resume {
    let mut resume = Resume::new(lsn(confirmed));
    resume.on_connect();
    resume
}

/// Takes a whole transaction of outbox rows that has not been taken before.
fn take(resume: &mut Resume, commit_lsn: u64, end_lsn: u64, ids: &[&str]) {
    assert_eq!(resume.begin(lsn(commit_lsn)), BeginVerdict::New);
    for (ordinal, id) in (0..).zip(ids) {
        assert_eq!(resume.row(id.as_bytes()), track(commit_lsn, ordinal));
    }
    assert_eq!(resume.commit(lsn(commit_lsn), lsn(end_lsn)), CommitVerdict::Close);
}

/// Sees a whole transaction that is skipped.
fn skip(resume: &mut Resume, commit_lsn: u64, end_lsn: u64, ids: &[&str]) {
    assert_eq!(resume.begin(lsn(commit_lsn)), BeginVerdict::Skip);
    assert!(!resume.between_transactions());
    for id in ids {
        assert_eq!(resume.row(id.as_bytes()), RowVerdict::Skip);
    }
    resume.other_row();
    assert_eq!(resume.commit(lsn(commit_lsn), lsn(end_lsn)), CommitVerdict::Skip);
    assert!(resume.between_transactions());
}

/// A stream that was lost in transaction 300 after rows a (0), of another table (1), and b (2). Transactions 100 and
/// 200 are closed.
fn lost_in_the_middle() -> Resume {
    let mut resume = connected(50);
    take(&mut resume, 100, 110, &["x"]);
    take(&mut resume, 200, 210, &["y", "z"]);
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::New);
    assert_eq!(resume.row(b"a"), track(300, 0));
    resume.other_row();
    assert_eq!(resume.row(b"b"), track(300, 2));
    resume.on_connect();
    resume
}

#[test]
fn an_undisturbed_run_takes_everything() {
    let mut resume = connected(100);
    assert_eq!(resume.last_position(), None);
    take(&mut resume, 100, 110, &["a"]);
    take(&mut resume, 110, 120, &["b", "c"]);
    take(&mut resume, 150, 160, &[]);
    assert_eq!(resume.last_position(), Some(Position { commit_lsn: lsn(110), ordinal: 1 }));
    assert_eq!((resume.taken_to(), resume.open_transaction()), (lsn(160), None));
}

#[test]
fn rows_of_other_tables_count_in_the_ordinal() {
    let mut resume = connected(0);
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::New);
    resume.other_row();
    resume.other_row();
    assert_eq!(resume.row(b"a"), track(100, 2));
    resume.other_row();
    assert_eq!(resume.row(b"b"), track(100, 4));
}

#[test]
fn reconnect_between_transactions_skips_the_closed_ones() {
    let mut resume = connected(50);
    take(&mut resume, 100, 110, &["a"]);
    take(&mut resume, 110, 120, &["b"]);
    resume.on_connect();
    skip(&mut resume, 100, 110, &["a"]);
    skip(&mut resume, 110, 120, &["b"]);
    take(&mut resume, 120, 130, &["c"]);
}

#[test]
fn a_transaction_that_starts_at_the_end_of_the_last_closed_one_is_new() {
    // T5: commit records stand end to end.
    let mut resume = connected(100);
    take(&mut resume, 100, 110, &["a"]);
    resume.on_connect();
    take(&mut resume, 110, 120, &["b"]);
}

#[test]
fn reconnect_in_the_middle_goes_on_behind_the_last_row() {
    let mut resume = lost_in_the_middle();
    assert_eq!(resume.open_transaction(), Some(lsn(300)));
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    resume.other_row();
    assert_eq!(resume.row(b"b"), RowVerdict::Skip);
    assert_eq!(resume.row(b"c"), track(300, 3));
    assert_eq!(resume.commit(lsn(300), lsn(310)), CommitVerdict::Close);
    take(&mut resume, 310, 320, &["d"]);
}

#[test]
fn reconnect_before_the_last_row_of_a_transaction_takes_that_row() {
    let mut resume = connected(0);
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::New);
    assert_eq!(resume.row(b"a"), track(100, 0));
    resume.on_connect();
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    assert_eq!(resume.row(b"last"), track(100, 1));
    assert_eq!(resume.commit(lsn(100), lsn(110)), CommitVerdict::Close);
}

#[test]
fn reconnect_in_the_middle_skips_older_transactions_first() {
    let mut resume = lost_in_the_middle();
    skip(&mut resume, 100, 110, &["x"]);
    skip(&mut resume, 200, 210, &["y", "z"]);
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    resume.other_row();
    assert_eq!(resume.row(b"b"), RowVerdict::Skip);
    assert_eq!(resume.commit(lsn(300), lsn(310)), CommitVerdict::Close);
}

#[test]
fn two_reconnects_in_the_middle_of_the_same_transaction() {
    let mut resume = lost_in_the_middle();
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    resume.on_connect();
    resume.on_connect();
    skip(&mut resume, 200, 210, &["y", "z"]);
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    resume.other_row();
    assert_eq!(resume.row(b"b"), RowVerdict::Skip);
    assert_eq!(resume.row(b"c"), track(300, 3));
    resume.on_connect();
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    for id in ["a", "other", "b", "c"] {
        if id == "other" { resume.other_row() } else { assert_eq!(resume.row(id.as_bytes()), RowVerdict::Skip) }
    }
    assert_eq!(resume.row(b"d"), track(300, 4));
}

#[test]
fn reconnect_before_the_first_row_takes_all() {
    let mut resume = connected(0);
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::New);
    resume.other_row();
    resume.on_connect();
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::Continue);
    resume.other_row();
    assert_eq!(resume.row(b"a"), track(100, 1));
    assert_eq!(resume.commit(lsn(100), lsn(110)), CommitVerdict::Close);
}

#[test]
fn another_id_at_the_last_row_takes_the_whole_transaction_again() {
    let mut resume = lost_in_the_middle();
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    resume.other_row();
    assert_eq!(resume.row(b"B"), RowVerdict::Mismatch);
    assert_eq!(resume.row(b"c"), RowVerdict::Mismatch, "nothing more of this connection is taken");
    assert_eq!(resume.commit(lsn(300), lsn(310)), CommitVerdict::Mismatch);
    assert_eq!(resume.begin(lsn(400)), BeginVerdict::OutOfOrder);
    resume.on_connect();
    skip(&mut resume, 200, 210, &["y", "z"]);
    take(&mut resume, 300, 310, &["a", "B", "c"]);
}

#[test]
fn another_table_at_the_last_row_is_a_mismatch() {
    let mut resume = lost_in_the_middle();
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    resume.other_row();
    resume.other_row();
    assert_eq!(resume.row(b"b"), RowVerdict::Mismatch);
    resume.on_connect();
    take(&mut resume, 300, 310, &["a", "b"]);
}

#[test]
fn a_commit_before_the_last_row_is_a_mismatch() {
    let mut resume = lost_in_the_middle();
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    assert_eq!(resume.commit(lsn(300), lsn(310)), CommitVerdict::Mismatch);
    resume.on_connect();
    take(&mut resume, 300, 310, &["a"]);
}

#[test]
fn a_second_mismatch_and_a_loss_in_between() {
    let mut resume = lost_in_the_middle();
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"a"), RowVerdict::Skip);
    resume.other_row();
    assert_eq!(resume.row(b"B"), RowVerdict::Mismatch);
    resume.on_connect();
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::New);
    assert_eq!(resume.row(b"a"), track(300, 0));
    resume.on_connect();
    assert_eq!(resume.begin(lsn(300)), BeginVerdict::Continue);
    assert_eq!(resume.row(b"A"), RowVerdict::Mismatch);
    resume.on_connect();
    take(&mut resume, 300, 310, &["A", "B"]);
}

#[test]
fn long_ids_are_told_apart() {
    let long = |end: &str| format!("{}{end}", "i".repeat(500));
    for (taken, sent) in [(long("1"), long("2")), (long(""), long("i")), (String::new(), "0".into())] {
        for (id, verdict) in [(&taken, RowVerdict::Skip), (&sent, RowVerdict::Mismatch)] {
            let mut resume = connected(0);
            assert_eq!(resume.begin(lsn(100)), BeginVerdict::New);
            assert_eq!(resume.row(taken.as_bytes()), track(100, 0));
            resume.on_connect();
            assert_eq!(resume.begin(lsn(100)), BeginVerdict::Continue);
            assert_eq!(resume.row(id.as_bytes()), verdict);
        }
    }
}

#[test]
fn what_an_earlier_process_confirmed_is_skipped() {
    // The server crashed, and the slot went back to before where this process began.
    let mut resume = connected(200);
    resume.on_connect();
    skip(&mut resume, 100, 110, &["a"]);
    skip(&mut resume, 190, 200, &["b"]);
    take(&mut resume, 200, 210, &["c"]);
}

#[test]
fn going_back_without_a_reconnect_is_out_of_order() {
    // S35: in one connection commit LSNs only ascend. Skipping here would be a silent loss.
    for back in [1, 100, 109] {
        let mut resume = connected(50);
        take(&mut resume, 100, 110, &["a"]);
        assert_eq!(resume.begin(lsn(back)), BeginVerdict::OutOfOrder);
        assert_eq!(resume.row(b"b"), RowVerdict::OutOfOrder);
        assert_eq!(resume.commit(lsn(back), lsn(200)), CommitVerdict::OutOfOrder);
        resume.on_connect();
        skip(&mut resume, 100, 110, &["a"]);
        take(&mut resume, 110, 120, &["b"]);
    }
}

#[test]
fn what_is_sent_again_must_ascend_too() {
    for back in [50, 100] {
        let mut resume = connected(200);
        skip(&mut resume, 100, 110, &[]);
        assert_eq!(resume.begin(lsn(back)), BeginVerdict::OutOfOrder);
    }
}

#[test]
fn an_open_transaction_that_is_not_sent_again_is_out_of_order() {
    for other in [250, 299, 301, 400] {
        let mut resume = lost_in_the_middle();
        assert_eq!(resume.begin(lsn(other)), BeginVerdict::OutOfOrder);
        assert_eq!(resume.open_transaction(), Some(lsn(300)), "its rest is still owed");
    }
}

#[test]
fn positions_come_from_begin_and_commit_only() {
    // T6, S35: a Commit that names another transaction, or a position of 0/0, closes nothing.
    for (commit_lsn, end_lsn) in [(0, 0), (0, 110), (100, 0), (100, 99), (100, 100), (101, 110)] {
        let mut resume = connected(50);
        assert_eq!(resume.begin(lsn(100)), BeginVerdict::New);
        assert_eq!(resume.commit(lsn(commit_lsn), lsn(end_lsn)), CommitVerdict::OutOfOrder);
        assert_eq!((resume.taken_to(), resume.open_transaction()), (lsn(50), Some(lsn(100))));
    }
}

#[test]
fn messages_out_of_place_are_out_of_order() {
    let mut resume = connected(0);
    assert_eq!(resume.row(b"a"), RowVerdict::OutOfOrder);
    let mut resume = connected(0);
    assert_eq!(resume.commit(lsn(100), lsn(110)), CommitVerdict::OutOfOrder);
    let mut resume = connected(0);
    resume.other_row();
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::OutOfOrder);
    let mut resume = connected(0);
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::New);
    assert_eq!(resume.begin(lsn(200)), BeginVerdict::OutOfOrder);
    let mut resume = connected(200);
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::Skip);
    assert_eq!(resume.commit(lsn(101), lsn(110)), CommitVerdict::OutOfOrder);
}

#[test]
fn an_abandoned_transaction_is_taken_again() {
    let mut resume = connected(0);
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::New);
    assert_eq!(resume.row(b"a"), track(100, 0));
    resume.abandon();
    assert_eq!(resume.row(b"b"), RowVerdict::Mismatch);
    resume.on_connect();
    take(&mut resume, 100, 110, &["a", "b"]);
}

#[test]
fn a_keepalive_counts_between_transactions_only() {
    let mut resume = connected(0);
    assert!(resume.between_transactions());
    assert_eq!(resume.begin(lsn(100)), BeginVerdict::New);
    assert!(!resume.between_transactions());
    assert_eq!(resume.row(b"a"), track(100, 0));
    assert!(!resume.between_transactions());
    assert_eq!(resume.commit(lsn(100), lsn(110)), CommitVerdict::Close);
    assert!(resume.between_transactions());
    assert_eq!(resume.begin(Lsn::ZERO), BeginVerdict::OutOfOrder);
    assert!(!resume.between_transactions(), "nothing of a stream out of order is believed");
}
