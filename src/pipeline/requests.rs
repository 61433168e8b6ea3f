//! What operators ask for, through `walgate.requests`, one after another.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_postgres::Client;

use super::{NamedLane, StatusBoard};
use crate::{
    control::{
        QueryError, Term,
        dead_letters::{self, Selection},
        parking,
        requests::{self, Answer, Request, Verb},
    },
    telemetry::failpoint,
};

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Takes requests and answers them until it is dropped.
///
/// While another process has the slot they are that one's.
pub async fn serve(clients: watch::Receiver<Option<Arc<Client>>>, slot: String, term: Term, board: StatusBoard) {
    // Retries that are under way: their requests are answered when their dead letters are on their way out. With what
    // must be said of those that cannot be.
    let mut reviving: HashMap<i64, Option<String>> = HashMap::new();
    loop {
        sleep(EVERY).await;
        let client = clients.borrow().clone();
        let Some(client) = client.filter(|_| term.get() > 0 && !board.stands_by()) else { continue };
        if let Err(error) = turn(&client, &slot, term.get(), &board.lanes(), &mut reviving).await {
            tracing::debug!(%error, "requests cannot be read at present");
        }
    }
}

async fn turn(
    client: &Client,
    slot: &str,
    term: i64,
    lanes: &[NamedLane],
    reviving: &mut HashMap<i64, Option<String>>,
) -> Result<(), QueryError> {
    for lane in lanes {
        for (id, rows) in lane.handle.revived() {
            let refused = reviving.remove(&id).flatten();
            let failed = refused.is_some();
            let refused = refused.map(|why| format!("; {why}")).unwrap_or_default();
            let outcome = format!("{rows} dead letters of sink `{}` are attempted again{refused}", lane.name);
            answer(client, id, Answer { failed, outcome, affected: rows }).await?;
        }
    }
    // One at a time and in order: what comes behind a retry waits for it.
    while reviving.is_empty()
        && let Some(request) = requests::next(client, slot, term).await?
    {
        tracing::info!(
            id = request.id,
            verb = request.verb.as_str(),
            sink = request.sink,
            by = request.asked_by,
            "an operator asks"
        );
        failpoint("request.taken");
        let done = carry_out(client, slot, &request, lanes).await?;
        failpoint("request.carried_out");
        match done {
            Done::Answered(done) => answer(client, request.id, done).await?,
            Done::Reviving(refused) => drop(reviving.insert(request.id, refused)),
        }
    }
    Ok(())
}

async fn answer(client: &Client, id: i64, answer: Answer) -> Result<(), QueryError> {
    tracing::info!(
        id,
        failed = answer.failed,
        affected = answer.affected,
        outcome = answer.outcome,
        "request answered"
    );
    failpoint("answer.before");
    requests::answer(client, id, &answer).await?;
    failpoint("answer.after");
    Ok(())
}

/// What came of a request so far.
enum Done {
    /// All of it.
    Answered(Answer),
    /// Dead letters are on their way; and what to say of those that are not.
    Reviving(Option<String>),
}

async fn carry_out(client: &Client, slot: &str, request: &Request, lanes: &[NamedLane]) -> Result<Done, QueryError> {
    let sink = &request.sink;
    let said = |failed, outcome: String, affected| Done::Answered(Answer { failed, outcome, affected });
    let lane = lanes.iter().find(|lane| lane.shelf == *sink);
    let Some(lane) = lane else {
        let outcome = match &request.verb {
            Verb::Drop(filter) => {
                let rows = parking::discard(client, slot, sink, filter).await?;
                return Ok(said(false, format!("{rows} dead letters of sink `{sink}` are deleted"), rows));
            }
            _ => format!("this gateway has no sink `{sink}`"),
        };
        return Ok(said(true, outcome, 0));
    };
    Ok(match &request.verb {
        Verb::Pause {} => {
            lane.handle.pause(true);
            said(false, format!("sink `{sink}` is paused: what it is owed is parked or held until it is resumed"), 0)
        }
        Verb::Resume {} => {
            lane.handle.pause(false);
            said(false, format!("sink `{sink}` goes on"), 0)
        }
        Verb::Skip { event_id } => match lane.handle.skip(event_id) {
            true => said(false, format!("event {event_id} is left out for sink `{sink}`; its key goes on"), 1),
            false => said(true, format!("no event {event_id} holds a key of sink `{sink}`"), 0),
        },
        Verb::Retry(filter) => {
            let selection = Selection { slot: slot.to_owned(), sink: Some(sink.clone()), filter: filter.clone() };
            let unsendable = dead_letters::unsendable(client, &selection).await?;
            let refused = unsendable.sentence(sink);
            if let Some(why) = refused.as_ref().filter(|_| unsendable.others == 0) {
                return Ok(said(true, why.clone(), 0));
            }
            if filter.reason.as_deref() == Some("replay") {
                // The command line has put them there.
                lane.handle.letters_added(filter.ids.len() as u64);
            }
            lane.handle.revive(request.id, filter.clone(), request.asked_at, format!("r{}", request.id));
            Done::Reviving(refused)
        }
        Verb::Drop(filter) => {
            let rows = parking::discard(client, slot, sink, filter).await?;
            lane.handle.letters_deleted(rows);
            said(false, format!("{rows} dead letters of sink `{sink}` are deleted"), rows)
        }
    })
}
