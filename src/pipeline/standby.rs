//! Several walgates for one slot: the slot is the only lock. Whoever PostgreSQL lets stream from it delivers, and nobody
//! else; who comes second waits; and who finds that another one had the slot meanwhile begins again with nothing, because
//! what it holds may have been delivered since, or parked, or left out.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use walgate_sink::Lsn;

use super::{
    Attempts, Gateway, GatewayError, Next, Pause, SourceState, TermBegun,
    recorder::{Book, Recorder},
};
use crate::{
    control::{CatalogRows, Claim, QueryError, gateway, requests, slot_status},
    source::Identity,
    telemetry::failpoint,
};

/// Pause between two looks at a slot that another process reads. Jitter takes off up to half, so that of several who
/// wait not all come at once.
const POLL: Duration = Duration::from_millis(500);
/// The pause before the first one: who has the slot is to be said soon.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// A server that does not answer a look for so long is taken for unreachable.
const PATIENCE: Duration = Duration::from_secs(10);

impl Gateway {
    /// The stream has begun, so the slot is ours: says so in walgate's own tables, begins with nothing where another
    /// process had it in between, and lets statuses confirm what is settled from here on.
    pub(super) async fn begin_term(
        &mut self,
        server: &Identity,
        confirmed: watch::Sender<Lsn>,
        attempts: &Attempts,
    ) -> Result<Recorder, Next> {
        let again = |why: String| Next::Reconnect { pause: Pause::Short, why };
        let Some(client) = self.session.client() else {
            return Err(again("the SQL connection was lost".to_owned()));
        };
        let asked = timeout(PATIENCE, self.ask_whose(&client, server)).await;
        let asked = asked.map_err(|_| again(format!("PostgreSQL did not answer within {} s", PATIENCE.as_secs())))?;
        let Whose { slot, claim, paused } = asked.map_err(|error| again(error.to_string()))?;
        let before = claim.as_ref().and_then(|claim| claim.before.as_ref());
        if let Some(gap) = before.and_then(|before| before.gap(&self.options.slot, slot, &server.system_id)) {
            if !self.accept_gap {
                return Err(Next::Fail(GatewayError::Gap(gap)));
            }
            tracing::warn!("going on over a gap, as --accept-gap says: {gap}");
        }
        self.accept_gap = false;
        let other_term = before.is_some_and(|before| self.term.get() != 0 && before.term != self.term.get());
        let taken = attempts.begun && (other_term || slot > self.checkpoint.snapshot().flush_lsn);
        if taken {
            tracing::warn!(
                %slot,
                "another process has had the slot in between: what was held here is dropped, and comes again where it was \
                 not delivered"
            );
            self.lanes.start_over().await;
        }
        if taken || !attempts.begun {
            self.checkpoint.with(|ring| ring.restart(slot));
            self.intake.start_over(self.lanes.handles());
            self.board.set_lanes(self.checkpoint.clone(), self.lanes.named());
            self.lanes.pause(&paused);
        }
        if let Some(claim) = &claim {
            self.term.set(claim.term);
        }
        failpoint("term.begun");
        let begun = claim.as_ref().map(|claim| TermBegun {
            term: claim.term,
            bounds: claim.bounds,
            catalog: claim.catalog.as_deref().and_then(CatalogRows::from_text),
            passed: watch::channel(None).1,
        });
        let book = claim.map(|claim| Book {
            client,
            slot: self.options.slot.clone(),
            term: claim.term,
            marks_hold: claim.marks_hold,
        });
        // The catalogs are looked at first.
        self.bounds.send_replace(None);
        let passed = watch::Sender::new(None);
        self.terms.send_replace(begun.map(|begun| TermBegun { passed: passed.subscribe(), ..begun }));
        Ok(Recorder::spawn(book, self.checkpoint.clone(), confirmed, passed, self.bounds.subscribe()))
    }

    async fn ask_whose(&self, client: &tokio_postgres::Client, server: &Identity) -> Result<Whose, QueryError> {
        let slot = &self.options.slot;
        if !self.tables {
            return Ok(Whose { slot: gateway::slot_confirmed(client, slot).await?, claim: None, paused: Vec::new() });
        }
        let claim = gateway::claim(client, slot, &server.system_id, server.timeline, self.accept_gap).await?;
        // Somebody may have paused a sink while it was another's.
        let paused = requests::paused(client, slot).await?;
        Ok(Whose { slot: claim.slot, claim: Some(claim), paused })
    }

    /// Waits until nobody else reads the slot, or the gateway is to stop. On the SQL connection that there is: nobody
    /// logs in every second.
    pub(super) async fn stand_by(&mut self, why: String, attempts: &mut Attempts, stop: &mut watch::Receiver<bool>) {
        if attempts.begun {
            tracing::warn!(
                reason = why,
                "another process has taken over: what was held here is dropped; standing by until the slot is free"
            );
        } else {
            tracing::info!(reason = why, "standing by until the slot is free");
        }
        self.board.source(SourceState::Standby, Some(why));
        self.terms.send_replace(None);
        self.bounds.send_replace(None);
        if std::mem::take(&mut attempts.begun) {
            self.lanes.start_over().await;
            self.checkpoint.with(|ring| ring.restart(Lsn::ZERO));
            self.board.set_lanes(self.checkpoint.clone(), self.lanes.named());
        }
        (attempts.failures, attempts.silences) = (0, 0);
        let slot = self.options.slot.clone();
        let mut pause = FIRST_LOOK;
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                Some(reload) = self.reloads.recv() => {
                    // It is taken up by whoever waits too, before the next attempt.
                    attempts.want(reload);
                    return;
                }
                () = sleep(pause) => {}
            }
            pause = POLL.mul_f64(1.0 - fastrand::f64() / 2.0);
            let Some(client) = self.session.client() else {
                let why = "the SQL connection was lost while standing by".to_owned();
                self.board.source(SourceState::Reconnecting, Some(why));
                continue;
            };
            match timeout(PATIENCE, slot_status(&client, &slot)).await {
                Ok(Ok(Some(status))) if status.active => {
                    let user = status.user.map_or_else(|| "another process".to_owned(), |user| user.to_string());
                    let why = format!(
                        "replication slot `{slot}` is being read by {user}: this one takes over when that ends"
                    );
                    self.board.source(SourceState::Standby, Some(why));
                }
                // Free, or gone: the next attempt to stream says.
                Ok(Ok(_)) => return,
                Ok(Err(error)) => self.board.source(SourceState::Reconnecting, Some(error.to_string())),
                Err(_) => {
                    let why = format!("PostgreSQL did not answer within {} s", PATIENCE.as_secs());
                    self.board.source(SourceState::Reconnecting, Some(why));
                }
            }
        }
    }
}

/// Whose the slot was.
struct Whose {
    /// What it has confirmed.
    slot: Lsn,
    /// Our term, where there are tables.
    claim: Option<Claim>,
    /// The sinks that an operator has paused.
    paused: Vec<String>,
}
