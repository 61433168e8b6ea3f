//! What operators ask for, through `walgate.requests`.

use walgate::control::parking::Filter;
use walgate::control::requests::{Answer, Verb, answer, answer_of, ask, next, paused};

use super::{Rig, SLOT, connect};
use crate::support::postgres::{Postgres, ROLE};

/// A client as the gateway has it.
fn client(rig: &Rig) -> tokio_postgres::Client {
    let connect = connect(&rig.database);
    rig.runtime.block_on(async {
        let link = connect().await.unwrap();
        tokio::spawn(link.driver);
        link.client
    })
}

#[test]
fn requests_are_taken_in_order_and_answered_once() {
    for encoding in ["UTF8", "LATIN1"] {
        let rig = Rig::with(Postgres::shared().database_in(encoding));
        let client = client(&rig);
        rig.runtime.block_on(async {
            assert_eq!(next(&client, SLOT, 0).await.unwrap(), None);
            let filter = Filter { key: Some("größer \u{1F600}".into()), ..Filter::default() };
            let first = ask(&client, SLOT, "partner", &Verb::Retry(filter.clone())).await.unwrap();
            let second = ask(&client, SLOT, "", &Verb::Skip { event_id: "e".into() }).await.unwrap();
            ask(&client, "other", "partner", &Verb::Pause {}).await.unwrap();
            for _ in 0..2 {
                let request = next(&client, SLOT, 0).await.unwrap().unwrap();
                assert_eq!((request.id, &*request.sink, &*request.asked_by), (first, "partner", ROLE));
                assert_eq!(request.verb, Verb::Retry(filter.clone()));
                let age = walgate_sink::Timestamp(request.asked_at).age();
                assert!(age < std::time::Duration::from_secs(60), "{age:?}");
            }
            assert_eq!(answer_of(&client, first).await.unwrap(), None);
            let said = Answer { failed: false, outcome: "3 moved\0, größer \u{1F600}".into(), affected: 3 };
            answer(&client, first, &said).await.unwrap();
            let late = Answer { failed: true, outcome: "late".into(), affected: 0 };
            answer(&client, first, &late).await.unwrap();
            let outcome = match encoding {
                "UTF8" => "3 moved, größer \u{1F600}",
                _ => "3 moved, gr\\u{f6}\\u{df}er \\u{1f600}",
            };
            let answered = answer_of(&client, first).await.unwrap().unwrap();
            assert_eq!(answered, Answer { outcome: outcome.into(), ..said });
            let request = next(&client, SLOT, 0).await.unwrap().unwrap();
            assert_eq!((request.id, request.sink), (second, String::new()));
            answer(&client, second, &late).await.unwrap();
            assert_eq!(next(&client, SLOT, 0).await.unwrap(), None);
            assert_eq!(answer_of(&client, i64::MAX).await.unwrap(), None);
        });
    }
}

#[test]
fn a_request_that_cannot_be_read_does_not_hold_the_next() {
    let rig = Rig::new();
    let client = client(&rig);
    rig.database.sql(&format!(
        "INSERT INTO walgate.requests (slot, verb, sink, arguments) VALUES
           ('{SLOT}', 'explode', 'a', '{{}}'), ('{SLOT}', 'retry', 'a', '{{\"no_such_key\": 1}}'),
           ('{SLOT}', 'skip', 'a', '{{\"event_id\": \"\\u0000\"}}'), ('{SLOT}', 'drop', NULL, '{{}}')"
    ));
    let request = rig.runtime.block_on(next(&client, SLOT, 0)).unwrap().unwrap();
    // JSON can say NUL, and a verb may hold it.
    assert_eq!(request.verb, Verb::Skip { event_id: "\0".into() });
    rig.database.sql(&format!("UPDATE walgate.requests SET done_at = now() WHERE id = {}", request.id));
    let request = rig.runtime.block_on(next(&client, SLOT, 0)).unwrap().unwrap();
    assert_eq!((request.verb, request.sink), (Verb::Drop(Filter::default()), String::new()));
    let failed = rig.database.sql("SELECT outcome FROM walgate.requests WHERE failed ORDER BY id");
    assert_eq!(failed.len(), 2);
    assert!(failed[0][0].as_ref().unwrap().contains("explode"), "{failed:?}");
    assert!(failed[1][0].as_ref().unwrap().contains("no_such_key"), "{failed:?}");
}

#[test]
fn a_pause_holds_until_it_is_taken_back() {
    let rig = Rig::new();
    let client = client(&rig);
    rig.runtime.block_on(async {
        let paused = async || paused(&client, SLOT).await.unwrap();
        assert_eq!(paused().await, [""; 0]);
        let ask = async |sink: &str, verb: Verb| ask(&client, SLOT, sink, &verb).await.unwrap();
        let id = ask("b", Verb::Pause {}).await;
        ask("a", Verb::Pause {}).await;
        ask("b", Verb::Retry(Filter::default())).await;
        assert_eq!(paused().await, ["a", "b"]);
        // Answered or not.
        let done = Answer { failed: false, outcome: "paused".into(), affected: 0 };
        answer(&client, id, &done).await.unwrap();
        assert_eq!(paused().await, ["a", "b"]);
        let resume = ask("b", Verb::Resume {}).await;
        assert_eq!(paused().await, ["a"]);
        answer(&client, resume, &Answer { failed: true, ..done }).await.unwrap();
        assert_eq!(paused().await, ["a", "b"], "what failed did not happen");
        ask("b", Verb::Resume {}).await;
        assert_eq!(paused().await, ["a"]);
    });
}
